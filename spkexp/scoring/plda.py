"""Probabilistic linear discriminant analysis: how likely it is that two embeddings are of one speaker.

An embedding of speaker s is x = μ + V h + ε with the speaker's h ~ N(0, I) and, anew in each utterance, ε ~ N(0, W).
With V of few columns this is simplified PLDA (Kenny 2010; Garcia-Romero and Espy-Wilson 2011): speakers differ in a
subspace. With as many columns as dimensions it is the two-covariance model (Brümmer and de Villiers 2010), VVᵀ being
the covariance between speakers. Sizov, Lee and Kinnunen 2014 tell the variants apart.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.scoring.projection import Projected, blocks
from spkexp.scoring.transforms import Array, Moments, Preparation, check_within, moments, prepared

log = logging.getLogger(__name__)

Kind = Literal["two_covariance", "simplified"]

# The least variance between speakers that training starts from, as a share of that within: EM never leaves 0.
FLOOR = 0.01


@dataclass(frozen=True)
class Model:
    """x = μ + V h + ε, with h ~ N(0, I) and ε ~ N(0, W)."""

    mean: Array  # (d,) μ
    loading: Array  # (d, r) V
    residual: Array  # (d, d) W

    def diagonal(self) -> tuple["Model", Array, Array]:
        """The same model with VᵀW⁻¹V diagonal, W⁻¹V (d, r) and that diagonal (r,).

        h may be rotated at will. Where VᵀW⁻¹V = Λ is diagonal, so is the posterior precision I + nΛ of a speaker's h
        given n embeddings, whatever n, and no matrix is inverted for any speaker.
        """
        from scipy.linalg import cho_factor, cho_solve

        weighted = cho_solve(cho_factor(self.residual), self.loading)
        values, rotation = np.linalg.eigh(self.loading.T @ weighted)
        model = Model(self.mean, self.loading @ rotation, self.residual)
        return model, weighted @ rotation, np.maximum(values, 0)


@dataclass(frozen=True)
class Plda:
    """PLDA behind centring, LDA, whitening and length normalisation. Scores are natural-log likelihood ratios."""

    preparation: Preparation
    model: Model
    log_likelihood: tuple[float, ...] = field(repr=False)  # of training: before each iteration and at last

    gives_llr = True

    @staticmethod
    def fit(
        embeddings: NDArray[np.float32],
        speaker: NDArray[np.int64],
        kind: Kind,
        rank: int | None,
        iterations: int,
        lda_size: int | None,
        whiten: bool,
        length_norm: bool,
    ) -> "Plda":
        """Maximum-likelihood estimate by expectation maximisation.

        embeddings: (N, size), all finite; speaker: (N,) any integers that tell the speakers apart. rank: dimensions of
        the speaker subspace for kind "simplified", None for as many as fit, as in "two_covariance". Raises UserError
        where utterances, speakers or dimensions are too few.
        """
        names, codes = np.unique(speaker, return_inverse=True)
        _check(embeddings, codes, len(names))
        preparation = prepared(
            moments(embeddings, codes, lambda rows: rows.astype(np.float64)), lda_size, whiten, length_norm
        )
        found = moments(embeddings, codes, preparation.apply)
        model, likelihood = estimate(found, _rank(kind, rank, found), iterations)
        log.info(
            "PLDA: %d utterances of %d speakers, log likelihood %.3f an utterance after %d iterations",
            *(len(codes), len(names), likelihood[-1] / len(codes), iterations),
        )
        return Plda(preparation, model, tuple(likelihood))

    def project(self, embeddings: NDArray[np.float32]) -> Projected:
        """Of two embeddings x, x' the score is log p(x, x' | one speaker) - log p(x) - log p(x').

        In the coordinates y = VᵀW⁻¹(x - μ), with VᵀW⁻¹V = Λ, the two covariances are Λ² between and Λ within, all
        dimensions are independent, and for v = y / √(1 + 2λ) each adds to the ratio
        v v' - λ / (2 (1 + λ)) (v² + v'²) + log(1 + λ) - log(1 + 2λ) / 2.
        """
        center, matrix, curvature, constant = self._comparison
        vector = np.empty((len(embeddings), matrix.shape[1]), dtype=np.float32)
        offset = np.empty(len(embeddings), dtype=np.float32)
        for block in blocks(len(embeddings)):
            exact = (self.preparation.apply(embeddings[block]) - center) @ matrix
            vector[block] = exact
            offset[block] = constant - exact**2 @ curvature
        return Projected(vector, offset)

    @cached_property
    def _comparison(self) -> tuple[Array, Array, Array, float]:
        """μ (d,), the matrix (d, r) that makes v of x - μ, λ / (2 (1 + λ)) (r,), and half the constant."""
        model, weighted, values = self.model.diagonal()
        constant = (np.log1p(values) - np.log1p(2 * values) / 2).sum() / 2
        return model.mean, weighted / np.sqrt(1 + 2 * values), values / (2 * (1 + values)), float(constant)


def estimate(found: Moments, rank: int, iterations: int) -> tuple[Model, list[float]]:
    """The model that EM comes to, and the log likelihood before each iteration and at last: it never falls."""
    model = _start(found, rank)
    likelihood = []
    for _ in range(iterations):
        value, model = em_step(found, model)
        likelihood.append(value)
    return model, [*likelihood, em_step(found, model)[0]]


def _check(embeddings: NDArray[np.float32], codes: NDArray[np.int64], speakers: int) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(codes):
        raise ValueError(f"PLDA trains on (N, size) embeddings of N speakers, got {embeddings.shape}, {codes.shape}")
    if speakers < 2:
        raise UserError(f"PLDA learns how speakers differ and needs at least 2 to train on, got {speakers}")
    if len(codes) == speakers:
        raise UserError(
            f"PLDA learns how the utterances of a speaker vary, but each of the {speakers} speakers that it is to be "
            "trained on has only one; is data.label the column of the speakers?"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise UserError(
            f"PLDA: {(~finite).sum()} of {len(codes)} embeddings to train on are not finite (the first: row "
            f"{int(np.argmin(finite))}); leave utterances that cannot be read out, or see whether training diverged"
        )


def _rank(kind: Kind, rank: int | None, found: Moments) -> int:
    """Columns of V. More than speakers less one would stay 0: the means of S speakers span no more dimensions."""
    speakers, d = found.total.shape
    most = min(d, speakers - 1)
    if kind == "two_covariance":
        if rank is not None:
            raise UserError(f"scoring.plda.rank={rank} is for kind=simplified; kind=two_covariance takes rank=null")
        return most
    if kind != "simplified":
        raise ValueError(f"PLDA is 'two_covariance' or 'simplified', got {kind!r}")
    if rank is not None and not 1 <= rank <= most:
        raise UserError(f"scoring.plda.rank={rank}: {d} dimensions and {speakers} speakers allow for 1 to {most}")
    return most if rank is None else rank


def _start(found: Moments, rank: int) -> Model:
    """From the variances between and within speakers, as if all had equally many utterances (analysis of variance)."""
    from scipy.linalg import eigh

    check_within(found)
    speakers, d = found.total.shape
    utterances = found.count.sum()
    residual = found.within * (utterances / (utterances - speakers))
    # E Eᵀ = W⁻¹ and E diagonalises the variance of the means, which is that between speakers plus W / utterances.
    ratio, directions = eigh(found.between * (utterances / (speakers - 1)), residual, subset_by_index=[d - rank, d - 1])
    ratio = np.maximum((ratio - 1) * speakers / utterances, FLOOR)
    return Model(found.mean, residual @ directions * np.sqrt(ratio), residual)


def em_step(found: Moments, model: Model) -> tuple[float, Model]:
    """The log likelihood of `model`, and the model after one step of EM with minimum divergence.

    Expectation: given its n embeddings, a speaker's h is N(m, (I + nΛ)⁻¹) with m = (I + nΛ)⁻¹ VᵀW⁻¹ Σ(x - μ).
    Maximisation: [V μ] by regression of the embeddings on [h 1], W what that leaves. Minimum divergence
    (Brümmer 2010, "EM for probabilistic LDA"; the parameter expansion of Liu, Rubin and Wu 1998): V and μ take up the
    mean and covariance of all h, which makes these N(0, I) again and convergence fast.
    """
    model, weighted, values = model.diagonal()
    count, utterances, rank = found.count[:, None], found.count.sum(), len(values)
    variance = 1 / (1 + count * values)  # (S, r)
    evidence = (found.total - count * model.mean) @ weighted
    mean = variance * evidence
    likelihood = _log_likelihood(found, model) + (np.log(variance).sum() + (mean * evidence).sum()) / 2

    regressor = np.column_stack([mean, np.ones(len(mean))])
    square = (count * regressor).T @ regressor
    square[np.arange(rank), np.arange(rank)] += (count * variance).sum(axis=0)
    product = found.total.T @ regressor
    coefficients = np.linalg.solve(square, product.T).T
    residual = (found.scatter - coefficients @ product.T) / utterances
    loading, center = coefficients[:, :-1], coefficients[:, -1]

    spread = np.cov(mean, rowvar=False, bias=True).reshape(rank, rank) + np.diag(variance.mean(axis=0))
    return likelihood, Model(
        center + loading @ mean.mean(axis=0), loading @ np.linalg.cholesky(spread), (residual + residual.T) / 2
    )


def _log_likelihood(found: Moments, model: Model) -> float:
    """Σ log N(x; μ, W): that of the embeddings if there were no speakers, i.e. V = 0."""
    utterances, d = found.count.sum(), len(model.mean)
    cross = np.outer(found.total.sum(axis=0), model.mean)
    about_mean = found.scatter - cross - cross.T + utterances * np.outer(model.mean, model.mean)
    _, determinant = np.linalg.slogdet(model.residual)
    fit = np.trace(np.linalg.solve(model.residual, about_mean))
    return float(-(utterances * (d * np.log(2 * np.pi) + determinant) + fit) / 2)
