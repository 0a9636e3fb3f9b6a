"""`python -m spkexp.calibrate`: scores of runs to log-likelihood ratios, several runs fused."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from annotated_types import Gt, Len, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.errors import UserError
from spkexp.sections import Text

if TYPE_CHECKING:
    from spkexp.scoring.trial_scores import TrialScores

HELP = """
NAME
  spkexp.calibrate - scores of runs to log-likelihood ratios; several are fused

SYNOPSIS
  python -m spkexp.calibrate RUN [RUN ...] output=DIR [KEY=VALUE ...]

DESCRIPTION
  Learns on one trial list what scores mean, by logistic regression, and turns
  those of other lists into natural-log likelihood ratios. Of several runs the
  weighted sum that tells speakers apart best: a fusion. The runs need scores
  (scoring.save_scores=true) of the same trials; the list that is learnt on
  must share no speaker and no utterance with those that are calibrated.

  Prints what it brought: EER, minDCF, the DCF of the decisions that the ratios
  call for, Cllr and minCllr, and the weights. Cllr - minCllr is what a better
  calibration could still gain. Before calibration the scores are taken as if
  they were log-likelihood ratios.

KEYS
  output=DIR           where results go
  on=val               the trial list to learn on
  trials=test[,...]    the trial lists to calibrate
  quality=MEASURE,...  what the calibration takes in beside the scores, of the
                       lesser and the greater side of each trial:
                         duration     log seconds
                         magnitude    log length of the embedding
                         cohort_mean  mean score against the cohort, where
                                      scores are normalised
  p_target=0.5         the prior to learn for: 0.5 makes Cllr least, a small
                       one cares most for scores where false alarms are rare

FILES
  results.json, config.yaml (compare takes DIR as a run), calibration.json (the
  weights), scores/<trials>.txt, plots/calibration-<trials>.png

EXAMPLES
  python -m spkexp.calibrate runs/2026-11-21/120000-ecapa output=calibrated
  python -m spkexp.calibrate RUN RUN RUN quality=duration output=fused
"""


def _are_runs(values: list[str]) -> list[str]:
    if not values:
        raise ValueError("name at least one: python -m spkexp.calibrate RUN [RUN ...] output=DIR")
    for value in values:
        key, equals, _ = value.partition("=")
        if equals and not Path(value).exists():
            raise ValueError(f"{value}: no such folder, and no key {key!r}; --help lists the keys")
    return values


Names = Annotated[list[Text], Len(1), BeforeValidator(lambda value: value.split(","))]
Measure = Literal["duration", "magnitude", "cohort_mean"]


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    runs: Annotated[list[Text], AfterValidator(_are_runs)]
    output: Text
    on: Text = "val"
    trials: Names = ["test"]
    quality: Annotated[list[Measure], BeforeValidator(lambda value: value.split(","))] = []
    p_target: Annotated[float, Gt(0), Lt(1)] = 0.5


@dataclass(frozen=True)
class System:
    """A run whose scores are calibrated."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]


def main() -> None:
    """Calibrate, write what belongs into the output folder and print what it brought."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, positional="runs")
        set_up_logging()
        output = Path(arguments.output)
        systems = _systems([Path(run) for run in arguments.runs])
        if (output / "results.json").is_file() and not (output / "calibration.json").is_file():
            raise UserError(f"output={output}: has results of something else; name another folder")
        if any(output.resolve() == system.folder.resolve() for system in systems):
            raise UserError(f"output={output}: is one of the runs, whose scores it would replace; name another folder")
        try:
            _calibrate(arguments, systems, output)
        except OSError as error:
            raise UserError(f"{error.filename or output}: {error.strerror}; is output={output} a folder?") from error


def _systems(folders: Sequence[Path]) -> list[System]:
    """The runs, by the shortest names that tell them apart. Raises UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; RUN is a run folder, with scores/<trials>.txt")
        try:
            file = folder / "config.yaml"
            config = OmegaConf.to_container(OmegaConf.load(file), resolve=True) if file.is_file() else {}
            file = folder / "results.json"
            results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(config, dict) or not isinstance(results, dict):
            raise UserError(f"{folder}: its config.yaml and results.json are not those of a run")
        found.append((folder, cast(dict[str, Any], config), results))
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice; a fusion is of different ones")
    models = [str(results.get("model", folder.name)) for folder, _, results in found]
    seeded = [f"{model} seed {results.get('seed')}" for model, (_, _, results) in zip(models, found, strict=True)]
    choices = (models, seeded, [folder.name for folder in folders], [str(folder) for folder in folders])
    names = next(choice for choice in choices if len(set(choice)) == len(choice))
    return [System(name, *parts) for name, parts in zip(names, found, strict=True)]


