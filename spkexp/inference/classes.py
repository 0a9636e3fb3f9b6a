"""Which class of its training a model takes a recording for, and how probable that is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spkexp.losses.head import Head


class Class(NamedTuple):
    """A class, and how probable it is."""

    label: str
    probability: float


class Classifier:
    """The head of training, without the classes that are speed copies of others.

    A copy, `id10012@0.9`, is a voice that training made up: nobody who speaks is one. The probabilities are given that
    it is none of them.
    """

    def __init__(self, head: Head, labels: list[str], speeds: Sequence[float], device: torch.device) -> None:
        """labels: in the order of the head's outputs; speeds: of the copies; device: where the head is."""
        known = set(labels)
        suffixes = tuple(f"@{speed:g}" for speed in speeds if speed != 1.0)
        own = [i for i, label in enumerate(labels) if not any(_is_copy(label, suffix, known) for suffix in suffixes)]
        self.head = head
        self.labels = [labels[index] for index in own]
        self._own = torch.tensor(own, device=device)

    def best(self, embeddings: NDArray[np.float32], top: int) -> list[list[Class]]:
        """For each of embeddings (N, D) the `top` most probable classes, the best first; all where there are fewer."""
        with torch.inference_mode(), torch.autocast(self._own.device.type, enabled=False):
            scores = self.head.scores(torch.from_numpy(embeddings).to(self._own.device))
            log_probabilities = self.head.log_probabilities(scores[:, self._own])
            found = log_probabilities.topk(min(top, len(self.labels)), dim=1)
            rows = zip(found.values.exp().tolist(), found.indices.tolist(), strict=True)
        return [
            [Class(self.labels[index], probability) for probability, index in zip(*row, strict=True)] for row in rows
        ]


def _is_copy(label: str, suffix: str, known: set[str]) -> bool:
    return label.endswith(suffix) and label.removesuffix(suffix) in known
