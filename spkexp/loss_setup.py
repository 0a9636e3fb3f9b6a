"""How a loss goes with the rest of a run: with its sampler and its label, and with the run that it starts from."""

import logging
from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from torch import Tensor

from spkexp.data.classes import SPEAKER
from spkexp.data.sampler import Sampler
from spkexp.errors import ConfigError
from spkexp.losses.head import Loss

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


def take_classes(loss: Loss, tensors: Mapping[str, Tensor], own: list[str], theirs: list[str]) -> None:
    """Take from another run's loss what fits, and of its classes those of the same name.

    own, theirs: names of the classes, in the order of their rows.
    """
    index = {name: row for row, name in enumerate(theirs)}
    known = [row for row, name in enumerate(own) if name in index]
    rows = torch.tensor(known, dtype=torch.int64), torch.tensor([index[own[row]] for row in known], dtype=torch.int64)
    left = loss.take(tensors, *rows)
    if left:
        log.info("loss: of %s nothing could be taken over; they start anew", ", ".join(left))
    else:
        log.info("loss: %d of %d classes are known to the earlier run and go on as they were", len(known), len(own))
