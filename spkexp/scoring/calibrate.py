"""Scores to log-likelihood ratios: calibration and fusion by prior-weighted logistic regression."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.scoring.quality import features, require_disjoint
from spkexp.scoring.trial_scores import TrialScores

log = logging.getLogger(__name__)
# Times the lesser prior, of whose order the cost is, and half the squared weights of standardised features: it moves a
# weight by some millionths at most, shares the weight between features that are the same, and keeps it finite where one
# tells all trials apart.
RIDGE = 1e-8
MAX_STEPS = 200
# Said of one system alone, whose scores then need no name of their own.
SCORE = "score"


@dataclass(frozen=True)
class Calibration:
    """llr = features · weights + offset, the natural logarithm of a likelihood ratio."""

    names: tuple[str, ...]  # (F,) of the features
    weights: NDArray[np.float64]  # (F,) for each unit of a feature
    offset: float
    deviation: NDArray[np.float64]  # (F,) of the features over the trials that it was learnt on
    p_target: float  # the prior that it was learnt for

    @staticmethod
    def fit(
        features: NDArray[np.float64], target: NDArray[np.bool_], names: Sequence[str], p_target: float = 0.5
    ) -> "Calibration":
        """Prior-weighted logistic regression (Brümmer and Doddington 2013, "Likelihood-ratio calibration using
        prior-weighted proper scoring rules"; for fusion Brümmer et al. 2007, "Fusion of heterogeneous speaker
        recognition systems in the STBU submission"). It minimises

            p / N_t Σ_targets log(1 + exp(-l - logit p)) + (1 - p) / N_n Σ_non-targets log(1 + exp(l + logit p))

        over l = features · weights + offset. The prior p = .5 makes that Cllr, up to its unit; a lesser one cares more
        for the scores where false alarms are rare. The cost is convex, so Newton's method finds its one minimum.

        features: (T, F) finite; target: (T,), both kinds present; names: F. A feature that never changes gets weight 0,
        with a warning. Where the features tell the trials apart without an error, the minimum lies at infinity; then a
        warning says so, and of the N trials of a kind a share of 1 / (N + 2) counts as if it lay among the others, for
        they cannot vouch for more (after Platt 2000, "Probabilities for SV machines"): no ratio is then
        meant to exceed about N + 1. Raises ValueError for anything else.
        """
        _check(features, target, names, p_target)
        mean = features.mean(axis=0)
        constant = np.ptp(features, axis=0) == 0
        deviation = np.where(constant, 0.0, features.std(axis=0))
        for name in np.array(names)[constant]:
            log.warning("calibration: %s is the same for all trials; it gets no weight", name)
        columns = np.ones((len(features), len(names) + 1))
        columns[:, :-1] = (features - mean) / np.where(constant, 1.0, deviation)
        found = _minimum(columns, target, p_target, doubt=False)
        ratios = columns @ found
        if ratios[target].min() >= ratios[~target].max():
            log.warning(
                "calibration: the %d targets and %d non-targets are told apart without an error, so they say little of "
                "how large log-likelihood ratios should be; calibrate on more, or harder, trials",
                target.sum(),
                (~target).sum(),
            )
            found = _minimum(columns, target, p_target, doubt=True)
        weights = np.where(constant, 0.0, found[:-1] / np.where(constant, 1.0, deviation))
        return Calibration(tuple(names), weights, float(found[-1] - weights @ mean), deviation, p_target)

    def apply(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(T,) log-likelihood ratios of (T, F) features."""
        return np.asarray(features @ self.weights + self.offset)

    def description(self) -> dict[str, Any]:
        """For JSON. `deviation` times `weight` is how much a feature moves the ratio, and can be compared."""
        of_feature = zip(self.names, self.weights.tolist(), self.deviation.tolist(), strict=True)
        weights = {name: {"weight": weight, "deviation": deviation} for name, weight, deviation in of_feature}
        return {"p_target": self.p_target, "offset": self.offset, "features": weights}


def _check(features: NDArray[np.float64], target: NDArray[np.bool_], names: Sequence[str], p_target: float) -> None:
    if features.shape != (len(target), len(names)) or not len(names):
        raise ValueError(f"expected features of shape {(len(target), len(names))}, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("a feature is not finite")
    if target.all() or not target.any():
        raise ValueError("calibration needs target and non-target trials")
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must be between 0 and 1, got {p_target}")


def _minimum(
    columns: NDArray[np.float64], target: NDArray[np.bool_], p_target: float, doubt: bool
) -> NDArray[np.float64]:
    """The coefficients of `columns`, whose last is that of the offset.

    doubt: whether a share of the trials counts as if it lay among the others, as `Calibration.fit` says.
    """
    sign = np.where(target, 1.0, -1.0)
    count = np.where(target, target.sum(), (~target).sum())
    prior = np.where(target, p_target, 1 - p_target)
    stray = 1 / (count + 2) if doubt else np.zeros(len(count))  # of the trials of this kind
    stray_of_other = 1 / (len(count) - count + 2) if doubt else stray
    own, other = prior * (1 - stray) / count, (1 - prior) * stray_of_other / count  # a trial's weight as either kind
    log_odds = np.log(p_target) - np.log1p(-p_target)
    ridge = np.full(columns.shape[1], RIDGE * min(p_target, 1 - p_target))
    ridge[-1] = 0.0

    def cost(at: NDArray[np.float64]) -> float:
        margin = sign * (columns @ at + log_odds)
        return float(own @ np.logaddexp(0.0, -margin) + other @ np.logaddexp(0.0, margin) + (ridge * at) @ at / 2)

    at = np.zeros(columns.shape[1])
    for _ in range(MAX_STEPS):
        wrong = np.exp(-np.logaddexp(0.0, sign * (columns @ at + log_odds)))  # posterior of the other kind
        gradient = ridge * at - columns.T @ (sign * (own * wrong - other * (1 - wrong)))
        hessian = (columns.T * ((own + other) * wrong * (1 - wrong))) @ columns + np.diag(ridge)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        gain, before = float(gradient @ step), cost(at)
        if gain <= 1e-12 * before:  # convergence is quadratic: this step leaves nothing that could be measured
            return at - step
        length = 1.0
        while cost(at - length * step) > before - 1e-4 * length * gain:
            length /= 2
        at = at - length * step
    raise ArithmeticError(f"the calibration did not converge in {MAX_STEPS} steps")


def calibrate(
    calibration: Sequence[TrialScores],
    evaluated: Sequence[TrialScores],
    names: Sequence[str] = (SCORE,),
    quality: Sequence[str] = (),
    p_target: float = 0.5,
    on: str = "calibration",
    trials: str = "evaluated",
) -> tuple[TrialScores, Calibration]:
    """Learn from the trials `calibration` what the scores of the trials `evaluated` mean; several systems are fused.

    calibration, evaluated: of each of the systems called `names`; quality: of `quality.quality`; on, trials: what the
    two lists are called. Returns the evaluated trials with log-likelihood ratios for scores, in the order of the first
    system. Raises UserError where the systems have not the same trials, the two lists have speakers in common, or
    something is not known.
    """
    calibration, evaluated = align(calibration, names, on), align(evaluated, names, trials)
    require_disjoint(calibration[0], evaluated[0], on, trials)
    target = calibration[0].target
    if target is None or target.all() or not target.any():
        lacking = "labels" if target is None else "non-targets" if target.all() else "targets"
        raise UserError(f"on={on}: has no {lacking}, and a calibration learns from targets and non-targets")
    learnt, labels = features(calibration, names, quality)
    applied, _ = features(evaluated, names, quality)
    fitted = Calibration.fit(learnt, target, labels, p_target)
    if len(names) == 1 and fitted.weights[0] <= 0:
        log.warning("%s: higher scores do not mean that speakers are the same: their weight is negative", names[0])
    first = evaluated[0] if len(evaluated) == 1 else _of_no_system(evaluated[0])
    return replace(first, score=fitted.apply(applied).astype(np.float32)), fitted


def _of_no_system(scores: TrialScores) -> TrialScores:
    """Without what the tables say of one system's embeddings."""
    tested = scores.tested.drop("magnitude", "cohort_mean", strict=False)
    shared = scores.enrolled is scores.tested
    enrolled = tested if shared else scores.enrolled.drop("magnitude", "cohort_mean", strict=False)
    return replace(scores, enrolled=enrolled, tested=tested)


def align(systems: Sequence[TrialScores], names: Sequence[str], trials: str) -> list[TrialScores]:
    """The systems' scores of the same trials, in the order of the first. Raises UserError where they have others."""
    first = systems[0]
    pairs = _pairs(first, first)
    order = np.argsort(pairs, kind="stable")
    aligned = [first]
    for system, name in zip(systems[1:], names[1:], strict=True):
        other = _pairs(system, first)
        other_order = np.argsort(other, kind="stable")
        if not np.array_equal(pairs[order], other[other_order]):
            raise UserError(_differ(first, system, pairs, other, names[0], name, trials))
        place = np.empty_like(order)
        place[order] = other_order
        found = system.take(place)
        one, another = (np.empty(0) if scores.target is None else scores.target for scores in (first, found))
        if not np.array_equal(one, another):
            raise UserError(f"{names[0]} and {name}: their trials {trials} have not the same labels")
        aligned.append(found)
    return aligned


def _pairs(scores: TrialScores, reference: TrialScores) -> NDArray[np.int64]:
    """(T,) a number for each trial, by the names that `reference` has for the two sides; -1 where it has not both."""
    codes = []
    for table, known, rows in (
        (scores.enrolled, reference.enrolled, scores.enroll),
        (scores.tested, reference.tested, scores.test),
    ):
        places = known.select("name").with_row_index("row")
        found = table.select("name").join(places, on="name", how="left", maintain_order="left")["row"]
        codes.append(found.cast(pl.Int64).fill_null(-1).to_numpy()[rows])
    return np.where((codes[0] < 0) | (codes[1] < 0), -1, codes[0] * len(reference.tested) + codes[1])


def _differ(
    first: TrialScores,
    second: TrialScores,
    pairs: NDArray[np.int64],
    other: NDArray[np.int64],
    name: str,
    other_name: str,
    trials: str,
) -> str:
    """What trials one has and the other has not."""
    parts = []
    for scores, missing, has, lacks in (
        (first, np.flatnonzero(~np.isin(pairs, other)), name, other_name),
        (second, np.flatnonzero(~np.isin(other, pairs)), other_name, name),
    ):
        if len(missing):
            one = int(missing[0])
            pair = f"{scores.enrolled['name'][int(scores.enroll[one])]} {scores.tested['name'][int(scores.test[one])]}"
            parts.append(f"{lacks} lacks {len(missing):,} of the {len(scores):,} trials of {has}, such as '{pair}'")
    text = "; ".join(parts) or f"{name} has {len(pairs):,} of them, {other_name} {len(other):,}: some come twice"
    return f"trials={trials}: {text}; systems are fused on the same trials"
