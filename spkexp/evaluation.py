"""Scoring a trained run on trials, after the fact."""

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, distributed, run_folder
from spkexp.data.load import EvaluationSet, from_list
from spkexp.errors import UserError
from spkexp.report.plots import det_plot
from spkexp.report.table import results_table
from spkexp.scoring.verification import Policy, score, summarise, write_scores
from spkexp.sections import Scoring

log = logging.getLogger(__name__)


def evaluate(
    source: Path,
    trials: Path | None,
    root: str | None,
    output: Path | None,
    device: torch.device,
    trust: tuple[str, ...],
) -> None:
    """Score `source` (a run or checkpoint folder) and write results; prints the table. Raises UserError."""
    model, cfg, _ = build.trained_model(source, trust)
    model.to(device)
    if root is not None:
        cfg.data.root = root
    # The results of a run are those of its best checkpoint; one that is named itself keeps its own.
    output = output or Path(source).expanduser()
    if trials is not None and trials.stem in ("val", "test"):
        raise UserError(f"{trials}: {trials.stem} is the name of the run's own trials; rename the list")
    settings = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
    policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
    results = _earlier(output, cfg, sum(p.numel() for p in model.parameters()))
    sets = [_listed(trials, cfg)] if trials else list(build.data(cfg).evaluation.values())
    sets = [evaluation for evaluation in sets if evaluation.trials is not None]
    if not sets:
        raise UserError(f"{source}: the run's data has no validation or test trials; give trials=FILE")
    for evaluation in sets:
        scored = score(model, evaluation, build.reading(cfg), settings, policy, build.num_workers(cfg, device))
        if not distributed.is_main():
            continue
        before = results["trials"].get(evaluation.name, {})
        results["trials"][evaluation.name] = before | summarise(scored, settings, interval=True)
        if settings.save_scores:
            write_scores(output / "scores" / f"{evaluation.name}.txt", scored)
        det_plot(output / "plots" / f"det-{evaluation.name}.png", {evaluation.name: scored})
    if distributed.is_main():
        run_folder.write_json(output / "results.json", results)
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


def _listed(trials: Path, cfg: DictConfig) -> EvaluationSet:
    """The list's trials over the run's own utterances, or over files where the run's data is not at hand."""
    label = cfg.data.label
    try:
        table, _ = build.table(cfg)
    except UserError as error:
        log.info("the run's own data is not at hand (%s); names in %s must be files", error, trials)
        table = pl.DataFrame(schema={"id": pl.String, "path": pl.String, "duration": pl.Float64, label: pl.String})
    return from_list(trials.stem, str(trials), table, label, cfg.data.root)
