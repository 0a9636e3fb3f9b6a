"""Runs that are folders of hand-made files: a config, results, scores and curves."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import OmegaConf

from spkexp.compose import compose_config
from spkexp.scoring.metrics import eer, error_rates, min_dcf
from spkexp.scoring.trial_scores import TrialScores

SPEAKERS, UTTERANCES = 20, 3


def trial_scores(quality: float, system: int, first: int = 0) -> TrialScores:
    """All pairs of 60 utterances of 20 speakers. quality: by how many deviations targets score higher; `system` draws
    what is its own, and the trials have a part in common. first: number of the first speaker."""
    speaker = np.repeat(np.arange(SPEAKERS), UTTERANCES)
    enroll, test = np.triu_indices(len(speaker), 1)
    target = speaker[enroll] == speaker[test]
    shared, own = np.random.default_rng(first), np.random.default_rng(1000 + system)
    easy = shared.normal(size=SPEAKERS)[speaker[enroll]]
    score = np.where(target, quality + 0.4 * easy, 0.0) + 0.8 * shared.normal(size=len(enroll))
    score += 0.5 * own.normal(size=len(enroll))
    codes = [f"s{first + code:02d}" for code in speaker]
    names = [f"{code} ü/{number}.wav" for number, code in enumerate(codes)]
    table = pl.DataFrame({"name": names, "speaker": codes})
    return TrialScores(table, table, enroll.astype(np.int64), test.astype(np.int64), score.astype(np.float32), target)


def entry_of(scores: TrialScores) -> dict[str, Any]:
    assert scores.target is not None
    rates = error_rates(scores.score, scores.target)
    counts = {"num_trials": len(scores), "num_targets": int(scores.target.sum())}
    return {**counts, "eer": eer(rates), "eer_ci95": None, "min_dcf": {"0.01": min_dcf(rates, 0.01)}}


def make_run(
    folder: Path,
    overrides: Sequence[str] = (),
    scores: TrialScores | None = None,
    epochs: int = 3,
    **results: Any,
) -> Path:
    """results: of results.json, beside what the scores give for the list test."""
    folder.mkdir(parents=True)
    OmegaConf.save(compose_config(list(overrides)), folder / "config.yaml", resolve=True)
    found = {"parameters": 1_500_000, "train_seconds": 90.0, "utterances_per_second": 40.4, "trials": {}, **results}
    if scores is not None:
        found["trials"] = {"test": entry_of(scores), **found["trials"]}
        scores.write(folder / "scores" / "test.txt")
    (folder / "results.json").write_text(json.dumps(found))
    lines = []
    for step in range(1, 4 * epochs + 1):
        lines.append({"step": step, "epoch": step / 4, "train": {"loss": 8 * math.exp(-step / 9), "accuracy": 0.5}})
        if step % 4 == 0:
            lines.append({"step": step, "epoch": step / 4, "val": {"eer": 1 / (3 + step), "loss": 9 - step / 4}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "epo')
    return folder
