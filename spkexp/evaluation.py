"""Scoring a trained run on trials, after the fact or while it trains."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, checkpoint, corpus, distributed, durable, sources
from spkexp.data.classes import SPEAKER, LabelledSet
from spkexp.data.evaluation_set import EvaluationSet, Trained, from_list
from spkexp.data.split import split_table
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError
from spkexp.models.speaker import SpeakerModel
from spkexp.report.confusion import write_classified
from spkexp.report.plots import det_plot
from spkexp.report.table import BEGINNINGS, results_table
from spkexp.rescoring import name_of, overridden
from spkexp.resume import with_todays_keys
from spkexp.scoring.classification import classify, closed_set, largest_class, summarise_classes
from spkexp.scoring.summary import error_rates_of
from spkexp.scoring.system import System
from spkexp.scoring.verification import Extraction, Policy, Scored, score
from spkexp.sections import Scoring
from spkexp.trial_results import check_reports, write_trials
from spkexp.watch import watch
from spkexp.whole_file import write_json, write_text

log = logging.getLogger(__name__)
_OF_TRAINING = ("loss", "accuracy", *BEGINNINGS)  # what a run says of a list and no later scoring changes


@dataclass(frozen=True)
class Request:
    """What to score a run on, and how."""

    trials: Path | None  # None: the run's own
    models: Path | None  # the list of `MODEL utterance [utterance ...]` that the enrolment names of `trials` are in
    root: str | None
    scoring: tuple[str, ...]  # overrides of the run's own scoring, as typed
    trust: tuple[str, ...]


class Evaluation:
    """The trial lists that a run is scored on, whichever of its checkpoints; built once, from its config."""

    def __init__(
        self,
        source: str | Path,
        cfg: DictConfig,
        folder: Path,
        request: Request,
        device: torch.device,
        names: Sequence[str] = ("val", "test"),
    ) -> None:
        """folder: of a checkpoint; names: of the run's own lists, where the request has none. Raises UserError."""
        trials = request.trials
        if request.models is not None and trials is None:
            raise UserError(f"models: {request.models} needs the list of trials that enrols them, trials=FILE")
        if trials is not None and trials.stem in ("val", "test"):
            raise UserError(f"{trials}: {trials.stem} is the name of the run's own trials; rename the list")
        cfg, _ = with_todays_keys(cfg)
        if request.root is not None:
            cfg.data.root = request.root
        cfg.data.stage_dir = None  # an evaluation reads each file once: no copy of the corpus is worth it
        cfg.scoring = overridden(cfg.scoring, request.scoring)
        self.cfg = cfg
        self.train: Utterances | None = None
        own: dict[str, EvaluationSet] = {}
        on = cfg.scoring.calibration
        if trials is None or on is not None:
            try:
                data = corpus.data(cfg)
            except UserError as error:
                if trials is None:
                    raise
                raise UserError(
                    f"scoring.calibration={on} needs the run's own trials: {error}; null does without"
                ) from error
            self.train, own, self.background = data.train, dict(data.evaluation), data.background
        if trials is not None:
            listed, self.background = _listed(trials, request, cfg, folder)
            self.sets = {name: own[name] for name in own if name == on} | {listed.name: listed}
            self.reported = [listed.name]
        else:
            self.sets = {n: one for n, one in own.items() if one.trials is not None or isinstance(one, LabelledSet)}
            self.reported = [name for name in self.sets if name in names]
        self.settings = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
        policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
        workers = corpus.num_workers(cfg, device)
        self.extraction = Extraction(corpus.reading(cfg), self.settings, policy, workers)
        if not self.reported:
            raise UserError(f"{source}: the run's data has no {' or '.join(names)} trials; give trials=FILE")
        check_reports(self.settings, self.sets, cfg.data.label)

    def scored(self, model: SpeakerModel) -> dict[str, Scored]:
        """By all processes together. Raises UserError."""
        system = System(self.settings, self.extraction.background(model, self.background))
        wanted = {*self.reported, self.settings.calibration}
        return {
            name: score(which, self.extraction.embeddings(model, name, which.utterances), system)
            for name, which in self.sets.items()
            if name in wanted
        }


def evaluate(source: str, request: Request, output: Path | None, device: torch.device) -> None:
    """Score `source` (a run or another model's folder, here or afar) and write results; prints the table.

    Raises UserError.
    """
    if output is None and sources.is_remote(source):
        raise UserError(f"model={source}: is no folder of yours, where its results could go; give output=DIR")
    model, cfg, folder = build.trained_model(source, request.trust)
    model.to(device)
    evaluation = Evaluation(source, cfg, folder, request, device)
    # The results of a run are those of its best checkpoint; one that is named itself keeps its own. Other scores than
    # those that the run is configured for are another system's, which compare takes as one.
    own = sources.local(source)
    if output is None and durable.seals(own, "results.json"):
        raise UserError(
            f"model={source}: was published with its results, which others are not to replace; give output=DIR"
        )
    name = name_of(request.scoring)
    output = output or (own if name is None else own / "scoring" / name)
    distributed.decided_by_main(lambda: _make(output))
    results = _earlier(output, own, cfg, sum(p.numel() for p in model.parameters()))
    scored = evaluation.scored(model)
    if not distributed.is_main():
        return
    settings, train = evaluation.settings, evaluation.train
    verified = [n for n in evaluation.reported if not isinstance(evaluation.sets[n], LabelledSet)]
    entries, scores = write_trials(output, scored, settings, verified)
    for name, entry in entries.items():
        before = results["trials"].get(name, {}) if "eer" in entry else {}
        results["trials"][name] = {key: before[key] for key in _OF_TRAINING if key in before} | entry
        det_plot(output / "plots" / f"det-{name}.png", {name: scores[name]})
    for name in evaluation.reported:
        if name in verified or train is None:
            continue
        head = build.trained_head(cfg, folder, model.embedding_size, request.trust)
        if head is None:
            raise UserError(f"{source}: its loss has no classes to tell data.label={cfg.data.label} by")
        classes = checkpoint.load_labels(folder)
        answers = classify(head.to(device), scored[name], cfg.data.label, classes, device)
        results["trials"][name] = summarise_classes(answers, settings.bootstrap, largest_class(train))
        write_classified(output, answers, settings.save_scores)
    if output.resolve() != own.resolve():
        write_text(output / checkpoint.CONFIG, OmegaConf.to_yaml(evaluation.cfg))
    write_json(output / "results.json", results)
    print(results_table(results | {"trials": {name: results["trials"][name] for name in evaluation.reported}}))
    print(f"results: {output / 'results.json'}")