def _scores(system: System, trials: str) -> "TrialScores":
    from spkexp.scoring.trial_scores import TrialScores

    file = system.folder / "scores" / f"{trials}.txt"
    if not file.is_file():
        there = ", ".join(sorted(other.stem for other in file.parent.glob("*.txt"))) or "none"
        raise UserError(
            f"{system.folder}: has no scores of {trials!r}; there are {there}. To score a run: "
            f"python -m spkexp.evaluate model={system.folder}, with scoring.save_scores=true in its config"
        )
    return TrialScores.read(file)


def _scoring(system: System) -> Mapping[str, Any]:
    """p_targets and bootstrap of the run, or the defaults."""
    from omegaconf import OmegaConf

    from spkexp.config import config_folder

    default = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(config_folder() / "scoring" / "default.yaml")))
    own = system.config.get("scoring") or {}
    return {key: own.get(key, default[key]) for key in ("p_targets", "bootstrap")}


def _calibrate(arguments: Arguments, systems: Sequence[System], output: Path) -> None:
    from spkexp.json_file import write_json
    from spkexp.report.calibration import calibration_plot, calibration_table, weights_table
    from spkexp.scoring.calibrate import SCORE, calibrate

    scoring = _scoring(systems[0])
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    fused = len(systems) > 1
    names = [system.name for system in systems]
    learnt_on = [_scores(system, arguments.on) for system in systems]
    results = _results(systems)
    before: dict[str, Any] = {}
    tables = []
    for trials in arguments.trials:
        found = [_scores(system, trials) for system in systems]
        ratios, fitted = calibrate(
            learnt_on,
            found,
            names if fused else (SCORE,),
            arguments.quality,
            arguments.p_target,
            arguments.on,
            trials,
        )
        ratios.write(output / "scores" / f"{trials}.txt")
        if ratios.target is None:
            results["trials"][trials] = {"num_trials": len(ratios)}
            tables.append(f"{trials}: {len(ratios):,} trials without labels, so no error rates")
            continue
        after = results["trials"][trials] = _entry(ratios, scoring, trials)
        before[trials] = {
            system.name: _entry(own, scoring, f"{system.folder}: {trials}")
            for system, own in zip(systems, found, strict=True)
        }
        rows = {**before[trials], "fused" if fused else "calibrated": after}
        tables.append(calibration_table(f"{trials}: {len(ratios):,} trials", rows, width))
        shown = {"fused": ratios} if fused else {"before": found[0], "calibrated": ratios}
        curves = {name: (one.score, ratios.target) for name, one in shown.items()}
        calibration_plot(output / "plots" / f"calibration-{trials}.png", curves)
    learnt = {"on": arguments.on, "quality": list(arguments.quality), "p_target": arguments.p_target}
    of = {system.name: str(system.folder) for system in systems}
    write_json(output / "calibration.json", {"systems": of, **learnt, **fitted.description(), "before": before})
    _write_config(output / "config.yaml", systems, scoring, learnt)
    write_json(output / "results.json", results)  # last: it makes of the folder a run that came to its end
    print("\n\n".join([*tables, weights_table(fitted, width)]))
    print(f"\nresults: {output / 'results.json'}", flush=True)


def _results(systems: Sequence[System]) -> dict[str, Any]:
    """results.json without its trials. Sizes of fused systems add up; a seed is that of all of them."""
    of = [system.results for system in systems]
    seeds = {one.get("seed") for one in of}
    results: dict[str, Any] = {
        "model": " + ".join(system.name for system in systems),
        "data": " + ".join(dict.fromkeys(str(one.get("data", "unknown")) for one in of)),
        "seed": seeds.pop() if len(seeds) == 1 else None,
    }
    if all("parameters" in one for one in of):
        results["parameters"] = sum(one["parameters"] for one in of)
    return {**results, "trials": {}}


def _entry(scores: "TrialScores", scoring: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entry of results.json. Raises UserError where there are no error rates."""
    from spkexp.scoring.measures import Measures

    assert scores.target is not None
    try:
        measures = Measures(scores.score, scores.target, scoring["p_targets"], llr=True)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    entry: dict[str, Any] = {"num_trials": len(scores), "num_targets": int(scores.target.sum())}
    for key, value in zip(measures.keys, measures().tolist(), strict=True):
        name, dot, p_target = key.partition(".")
        if dot:
            entry.setdefault(name, {})[p_target] = value
        else:
            entry[name] = value
    return entry


def _write_config(file: Path, systems: Sequence[System], scoring: Mapping[str, Any], learnt: Mapping[str, Any]) -> None:
    """What was done to the scores, beside the config of the run; of several, beside what a comparison asks for."""
    import yaml

    from spkexp.json_file import write_text

    config = dict(systems[0].config)
    if len(systems) > 1:
        results = _results(systems)
        config = {"names": {key: results[key] for key in ("model", "data")}, "scoring": dict(scoring)}
    write_text(file, yaml.safe_dump({**config, "calibration": dict(learnt)}, allow_unicode=True, sort_keys=False))


if __name__ == "__main__":
    main()
