"""Error rates of verification scores. Higher scores mean "same speaker"; rates are fractions.

Tied scores share one threshold, so the order of the trials never matters. All that depends on the order of the scores
alone is a function of the rates at every threshold; `cllr`, `act_dcf` and the two curves read the scores as natural-log
likelihood ratios. Trial weights are optional, a trial of weight 2 counting as two.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class ErrorRates(NamedTuple):
    """Miss and false-alarm rate at each of K thresholds, from "accept all" (0, 1) to "reject all" (1, 0).

    A leading dimension, if any, is one of several weightings of the same trials.
    """

    miss: Array  # (K,) rising
    false_alarm: Array  # (K,) falling


class Ranking:
    """Trials sorted by score once, so that rates under many weightings cost one pass each."""

    def __init__(self, scores: ArrayLike, target: ArrayLike) -> None:
        checked, self._target = checked_trials(scores, target)
        self.order = np.argsort(checked, kind="stable")
        self.target = self._target[self.order]
        ordered = checked[self.order]
        # The last trial of each run of equal scores: the only places where a threshold can stand.
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self.levels = ordered[self.ends]  # the distinct scores, rising

    def error_rates(self, weights: Array | None = None) -> ErrorRates:
        """Rates where the trials have `weights` (in the order given to the constructor); None: 1 each."""
        ordered = np.ones(len(self.order)) if weights is None else checked_weights(weights, self._target)[self.order]
        targets = np.where(self.target, ordered, 0.0)
        rejected_targets = np.append(0.0, np.cumsum(targets)[self.ends])
        rejected_nontargets = np.append(0.0, np.cumsum(ordered - targets)[self.ends])
        return rates_of_rejected(rejected_targets, rejected_nontargets)


def checked_trials(scores: ArrayLike, target: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """Both as arrays (N,). Raises ValueError, in words for who brought the scores, where they have no error rates."""
    scores, target = np.asarray(scores, dtype=np.float64), np.asarray(target, dtype=bool)
    if scores.shape != target.shape or scores.ndim != 1:
        raise ValueError(f"scores and targets must be two lists of one length, got {scores.shape} and {target.shape}")
    if not np.isfinite(scores).all():
        wrong = np.flatnonzero(~np.isfinite(scores))
        raise ValueError(
            f"{len(wrong)} of {len(scores)} scores are not finite, the first that of trial {wrong[0] + 1}: "
            f"{scores[wrong[0]]}"
        )
    if target.all() or not target.any():
        kind = "targets" if target.any() else "non-targets"
        raise ValueError(
            f"error rates need target and non-target trials, and all {len(target)} trials are {kind}"
            if len(target)
            else "error rates need target and non-target trials, and there are no trials"
        )
    return scores, target


def checked_weights(weights: Array | None, target: NDArray[np.bool_]) -> Array:
    """(N,) float64, ones for None. Raises ValueError unless they are ≥ 0 and either kind of trial has some."""
    if weights is None:
        return np.ones(len(target))
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != target.shape or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"expected {len(target)} weights of at least 0, got {weights.shape}")
    if weights[target].sum() == 0 or weights[~target].sum() == 0:
        raise ValueError("error rates need target and non-target trials with weight")
    return weights


def rates_of_rejected(targets: Array, nontargets: Array) -> ErrorRates:
    """Rates from the weight of what each threshold rejects, (..., K) rising from 0 to the weight of all.

    Weights that are whole numbers give the double next to the exact rate, so that equal rates compare equal.
    """
    all_targets, all_nontargets = targets[..., -1:], nontargets[..., -1:]
    return ErrorRates(targets / all_targets, (all_nontargets - nontargets) / all_nontargets)


def error_rates(scores: ArrayLike, target: ArrayLike, weights: Array | None = None) -> ErrorRates:
    """Miss and false-alarm rates at every threshold. scores: (N,) finite; target: (N,) bool, both kinds present."""
    return Ranking(scores, target).error_rates(weights)


def crossings(rates: ErrorRates) -> Array:
    """`eer` of each weighting. rates: (..., K); returns (...)."""
    difference = rates.miss - rates.false_alarm
    after = np.argmax(difference >= 0, axis=-1, keepdims=True)  # from -1 to 1: there is one, and it is not the first
    (below, above), (start, end) = (
        [np.take_along_axis(values, place, axis=-1)[..., 0] for place in (after - 1, after)]
        for values in (difference, rates.miss)
    )
    return np.asarray(start + below / (below - above) * (end - start))


def eer(rates: ErrorRates) -> float:
    """Equal error rate: where miss and false alarm are equal, interpolated between the two neighbouring thresholds."""
    return float(crossings(rates))


def eer_threshold(ranking: Ranking) -> float:
    """The score where the rates cross; higher scores are accepted. Half way to the next score where they are equal."""
    rates = ranking.error_rates()
    after = int(np.argmax(rates.miss >= rates.false_alarm))
    crossing = ranking.levels[after - 1]  # rejecting this score is what makes the misses catch up
    if rates.miss[after] == rates.false_alarm[after] and after < len(ranking.levels):
        return float((crossing + ranking.levels[after]) / 2)
    return float(crossing)


def normalised_costs(rates: ErrorRates, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> Array:
    """Detection cost at each threshold over that of the better of "accept all" and "reject all". (..., K).

    NIST SRE 2016 evaluation plan, eq. 2-3.
    """
    miss, false_alarm = c_miss * p_target, c_fa * (1.0 - p_target)
    least = min(miss, false_alarm)
    return np.asarray(rates.miss * (miss / least) + rates.false_alarm * (false_alarm / least))


def min_dcf(rates: ErrorRates, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The least normalised detection cost over all thresholds. At most 1."""
    return float(normalised_costs(rates, p_target, c_miss, c_fa).min())


