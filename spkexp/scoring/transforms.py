"""What embeddings go through before a back end compares them: centring, LDA, whitening, length normalisation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.scoring.projection import blocks, unit

# Of eigenvalues of a covariance matrix, the share of the largest below which one is rounding of what is really 0.
NEGLIGIBLE = 1e-10

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """The sufficient statistics of N vectors of S speakers under Gaussian models of speakers."""

    count: Array  # (S,) vectors of each speaker, at least 1
    total: Array  # (S, d) their sum
    scatter: Array  # (d, d) sum of x xᵀ over all N vectors

    @property
    def mean(self) -> Array:
        """(d,)"""
        return np.asarray(self.total.sum(axis=0) / self.count.sum())

    @property
    def covariance(self) -> Array:
        """(d, d) of all vectors about their mean."""
        return self.scatter / self.count.sum() - np.outer(self.mean, self.mean)

    @property
    def within(self) -> Array:
        """(d, d) covariance of the vectors about the means of their speakers."""
        return (self.scatter - self.total.T @ (self.total / self.count[:, None])) / self.count.sum()

    @property
    def between(self) -> Array:
        """(d, d) covariance of the speakers' means, each weighing as many as it has vectors; the rest of the whole."""
        return self.covariance - self.within


@dataclass(frozen=True)
class Preparation:
    """Centring and a linear map (LDA, whitening), then, if asked for, scaling to length 1.

    Garcia-Romero and Espy-Wilson 2011, "Analysis of i-vector length normalization in speaker recognition systems":
    on the sphere, whitened embeddings are nearly Gaussian, which PLDA takes them to be.
    """

    mean: Array  # (size,)
    matrix: Array  # (size, d)
    length_norm: bool

    def apply(self, embeddings: NDArray[np.float32]) -> Array:
        """(N, size) -> (N, d)"""
        prepared = (embeddings - self.mean) @ self.matrix
        return unit(prepared) if self.length_norm else prepared


def centred(embeddings: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, size) embeddings less the (size,) `mean`, that of a cohort: "sub-mean", which goes before any back end."""
    return np.asarray(embeddings - mean.astype(np.float32))


def moments(
    embeddings: NDArray[np.float32], speaker: NDArray[np.int64], prepare: Callable[[NDArray[np.float32]], Array]
) -> Moments:
    """Of what `prepare` makes of the embeddings, block by block.

    embeddings: (N, size); speaker: (N,) index of who speaks, in 0..S-1 and none of these missing.
    """
    order = np.argsort(speaker, kind="stable")
    count = np.bincount(speaker).astype(np.float64)
    size = prepare(embeddings[:1]).shape[1]
    total, scatter = np.zeros((len(count), size)), np.zeros((size, size))
    for block in blocks(len(order)):
        rows = prepare(embeddings[order[block]])
        present, start = np.unique(speaker[order[block]], return_index=True)
        total[present] += np.add.reduceat(rows, start, axis=0)
        scatter += rows.T @ rows
    return Moments(count, total, scatter)


def prepared(found: Moments, lda_size: int | None, whiten: bool, length_norm: bool) -> Preparation:
    """Centring, LDA to `lda_size` dimensions unless None, and whitening, as the moments of training have it."""
    matrix = np.eye(len(found.mean)) if lda_size is None else lda(found, lda_size)
    if whiten:
        matrix = matrix @ whitening(matrix.T @ found.covariance @ matrix)
    return Preparation(found.mean, matrix, length_norm)


def lda(found: Moments, size: int) -> Array:
    """(d, size) directions with the largest ratio of between- to within-speaker variance, the largest first; the
    within-speaker covariance becomes the identity (Fisher 1936; Fukunaga 1990, ch. 10)."""
    from scipy.linalg import eigh

    speakers, d = found.total.shape
    if size > min(d, speakers - 1):
        raise UserError(
            f"scoring.plda.lda_size={size}: LDA of {d}-dimensional embeddings of {speakers} speakers has at most "
            f"{min(d, speakers - 1)} dimensions, the fewer of embedding size and speakers less one"
        )
    check_within(found)
    _, directions = eigh(found.between, found.within, subset_by_index=[d - size, d - 1])
    return np.asarray(directions[:, ::-1])


def whitening(covariance: Array) -> Array:
    """(d, d) symmetric matrix that makes `covariance` (d, d) the identity."""
    values, directions = np.linalg.eigh(covariance)
    if lacking := int((values <= NEGLIGIBLE * values[-1]).sum()):
        raise UserError(
            f"whitening: the embeddings do not vary in {lacking} of {len(values)} dimensions; "
            "take more utterances than dimensions, or scoring.plda.whiten=false"
        )
    return np.asarray((directions / np.sqrt(values)) @ directions.T)


def check_within(found: Moments) -> None:
    """Raises UserError where the utterances of a speaker do not vary in all directions, so that no Gaussian fits."""
    speakers, d = found.total.shape
    utterances = int(found.count.sum())
    if utterances - speakers < d:
        raise UserError(
            f"LDA and PLDA of {d} dimensions need at least {d} utterances more than speakers, to know how a speaker's "
            f"utterances vary; these are {utterances} utterances of {speakers} speakers: add utterances"
        )
    values = np.linalg.eigvalsh(found.within)
    if lacking := int((values <= NEGLIGIBLE * max(values[-1], np.trace(found.covariance) / d)).sum()):
        raise UserError(
            f"LDA and PLDA: the utterances of a speaker do not vary in {lacking} of {d} dimensions; "
            "are some of the embeddings' values constant, or utterances listed twice?"
        )
