"""From what a user names to a model in use."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, checkpoint, sources
from spkexp.errors import UserError
from spkexp.inference.classes import Classifier
from spkexp.inference.gallery import Gallery
from spkexp.inference.recordings import Reader
from spkexp.inference.threshold import threshold_of
from spkexp.inference.trained import TrainedModel


def load(
    source: str | os.PathLike[str],
    device: str | torch.device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    trust: Sequence[str] = (),
    revision: str | None = None,
    resample: bool = True,
    mix_channels: bool = True,
) -> TrainedModel:
    """As `spkexp.load`, which says what the arguments are."""
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision={precision}: expected fp32 or bf16")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"load: a model is named by a path or user/name, as text, not by {source!r}")
    place = _device(device)
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    named = sources.local(os.fspath(source), revision)
    with torch.random.fork_rng(devices=[]):  # the fresh weights that are replaced at once draw from torch's generator
        module, config, folder = build.trained_model(named, trusted)
        classifier = _classifier(module.embedding_size, config, folder, trusted, place)
    threshold, reason = threshold_of(folder, config)
    return TrainedModel(
        module=module.to(place),
        config=config,
        source=os.fspath(source),
        device=place,
        precision=precision,
        threshold=threshold,
        reason=reason,
        classifier=classifier,
        reader=Reader(module.sample_rate, resample, mix_channels),
        gallery=Gallery(module.embedding_size),
    )


def _device(device: str | torch.device) -> torch.device:
    """With its number: what "cuda" alone means is each thread's own."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    hint = "; did you mean 'cuda'?" if str(device).lower().startswith("gpu") else ""
    mistake = UserError(f"device={device}: expected auto, cpu, cuda or cuda:NUMBER{hint}")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise mistake from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise mistake
    if (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device}: there is no such CUDA device here; use device=cpu")
    return torch.device("cuda", torch.cuda.current_device()) if found.index is None else found


def _classifier(
    embedding_size: int, config: DictConfig, folder: Path, trust: tuple[str, ...], device: torch.device
) -> Classifier | str:
    """Or why there is none."""
    if OmegaConf.select(config, "loss") is None:
        return "it has no head"
    labels = checkpoint.load_labels(folder)
    if not labels:
        return "it has no classes"
    head = build.trained_head(config, folder, embedding_size, trust)
    if head is None:
        return f"its loss, {config.loss._target_.rpartition('.')[2]}, has no classes"
    return Classifier(head.to(device), labels, OmegaConf.select(config, "augment.speeds") or (), device)