def areas(rates: ErrorRates) -> Array:
    """`auc` of each weighting. rates: (..., K); returns (...)."""
    accepted = 1.0 - (rates.miss[..., 1:] + rates.miss[..., :-1]) / 2
    return np.asarray((accepted * (rates.false_alarm[..., :-1] - rates.false_alarm[..., 1:])).sum(axis=-1))


def auc(rates: ErrorRates) -> float:
    """Area under the ROC: the chance that a target scores higher than a non-target, a tie being half a chance."""
    return float(areas(rates))


def hull_vertices(rates: ErrorRates) -> NDArray[np.int64]:
    """Which thresholds are vertices of the ROC's convex hull, found by "pool adjacent violators". rates: (K,).

    Brümmer and de Villiers 2011, "The BOSARIS toolkit user guide", sec. 3.
    """
    from scipy.optimize import isotonic_regression

    targets, nontargets = np.diff(rates.miss), -np.diff(rates.false_alarm)
    kept = np.flatnonzero(targets + nontargets > 0)
    mass = (targets + nontargets)[kept]
    blocks = isotonic_regression(targets[kept] / mass, weights=mass).blocks
    return np.append(0, kept[blocks[1:] - 1] + 1)  # a vertex behind the last threshold of each block


def hull(rates: ErrorRates) -> ErrorRates:
    """The rates at the vertices of the ROC's convex hull. rates: (K,)."""
    vertices = hull_vertices(rates)
    return ErrorRates(rates.miss[vertices], rates.false_alarm[vertices])


def rocch_eer(rates: ErrorRates) -> float:
    """Equal error rate of the ROC's convex hull (Brümmer and de Villiers 2011): at most `eer` and at most 1/2."""
    return eer(hull(rates))


def min_cllr(rates: ErrorRates) -> float:
    """Cllr in bits after the best rising calibration of the scores. In [0, 1].

    Brümmer and du Preez 2006, "Application-independent evaluation of speaker detection", sec. 5.3. The segments of the
    hull are the pooled scores: with shares a of the targets and b of the non-targets each has the ratio a / b.
    """
    vertices = hull(rates)
    return entropy(np.diff(vertices.miss), -np.diff(vertices.false_alarm))


def entropy(targets: Array, nontargets: Array) -> float:
    """Cllr of bins with shares a of the targets and b of the non-targets whose ratios are a / b.

    ½ Σ a·log2(1 + b/a) + b·log2(1 + a/b) = ½ Σ (a+b)·log2(a+b) - a·log2 a - b·log2 b, where 0·log2 0 = 0.
    """
    from scipy.special import xlogy

    both = targets + nontargets
    return float((xlogy(both, both) - xlogy(targets, targets) - xlogy(nontargets, nontargets)).sum() / np.log(4))


def surprise(llr: Array, target: NDArray[np.bool_]) -> Array:
    """(N,) bits by which each trial surprises one who believes its natural-log likelihood ratio, at even odds."""
    return np.logaddexp(0.0, np.where(target, -llr, llr)) / np.log(2)


