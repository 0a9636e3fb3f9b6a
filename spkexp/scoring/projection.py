"""Scores as inner products: a back end projects each embedding once, and a trial is then one inner product.

Cosine and PLDA alike are score(a, b) = a.vector · b.vector + a.offset + b.offset, so that lists, score matrices of a
cohort and means over the utterances of a model are the same few matrix operations. All of them go in blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from spkexp.data.trials import Models

# Rows at once: 1 MB of 256 numbers in float32, which stay in a core's cache from one step to the next.
BLOCK = 1024

Enrolment = Literal["mean_embedding", "mean_score"]


@dataclass(frozen=True)
class Projected:
    """N embeddings as a back end compares them: score(a, b) = a.vector · b.vector + a.offset + b.offset."""

    vector: NDArray[np.float32]  # (N, D)
    offset: NDArray[np.float32]  # (N,)

    def __len__(self) -> int:
        return len(self.vector)


class Backend(Protocol):
    """What compares embeddings. Symmetric: it is no matter which side is enrolled."""

    gives_llr: bool  # whether the scores are natural-log likelihood ratios

    def project(self, embeddings: NDArray[np.float32]) -> Projected:
        """embeddings: (N, size), unchanged; rows of NaN stay NaN."""
        ...


class Cosine:
    """The cosine of the angle between two embeddings, in [-1, 1]; 0 with an embedding of length 0."""

    gives_llr = False

    def project(self, embeddings: NDArray[np.float32]) -> Projected:
        vector = np.empty(embeddings.shape, dtype=np.float32)
        for block in blocks(len(embeddings)):
            vector[block] = unit(embeddings[block])
        return Projected(vector, np.zeros(len(vector), dtype=np.float32))


def blocks(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of at most `size` that cover 0 to `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def lengths(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N,) Euclidean length of each of the (N, D) rows."""
    exact = np.asarray(rows, dtype=np.float64)
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", exact, exact)))


def unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N, D) rows scaled to length 1; those of length 0 stay 0."""
    length = lengths(rows)
    return np.asarray(rows / np.where(length == 0, 1, length)[:, None])


def pair_scores(
    enrolled: Projected, tested: Projected, enroll: NDArray[np.int64], test: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(T,) score of each trial. enroll: (T,) row of `enrolled`; test: (T,) row of `tested`."""
    scores = np.empty(len(enroll), dtype=np.float32)
    for block in blocks(len(enroll)):
        first, second = enroll[block], test[block]
        np.einsum("td,td->t", enrolled.vector[first], tested.vector[second], out=scores[block])
        scores[block] += enrolled.offset[first] + tested.offset[second]
    return scores


def enrol(
    embeddings: NDArray[np.float32], models: Models | None, backend: Backend, how: Enrolment = "mean_embedding"
) -> Projected:
    """The enrolled side of the trials: the M `models`, or each utterance by itself where there are none.

    mean_embedding: a model is the mean of its utterances' embeddings, see `mean_embeddings`. mean_score: its score is
    the mean of its utterances' scores, which is the score of the mean of their projections, for scores are linear in
    either side. Utterances of NaN, which could not be read, are left out; a model of which none is left is NaN.

    embeddings: (N, size).
    """
    if models is None:
        return backend.project(embeddings)
    if how == "mean_embedding":
        return backend.project(mean_embeddings(embeddings, models.utterance, models.start))
    if how != "mean_score":
        raise ValueError(f"enrolment is 'mean_embedding' or 'mean_score', got {how!r}")
    sides = backend.project(embeddings)
    vector = np.empty((len(models.start), sides.vector.shape[1]), dtype=np.float32)
    offset = np.empty(len(vector), dtype=np.float32)
    for groups, rows, start in _groups(models.utterance, models.start):
        both = np.column_stack([sides.vector[rows], sides.offset[rows]]).astype(np.float64)
        mean = _means(both, start)
        vector[groups], offset[groups] = mean[:, :-1], mean[:, -1]
    return Projected(vector, offset)


def mean_embeddings(
    embeddings: NDArray[np.float32], members: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(G, size) for each group of rows the mean of their directions, times the mean of their lengths.

    Loud utterances so weigh no more than others, as is usual for the cosine, and yet the mean has the scale of the
    embeddings, on which a PLDA depends: a group of one is that embedding itself. Rows of NaN are left out; a group of
    which none is left is NaN.

    embeddings: (N, size); members: rows of `embeddings`, those of a group side by side; start: (G,) where in `members`
    each group's begin.
    """
    means = np.empty((len(start), embeddings.shape[1]), dtype=np.float32)
    for groups, rows, begin in _groups(members, start):
        found = embeddings[rows]
        mean = _means(np.column_stack([unit(found), lengths(found)]), begin)
        means[groups] = mean[:, :-1] * mean[:, -1:]
    return means


def _groups(
    members: NDArray[np.int64], start: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """Groups in turn, as many at once as have BLOCK members together: their slice, members, and starts among these."""
    ends = np.append(start[1:], len(members))
    first = 0
    while first < len(start):
        last = max(first + 1, int(np.searchsorted(ends, start[first] + BLOCK, side="right")))
        yield slice(first, last), members[start[first] : ends[last - 1]], start[first:last] - start[first]
        first = last


def _means(rows: NDArray[np.float64], start: NDArray[np.int64]) -> NDArray[np.float64]:
    """(G, D) mean of each group of rows without those that are not finite; NaN where none is left."""
    readable = np.asarray(np.isfinite(rows).all(axis=1))
    total = np.add.reduceat(np.where(readable[:, None], rows, 0), start, axis=0)
    count = np.add.reduceat(readable.astype(np.float64), start)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count[:, None])
