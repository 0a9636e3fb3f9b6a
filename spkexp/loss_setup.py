"""How a loss goes with the rest of a run: with its sampler and its label, with the run that it starts from, and with
the teacher that is learnt from beside it."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from spkexp import build, checkpoint, distributed
from spkexp.data.classes import SPEAKER
from spkexp.data.sampler import Sampler
from spkexp.errors import ConfigError, UserError
from spkexp.losses.distillation import Distillation
from spkexp.losses.head import Loss
from spkexp.models.speaker import SpeakerModel

log = logging.getLogger(__name__)


def check_loss(cfg: DictConfig, loss: Loss, sampler: Sampler) -> None:
    """Raise ConfigError with what does not go together."""
    mistakes = []
    if loss.needs_pairs and not sampler.groups_labels:
        mistakes.append(
            f"loss: {type(loss).__name__} compares utterances of the same speaker, and {type(sampler).__name__} need "
            "not give any; add data/sampler=speakers"
        )
    if cfg.data.label != SPEAKER and loss.classifier is None:
        mistakes.append(
            f"loss: {type(loss).__name__} has no classes, which data.label={cfg.data.label} is to be told by; choose "
            "loss=softmax, say"
        )
    if mistakes:
        raise ConfigError(mistakes)


def take_classes(loss: Loss, tensors: Mapping[str, Tensor], own: list[str], theirs: list[str], announce: bool) -> None:
    """Take from another run's loss what fits, and of its classes those of the same name.

    own, theirs: names of the classes, in the order of their rows. announce: say what was taken.
    """
    index = {name: row for row, name in enumerate(theirs)}
    known = [row for row, name in enumerate(own) if name in index]
    rows = torch.tensor(known, dtype=torch.int64), torch.tensor([index[own[row]] for row in known], dtype=torch.int64)
    left = loss.take(tensors, *rows)
    if not announce or not distributed.is_main():
        return
    if left:
        log.info("loss: of %s nothing could be taken over; they start anew", ", ".join(left))
    else:
        log.info("loss: %d of %d classes are known to the earlier run and go on as they were", len(known), len(own))


def teacher_of(cfg: DictConfig) -> Path | None:
    """The checkpoint folder of distill.teacher; None without one. Raises UserError."""
    source = cfg.distill.teacher
    if source is None:
        return None
    try:
        return distributed.main_first(lambda: checkpoint.find(source))
    except UserError as error:
        raise UserError(f"distill.teacher: {error}") from error


def distillation(
    cfg: DictConfig, folder: Path, model: SpeakerModel, loss: Loss, labels: list[str], device: torch.device
) -> Distillation:
    """What `model` and `loss`, whose classes are `labels`, learn from the teacher in the checkpoint `folder`.

    Raises UserError where the two do not go together.
    """
    settings, trust = cfg.distill, tuple(cfg.trust)
    teacher, theirs, _ = build.trained_model(folder, trust)
    if teacher.sample_rate != model.sample_rate:
        raise UserError(
            f"distill.teacher: {folder} hears {teacher.sample_rate} Hz, and model.features.sample_rate is "
            f"{model.sample_rate}; choose a teacher of the same rate"
        )
    head, columns = None, None
    if settings.target == "scores":
        if loss.classifier is None:
            raise ConfigError(
                [f"distill.target=scores: {type(loss).__name__} has no classes; use distill.target=embedding"]
            )
        columns = _columns(folder, labels).to(device)
        head = build.trained_head(theirs, folder, teacher.embedding_size, trust)
        if head is None:
            raise UserError(f"distill.target=scores: {folder} has no classifier; use distill.target=embedding")
        head.to(device)
    if distributed.is_main():
        size = sum(parameter.numel() for parameter in teacher.parameters())
        log.info("teacher: %s of %s, %.2f M parameters", checkpoint.named(theirs, "model"), folder, size / 1e6)
    return Distillation(
        teacher.to(device),
        head,
        columns,
        settings.target,
        model.embedding_size,
        settings.weight,
        settings.temperature,
        settings.clean,
    ).to(device)


def _columns(folder: Path, labels: list[str]) -> Tensor:
    """For each of `labels` its place among the classes of the checkpoint `folder`. Raises UserError."""
    theirs = checkpoint.load_labels(folder)
    place = {name: column for column, name in enumerate(theirs)}
    unknown = [name for name in labels if name not in place]
    if unknown or len(theirs) != len(labels):
        example = f", {unknown[0]} not" if unknown else ""
        raise UserError(
            f"distill.target=scores: needs a teacher of the same classes; of the {len(labels)} here {folder} knows "
            f"{len(labels) - len(unknown)}{example}, of {len(theirs)} that it has; use distill.target=embedding"
        )
    return torch.tensor([place[name] for name in labels])