def validate(run: Path, request: Request, every: int, device: torch.device) -> None:
    """Score the checkpoints of `run` while it trains, every so many epochs, and keep the best. Raises UserError.

    On its validation trials, or on those of the request.
    """
    evaluation: Evaluation | None = None

    def measure(folder: Path) -> dict[str, Any]:
        nonlocal evaluation
        model, cfg, _ = build.trained_model(folder, request.trust)
        if evaluation is None:
            evaluation = Evaluation(run, cfg, folder, request, device, ("val",))
            (found,) = (evaluation.sets[name] for name in evaluation.reported)
            if found.trials is not None and found.trials.target is None:
                raise UserError(f"{request.trials}: has no labels, so it cannot tell which epoch is the best")
        (name,) = evaluation.reported
        scored = evaluation.scored(model.to(device))[name]
        head = build.trained_head(cfg, folder, model.embedding_size, request.trust)
        metrics = error_rates_of(scored, evaluation.settings)
        if head is not None and request.trials is None:
            classes = checkpoint.load_labels(folder)
            metrics |= closed_set(head.to(device), scored, cfg.data.label, classes, device, 0)
        return metrics

    watch(run.expanduser(), request.trials.stem if request.trials else "val", every, measure)


def _make(output: Path) -> None:
    """Before anything is scored: a folder that cannot be written is found now."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output}: cannot be written: {error.strerror}; name another folder") from error


def _earlier(output: Path, source: Path, cfg: DictConfig, parameters: int) -> dict[str, Any]:
    """The results that `output` has already, else a beginning of them: what the run at `source` says of itself."""
    named = {key: checkpoint.named(cfg, key) for key in ("model", "data")}
    found = {**named, "seed": cfg.get("seed", 0), "parameters": parameters}
    for file, whole in ((output / "results.json", True), (source / "results.json", False)):
        if file.is_file():
            try:
                earlier = json.loads(file.read_text(encoding="utf-8"))
                return earlier if whole else earlier | {"trials": {}}
            except (OSError, ValueError, TypeError) as error:
                raise UserError(f"{file}: cannot be read ({error}); remove it, or give output=DIR") from error
    return found | {"trials": {}}


def _listed(trials: Path, request: Request, cfg: DictConfig, folder: Path) -> tuple[EvaluationSet, Utterances | None]:
    """The list's trials over the run's own utterances, or over files where the run's data is not at hand; and the
    background that scoring asks for.

    Of files nothing is known by which results could be broken down: then `cfg` loses its scoring.conditions.
    """
    label, split = cfg.data.label, cfg.data.split
    heard: set[str] = set()
    if label == SPEAKER and (folder / checkpoint.LABELS).is_file():
        heard |= set(checkpoint.load_labels(folder))
    columns = ("id", "path", "duration", SPEAKER)
    ids = pl.Series("id", dtype=pl.String)
    train, away = None, ""
    try:
        if request.root is not None and corpus.is_made(cfg):  # what lies in the user's folder is other recordings
            raise UserError("its voices are made, and data.root is where those of the list lie")
        table, _ = corpus.table(cfg)
        train = split_table(table, label, split.by, split.fractions, split.seed)["train"]
        ids = train["id"]
        if SPEAKER in train.columns:  # a run for another label has heard voices too
            heard |= set(train[SPEAKER].drop_nulls()) - {""}
    except UserError as error:
        away = str(error)
        log.info("the run's own data is not at hand (%s); names in %s must be files", error, trials)
        table = pl.DataFrame(schema={name: pl.Float64 if name == "duration" else pl.String for name in columns})
        if kept := corpus.kept_columns(cfg):
            log.warning("%s: nothing is known of files by which to tell %s apart", trials, ", ".join(kept))
            cfg.scoring.conditions = [name for name in cfg.scoring.conditions if name not in kept]
            cfg.scoring.colour_by = SPEAKER
    if SPEAKER not in table.columns:
        table = table.with_columns(pl.lit("").alias(SPEAKER))
    table = table.with_columns(pl.col(SPEAKER).fill_null(""))  # a run for another label need not know who speaks

    def training() -> pl.DataFrame:
        if train is None:
            raise UserError(
                f"scoring.cohort: the training speakers are not at hand ({away}); scoring.cohort.manifest=FILE names "
                "others"
            )
        return train

    models_file = str(request.models) if request.models else None
    found = from_list(
        trials.stem, str(trials), models_file, table, SPEAKER, cfg.data.root, Trained(sorted(heard), ids),
        corpus.kept_columns(cfg),
    )  # fmt: skip
    return found, corpus.background(cfg, training, [found])