def cllr(llr: ArrayLike, target: ArrayLike, weights: Array | None = None) -> float:
    """Cost of natural-log likelihood ratios in bits; 0: perfect, 1: as good as ratios of 1, which say nothing.

    Brümmer and du Preez 2006, eq. 37: mean over the targets of log2(1 + 1/LR) and over the non-targets of log2(1 + LR),
    halved.
    """
    ratios, kind = checked_trials(llr, target)
    weight, bits = checked_weights(weights, kind), surprise(ratios, kind)
    return float((np.average(bits[kind], weights=weight[kind]) + np.average(bits[~kind], weights=weight[~kind])) / 2)


def bayes_threshold(p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The natural-log likelihood ratio from which on accepting costs less: ln(c_fa·(1-p) / (c_miss·p))."""
    return float(np.log(c_fa * (1.0 - p_target)) - np.log(c_miss * p_target))


def act_dcf(
    llr: ArrayLike,
    target: ArrayLike,
    p_target: float,
    c_miss: float = 1.0,
    c_fa: float = 1.0,
    weights: Array | None = None,
) -> float:
    """Actual normalised detection cost: that of the decisions which the ratios themselves call for (NIST SRE 2016).

    Trials at or above the Bayes threshold are accepted. At least `min_dcf`, and more than 1 where the ratios mislead.
    """
    ratios, kind = checked_trials(llr, target)
    weight = checked_weights(weights, kind)
    accept = ratios >= bayes_threshold(p_target, c_miss, c_fa)
    miss = np.asarray(np.average(~accept[kind], weights=weight[kind]))
    false_alarm = np.asarray(np.average(accept[~kind], weights=weight[~kind]))
    return float(normalised_costs(ErrorRates(miss, false_alarm), p_target, c_miss, c_fa))


class CalibrationCurve(NamedTuple):
    """What ratios promise against what came true, in B bins of rising ratio."""

    predicted: Array  # (B,) mean posterior probability of a target
    observed: Array  # (B,) share of targets
    share: Array  # (B,) of all trials


def calibration_curve(llr: ArrayLike, target: ArrayLike, bins: int = 15, p_target: float = 0.5) -> CalibrationCurve:
    """Reliability of natural-log likelihood ratios at the prior `p_target`.

    Targets are weighted to have the share `p_target` of all trials. Bins have about equal shares, trials of one score
    being in one bin; fewer than `bins` come back where scores are tied.
    """
    ratios, kind = checked_trials(llr, target)
    weight = np.where(kind, p_target / kind.sum(), (1.0 - p_target) / (~kind).sum())
    order = np.argsort(ratios, kind="stable")
    middle = np.cumsum(weight[order]) - weight[order] / 2
    first = np.searchsorted(ratios[order], ratios)  # of the trials with the same score
    place = np.clip((middle[first] * bins).astype(np.int64), 0, bins - 1)
    posterior = np.exp(-np.logaddexp(0.0, bayes_threshold(p_target) - ratios))
    share, predicted, observed = (
        np.bincount(place, weight * of, bins).astype(np.float64) for of in (1.0, posterior, kind)
    )
    filled = share > 0
    return CalibrationCurve(predicted[filled] / share[filled], observed[filled] / share[filled], share[filled])


class BayesErrors(NamedTuple):
    """Normalised detection cost over the prior; the ratios' own decisions against the best threshold's."""

    log_odds: Array  # (L,) ln(p / (1-p))
    actual: Array  # (L,)
    minimum: Array  # (L,) in [0, 1]


def bayes_error_curve(llr: ArrayLike, target: ArrayLike, log_odds: ArrayLike | None = None) -> BayesErrors:
    """The normalised Bayes error-rate plot (Brümmer and de Villiers 2011, sec. 2.2). log_odds: by default -7 to 7."""
    ratios, kind = checked_trials(llr, target)
    odds = np.linspace(-7.0, 7.0, 141) if log_odds is None else np.asarray(log_odds, dtype=np.float64)
    vertices = hull(error_rates(ratios, kind))
    prior = 1.0 / (1.0 + np.exp(-odds))
    targets, nontargets = np.sort(ratios[kind]), np.sort(ratios[~kind])
    at_threshold = ErrorRates(
        np.searchsorted(targets, -odds) / len(targets), 1.0 - np.searchsorted(nontargets, -odds) / len(nontargets)
    )
    actual = [
        float(normalised_costs(ErrorRates(*rates), p))
        for *rates, p in zip(at_threshold.miss, at_threshold.false_alarm, prior.tolist(), strict=True)
    ]
    return BayesErrors(odds, np.array(actual), np.array([min_dcf(vertices, p) for p in prior.tolist()]))
