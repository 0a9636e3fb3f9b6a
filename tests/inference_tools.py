"""A tiny model that looks trained, and what its results say, without any training."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import DictConfig

from spkexp import build, checkpoint
from spkexp.compose import compose_config
from spkexp.data.utterances import Utterances
from tests.model_tools import randomise_norms

SPEAKERS = ["s0", "s1", "s2", "s3"]
_SMALL = ["channels=16", "res2net_scale=4", "se_channels=8", "aggregation_channels=48"]
TINY = ["model=ecapa_small", "model.embedding_size=24", *(f"model.encoder.{setting}" for setting in _SMALL)]


def tiny_config(*overrides: str) -> DictConfig:
    return compose_config([*TINY, *overrides])


def tiny_model(folder: Path, *overrides: str, seed: int = 0) -> Path:
    """`folder` as a portable model with the classes SPEAKERS and their speed copies; weights and norms are random."""
    cfg = tiny_config(*overrides)
    torch.manual_seed(seed)
    model = build.model(cfg.model).eval()
    randomise_norms(model)
    columns = dict.fromkeys(("id", "path", "speaker"), SPEAKERS) | {"duration": [1.0] * len(SPEAKERS)}
    train = Utterances.of(pl.DataFrame(columns), "speaker").with_speed_copies(cfg.augment.speeds, own_labels=True)
    loss = build.loss(cfg, train, model.embedding_size, steps_per_epoch=1)
    checkpoint.save_portable(folder, model, loss, cfg, train.label_names)
    return folder


def write_results(folder: Path, threshold: float = 0.25, **entry: Any) -> None:
    """results.json in `folder`, whose validation has this threshold."""
    val = {"num_trials": 1000, "eer_threshold": threshold, "eer": 0.05, "eer_ci95": [0.03, 0.08]} | entry
    (folder / "results.json").write_text(json.dumps({"trials": {"val": val}}), encoding="utf-8")
