"""Scoring a trained run on trials, after the fact."""

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, checkpoint, corpus, distributed
from spkexp.config import config_folder
from spkexp.data.classes import SPEAKER, LabelledSet
from spkexp.data.evaluation_set import EvaluationSet, Trained, from_list
from spkexp.data.split import split_table
from spkexp.errors import UserError
from spkexp.json_file import write_json
from spkexp.report.confusion import write_classified
from spkexp.report.plots import det_plot
from spkexp.report.table import results_table
from spkexp.scoring.classification import classify, largest_class, summarise_classes
from spkexp.scoring.verification import Policy, score, summarise, write_scores
from spkexp.sections import Scoring

log = logging.getLogger(__name__)


def evaluate(
    source: Path,
    trials: Path | None,
    models: Path | None,
    root: str | None,
    output: Path | None,
    device: torch.device,
    trust: tuple[str, ...],
) -> None:
    """Score `source` (a run or checkpoint folder) and write results; prints the table. Raises UserError.

    models: the list of `MODEL utterance [utterance ...]` that the enrolment names of `trials` are in.
    """
    model, cfg, folder = build.trained_model(source, trust)
    model.to(device)
    # Keys that a run of an earlier version does not have yet.
    cfg.data = OmegaConf.merge(OmegaConf.load(config_folder() / "data_common.yaml"), cfg.data)
    if root is not None:
        cfg.data.root = root
    cfg.data.stage_dir = None  # an evaluation reads each file once: no copy of the corpus is worth it
    # The results of a run are those of its best checkpoint; one that is named itself keeps its own.
    output = output or Path(source).expanduser()
    if models is not None and trials is None:
        raise UserError(f"models: {models} needs the list of trials that enrols them, trials=FILE")
    if trials is not None and trials.stem in ("val", "test"):
        raise UserError(f"{trials}: {trials.stem} is the name of the run's own trials; rename the list")
    settings = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
    policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
    results = _earlier(output, cfg, sum(p.numel() for p in model.parameters()))
    data = corpus.data(cfg) if trials is None else None
    sets = [_listed(trials, models, cfg, folder)] if trials else list(data.evaluation.values()) if data else []
    sets = [found for found in sets if found.trials is not None or isinstance(found, LabelledSet)]
    if not sets:
        raise UserError(f"{source}: the run's data has no validation or test trials; give trials=FILE")
    for evaluation in sets:
        scored = score(model, evaluation, corpus.reading(cfg), settings, policy, corpus.num_workers(cfg, device))
        if not distributed.is_main():
            continue
        if data is not None and isinstance(evaluation, LabelledSet):
            head = build.trained_head(cfg, folder, model.embedding_size, trust)
            if head is None:
                raise UserError(f"{source}: its loss has no classes to tell data.label={cfg.data.label} by")
            answers = classify(head.to(device), scored, cfg.data.label, checkpoint.load_labels(folder), device)
            entry = summarise_classes(answers, settings.bootstrap, largest_class(data.train))
            results["trials"][evaluation.name] = entry
            write_classified(output, answers, settings.save_scores)
            continue
        entry = summarise(scored, settings, interval=True)
        blind = "eer" not in entry
        before = {} if blind else results["trials"].get(evaluation.name, {})
        results["trials"][evaluation.name] = before | entry
        if settings.save_scores or blind:  # of a list without labels the scores are the result
            write_scores(output / "scores" / f"{evaluation.name}.txt", scored)
        det_plot(output / "plots" / f"det-{evaluation.name}.png", {evaluation.name: scored})
    if distributed.is_main():
        write_json(output / "results.json", results)
        names = [evaluation.name for evaluation in sets]
        print(results_table(results | {"trials": {name: results["trials"][name] for name in names}}))
        print(f"results: {output / 'results.json'}")


def _earlier(output: Path, cfg: DictConfig, parameters: int) -> dict[str, Any]:
    """The results that `output` has already, else a beginning of them."""
    file = output / "results.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    return {
        "model": cfg.names.model,
        "data": cfg.names.data,
        "seed": cfg.seed,
        "parameters": parameters,
        "trials": {},
    }


def _listed(trials: Path, models: Path | None, cfg: DictConfig, folder: Path) -> EvaluationSet:
    """The list's trials over the run's own utterances, or over files where the run's data is not at hand."""
    label, split = cfg.data.label, cfg.data.split
    heard: set[str] = set()
    if label == SPEAKER and (folder / checkpoint.LABELS).is_file():
        heard |= set(checkpoint.load_labels(folder))
    columns = ("id", "path", "duration", SPEAKER)
    ids = pl.Series("id", dtype=pl.String)
    try:
        table, _ = corpus.table(cfg)
        train = split_table(table, label, split.by, split.fractions, split.seed)["train"]
        ids = train["id"]
        if SPEAKER in train.columns:  # a run for another label has heard voices too
            heard |= set(train[SPEAKER].drop_nulls()) - {""}
    except UserError as error:
        log.info("the run's own data is not at hand (%s); names in %s must be files", error, trials)
        table = pl.DataFrame(schema={name: pl.Float64 if name == "duration" else pl.String for name in columns})
    if SPEAKER not in table.columns:
        table = table.with_columns(pl.lit("").alias(SPEAKER))
    table = table.with_columns(pl.col(SPEAKER).fill_null(""))  # a run for another label need not know who speaks
    models_file = str(models) if models else None
    return from_list(trials.stem, str(trials), models_file, table, SPEAKER, cfg.data.root, Trained(sorted(heard), ids))
