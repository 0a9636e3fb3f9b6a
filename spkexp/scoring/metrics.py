"""Error rates of verification scores. Higher scores mean "same speaker"; rates are fractions.

Tied scores share one threshold, so the order of the trials never matters. Every function takes optional trial
weights, a trial of weight 2 counting as two.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class ErrorRates(NamedTuple):
    """Miss and false-alarm rate at each of K thresholds, from "accept all" (0, 1) to "reject all" (1, 0)."""

    miss: Array  # (K,) rising
    false_alarm: Array  # (K,) falling


class Ranking:
    """Trials sorted by score once, so that rates under many weightings (a bootstrap) cost one pass each."""

    def __init__(self, scores: ArrayLike, target: ArrayLike) -> None:
        scores, target = np.asarray(scores, dtype=np.float64), np.asarray(target, dtype=bool)
        if scores.shape != target.shape or scores.ndim != 1:
            raise ValueError(
                f"scores and targets must be two lists of one length, got {scores.shape} and {target.shape}"
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"{(~np.isfinite(scores)).sum()} scores are not finite")
        if target.all() or not target.any():
            raise ValueError("error rates need target and non-target trials")
        self.order = np.argsort(scores, kind="stable")
        self.target = target[self.order]
        ordered = scores[self.order]
        # The last trial of each run of equal scores: the only places where a threshold can stand.
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self.levels = ordered[self.ends]  # the distinct scores, rising

    def error_rates(self, weights: Array | None = None) -> ErrorRates:
        """Rates where the trials have `weights` (in the order given to the constructor); None: 1 each."""
        ordered = np.ones(len(self.order)) if weights is None else weights[self.order]
        targets = np.where(self.target, ordered, 0.0)
        rejected_targets = np.cumsum(targets)[self.ends]
        rejected_nontargets = np.cumsum(ordered - targets)[self.ends]
        miss = rejected_targets / rejected_targets[-1]
        false_alarm = 1.0 - rejected_nontargets / rejected_nontargets[-1]
        return ErrorRates(np.concatenate([[0.0], miss]), np.concatenate([[1.0], false_alarm]))


def error_rates(scores: ArrayLike, target: ArrayLike) -> ErrorRates:
    """Miss and false-alarm rates at every threshold. scores: (N,) finite; target: (N,) bool, both kinds present."""
    return Ranking(scores, target).error_rates()


def eer(rates: ErrorRates) -> float:
    """Equal error rate: where miss and false alarm are equal, interpolated between the two neighbouring thresholds."""
    difference = rates.miss - rates.false_alarm
    after = int(np.argmax(difference >= 0))  # from -1 to 1, so there is one, and it is not the first
    before = after - 1
    share = -difference[before] / (difference[after] - difference[before])
    return float(rates.miss[before] + share * (rates.miss[after] - rates.miss[before]))


def eer_threshold(ranking: Ranking) -> float:
    """The score where the rates cross; higher scores are accepted. Half way to the next score where they are equal."""
    rates = ranking.error_rates()
    after = int(np.argmax(rates.miss >= rates.false_alarm))
    crossing = ranking.levels[after - 1]  # rejecting this score is what makes the misses catch up
    if rates.miss[after] == rates.false_alarm[after] and after < len(ranking.levels):
        return float((crossing + ranking.levels[after]) / 2)
    return float(crossing)


def min_dcf(rates: ErrorRates, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Minimum detection cost over all thresholds, divided by that of the better of "accept all" and "reject all".

    NIST SRE 2016 evaluation plan, eq. 2-3. At most 1.
    """
    cost = c_miss * p_target * rates.miss + c_fa * (1.0 - p_target) * rates.false_alarm
    return float(cost.min() / min(c_miss * p_target, c_fa * (1.0 - p_target)))
