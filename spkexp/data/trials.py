"""Verification trials: pairs of an enrolment and a test utterance, and how they are made from a split's own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.data.utterances import Strings


@dataclass(frozen=True)
class Models:
    """M speaker models, each enrolled with one or more utterances."""

    name: Strings  # (M,)
    utterance: NDArray[np.int64]  # indices of utterances, those of a model side by side
    start: NDArray[np.int64]  # (M,) where in `utterance` each model's begin; none is without


@dataclass(frozen=True)
class Trials:
    """N trials over a list of utterances."""

    enroll: NDArray[np.int64]  # (N,) index of the utterance, or of the model where there are `models`
    test: NDArray[np.int64]  # (N,) index of the utterance
    target: NDArray[np.bool_] | None  # (N,) same speaker; None where the list is blind
    models: Models | None = None

    def __len__(self) -> int:
        return len(self.test)

    def enrolled(self) -> NDArray[np.int64]:
        """(N,) an utterance of the enrolment side of each trial, a model's first: whose label is the model's."""
        return self.enroll if self.models is None else self.models.utterance[self.models.start[self.enroll]]


def make_trials(label: NDArray[np.int64], max_pairs: int, seed: int) -> Trials | None:
    """All pairs of different utterances, or, where they are more than `max_pairs`, a seeded sample, half of it targets.

    label: (N,) speaker index. None where no pair is a target or none is a non-target.
    """
    order = np.argsort(label, kind="stable")
    sizes = np.bincount(label)
    sizes = sizes[sizes > 0].astype(np.int64)
    num_pairs = len(label) * (len(label) - 1) // 2
    num_targets = int((sizes * (sizes - 1) // 2).sum())
    if num_targets == 0 or num_targets == num_pairs:
        return None
    if num_pairs <= max_pairs:
        first, second = np.triu_indices(len(label), k=1)
        return Trials(first.astype(np.int64), second.astype(np.int64), label[first] == label[second])
    rng = generator(seed)
    wanted = min(max_pairs // 2, num_targets)
    targets = _nth_targets(np.sort(rng.choice(num_targets, wanted, replace=False)), order, sizes)
    nontargets = _sample_nontargets(rng, label, min(max_pairs - wanted, num_pairs - num_targets))
    pairs = np.concatenate([targets, nontargets])
    return Trials(pairs[:, 0], pairs[:, 1], np.arange(len(pairs)) < wanted)


def _nth_targets(nth: NDArray[np.int64], order: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 2) utterances of the nth target pairs, counted speaker by speaker without listing them all."""
    pairs_before = np.concatenate([[0], np.cumsum(sizes * (sizes - 1) // 2)])
    speaker = np.searchsorted(pairs_before, nth, side="right") - 1
    k = nth - pairs_before[speaker]
    # Pair k of a speaker is (i, j), i < j, at k = j (j - 1) / 2 + i.
    j = ((1 + np.sqrt(1 + 8 * k.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > k
    j += (j + 1) * j // 2 <= k
    i = k - j * (j - 1) // 2
    offset = np.concatenate([[0], np.cumsum(sizes)])[speaker]
    return np.sort(np.stack([order[offset + i], order[offset + j]], axis=1), axis=1)


def _sample_nontargets(rng: np.random.Generator, label: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count, 2) different pairs of utterances of different speakers."""
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        pairs = rng.integers(len(label), size=(2 * count + 16, 2))
        pairs = np.sort(pairs[label[pairs[:, 0]] != label[pairs[:, 1]]], axis=1)
        found = np.unique(np.concatenate([found, pairs[:, 0] * len(label) + pairs[:, 1]]))
    found = rng.choice(found, count, replace=False)
    return np.stack([found // len(label), found % len(label)], axis=1)
