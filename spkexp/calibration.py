"""Scores of runs to log-likelihood ratios, several runs fused, from the files that the runs left."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from spkexp import saved_config
from spkexp.config import config_folder
from spkexp.errors import UserError
from spkexp.foreign import LABELS_BYTES, read_json
from spkexp.report.calibration import calibration_plot, weights_table
from spkexp.report.ratios import calibration_table
from spkexp.scoring.calibrate import SCORE, calibrate
from spkexp.scoring.summary import rates
from spkexp.scoring.trial_scores import TrialScores
from spkexp.whole_file import write_json, write_text


@dataclass(frozen=True)
class Request:
    """on: the trial list to learn on, for prior `p_target`; trials: those to calibrate; quality: what counts beside."""

    on: str
    trials: Sequence[str]
    quality: Sequence[str]
    p_target: float


@dataclass(frozen=True)
class System:
    """A run whose scores are calibrated."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]


def calibrate_runs(folders: Sequence[Path], request: Request, output: Path) -> None:
    """Write results, scores and plots into `output`, and print what calibration brought. Raises UserError."""
    systems = _systems(folders)
    if (output / "results.json").is_file() and not (output / "calibration.json").is_file():
        raise UserError(f"output={output}: has results of something else; name another folder")
    if any(output.resolve() == system.folder.resolve() for system in systems):
        raise UserError(f"output={output}: is one of the runs, whose scores it would replace; name another folder")
    try:
        _calibrate(request, systems, output)
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror}; is output={output} a folder?") from error


def _systems(folders: Sequence[Path]) -> list[System]:
    """The runs, by the shortest names that tell them apart. Raises UserError."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; RUN is a run folder, with scores/<trials>.txt")
        file = folder / "config.yaml"
        config = OmegaConf.to_container(saved_config.read(file)) if file.is_file() else {}
        file = folder / "results.json"
        results = read_json(file, LABELS_BYTES) if file.is_file() else {}
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


def _scores(system: System, trials: str) -> TrialScores:
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
    default = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(config_folder() / "scoring" / "default.yaml")))
    own = system.config.get("scoring") or {}
    return {key: own.get(key, default[key]) for key in ("p_targets", "bootstrap")}


def _calibrate(request: Request, systems: Sequence[System], output: Path) -> None:
    scoring = _scoring(systems[0])
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    fused = len(systems) > 1
    names = [system.name for system in systems]
    learnt_on = [_scores(system, request.on) for system in systems]
    results = _results(systems)
    before: dict[str, Any] = {}
    tables: list[Table | str] = []
    for system in systems:
        for name in (request.on, *request.trials):
            if system.results.get("trials", {}).get(name, {}).get("calibration"):
                raise UserError(
                    f"{system.folder}: its scores of {name} are log-likelihood ratios already, learnt with "
                    f"scoring.calibration; score it without: python -m spkexp.evaluate model={system.folder} "
                    "scoring.calibration=null output=DIR, and give DIR"
                )
    for trials in request.trials:
        found = [_scores(system, trials) for system in systems]
        ratios, fitted = calibrate(
            learnt_on,
            found,
            names if fused else (SCORE,),
            request.quality,
            request.p_target,
            request.on,
            trials,
        )
        ratios.write(output / "scores" / f"{trials}.txt")
        if ratios.target is None:
            results["trials"][trials] = {"num_trials": len(ratios)}
            tables.append(f"{trials}: {len(ratios):,} trials without labels, so no error rates")
            continue
        after = results["trials"][trials] = _entry(ratios, scoring, scoring["bootstrap"], trials)
        before[trials] = {
            system.name: _entry(own, scoring, 0, f"{system.folder}: {trials}")
            for system, own in zip(systems, found, strict=True)
        }
        rows = {**before[trials], "fused" if fused else "calibrated": after}
        tables.append(calibration_table(f"{trials}: {len(ratios):,} trials", "system", rows))
        shown = {"fused": ratios} if fused else {"before": found[0], "calibrated": ratios}
        curves = {name: (one.score, ratios.target) for name, one in shown.items()}
        calibration_plot(output / "plots" / f"calibration-{trials}.png", curves)
    learnt = {"on": request.on, "quality": list(request.quality), "p_target": request.p_target}
    of = {system.name: str(system.folder) for system in systems}
    write_json(output / "calibration.json", {"systems": of, **learnt, **fitted.description(), "before": before})
    _write_config(output / "config.yaml", systems, scoring, learnt)
    write_json(output / "results.json", results)  # last: it makes of the folder a run that came to its end
    console = Console(width=width, color_system=None, highlight=False)
    for table in (*tables, weights_table(fitted)):
        console.print(table)
    print(f"results: {output / 'results.json'}", flush=True)


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


def _entry(scores: TrialScores, scoring: Mapping[str, Any], replicates: int, where: str) -> dict[str, Any]:
    """The entry of results.json. Raises UserError where there are no error rates."""
    assert scores.target is not None
    try:
        found = rates(scores, scoring["p_targets"], llr=True, replicates=replicates)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return {"num_trials": len(scores), "num_targets": int(scores.target.sum()), **found}


def _write_config(file: Path, systems: Sequence[System], scoring: Mapping[str, Any], learnt: Mapping[str, Any]) -> None:
    """What was done to the scores, beside the config of the run; of several, beside what a comparison asks for."""
    config = dict(systems[0].config)
    if len(systems) > 1:
        results = _results(systems)
        config = {"names": {key: results[key] for key in ("model", "data")}, "scoring": dict(scoring)}
    write_text(file, yaml.safe_dump({**config, "calibration": dict(learnt)}, allow_unicode=True, sort_keys=False))
