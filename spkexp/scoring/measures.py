"""All metrics of one list of scored trials under any weights, as a bootstrap asks for them: thousands of times."""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spkexp.scoring.metrics import (
    Array,
    ErrorRates,
    areas,
    bayes_threshold,
    checked_trials,
    checked_weights,
    crossings,
    entropy,
    hull,
    hull_vertices,
    normalised_costs,
    rates_of_rejected,
    surprise,
)

HULL = ("rocch_eer", "min_cllr")  # one weighting at a time, the others many at once


class Measures:
    """Metrics as functions of the trials' weights. The scores are sorted once.

    Two facts save looking at every threshold. Along a run of targets alone, or of non-targets alone, the ROC
    is straight whatever their weights, so that its ends say all. And a threshold can only be the best, or a vertex of
    the hull, behind a non-target and before a target.

    keys: "eer", "min_dcf.P" for each of `p_targets`, "auc", "rocch_eer", "min_cllr", and, where the scores are
    natural-log likelihood ratios (`llr`), "cllr" and "act_dcf.P".
    score: (N,) finite; target: (N,) with both kinds present. Raises ValueError otherwise, in words for a user.
    """

    def __init__(
        self,
        score: ArrayLike,
        target: ArrayLike,
        p_targets: Sequence[float],
        llr: bool,
    ) -> None:
        scores, self.target = checked_trials(score, target)
        self._dcf = {f"min_dcf.{p}": p for p in p_targets}
        self._act = {f"act_dcf.{p}": p for p in p_targets} if llr else {}
        self.keys: tuple[str, ...] = ("eer", *self._dcf, "auc", *HULL, *(("cllr",) if llr else ()), *self._act)
        # (M,) and (N-M,) numbers of the targets and of the non-targets, by rising score
        order = np.argsort(scores, kind="stable")
        self.targets, self.nontargets = order[self.target[order]], order[~self.target[order]]
        of_targets, of_nontargets = scores[self.targets], scores[self.nontargets]
        levels = np.unique(scores)
        ends = [np.append(0, np.searchsorted(side, levels, side="right")) for side in (of_targets, of_nontargets)]
        rises = [np.diff(end) > 0 for end in ends]  # whether there are such trials between two thresholds
        bend = np.ones(len(levels) + 1, dtype=bool)
        bend[1:-1] = (rises[0][:-1] | rises[0][1:]) & (rises[1][:-1] | rises[1][1:])
        corner = np.ones(len(levels) + 1, dtype=bool)
        corner[1:-1] = rises[1][:-1] & rises[0][1:]
        self._bends = [end[bend] for end in ends]  # how many of either kind each threshold rejects
        self._corners = np.flatnonzero(corner[bend])  # among the bends
        if llr:
            self._bits = [surprise(scores[side], self.target[side]) for side in (self.targets, self.nontargets)]
            cuts = np.array([bayes_threshold(p) for p in p_targets])
            self._cuts = [np.searchsorted(side, cuts) for side in (of_targets, of_nontargets)]

    def only(self, keys: Sequence[str]) -> "Measures":
        """The same trials and no more than these metrics. Raises ValueError where there is no such metric."""
        if unknown := set(keys) - set(self.keys):
            raise ValueError(f"no such metric: {', '.join(sorted(unknown))}; there are {', '.join(self.keys)}")
        fewer = copy(self)
        fewer.keys = tuple(keys)
        return fewer

    def __call__(self, weights: ArrayLike | None = None) -> NDArray[np.float64]:
        """(K,) in the order of `keys`. weights: (N,) at least 0; None: 1 each."""
        weight = checked_weights(None if weights is None else np.asarray(weights, dtype=np.float64), self.target)
        return self.optimised(self.curve(weight[None, self.targets], weight[None, self.nontargets]))[0]

    def optimised(self, curve: "Curve") -> NDArray[np.float64]:
        """(B, K) the metrics of B weightings."""
        found = self._smooth(curve) | {
            key: normalised_costs(curve.corners, p).min(axis=-1) for key, p in self._dcf.items() if key in self.keys
        }
        if set(HULL) & set(self.keys):
            hulls = [hull(ErrorRates(*rates)) for rates in zip(*curve.corners, strict=True)]
            found["rocch_eer"] = np.array([crossings(vertices) for vertices in hulls])
            found["min_cllr"] = np.array([entropy(np.diff(v.miss), -np.diff(v.false_alarm)) for v in hulls])
        return np.stack([found[key] for key in self.keys], axis=1)

    def held(self, curve: "Curve") -> NDArray[np.float64]:
        """(B, K) as `optimised`, but what a metric optimises stays as it is best without weights.

        That is the threshold of a minDCF, the calibration of minCllr, and the prior and the thresholds of the
        ROCCH-EER, which is the largest over the priors of the least error rate. To first order a metric varies as this
        does (the envelope theorem), and this is smooth: no resample is luckier than the trials by a better threshold.
        """
        miss, false_alarm = curve.corners
        best = self._best
        found = self._smooth(curve)
        for key in self._dcf.keys() & self.keys:
            place = best.thresholds[key]
            found[key] = normalised_costs(ErrorRates(miss[:, place], false_alarm[:, place]), self._dcf[key])
        if "rocch_eer" in self.keys:
            errors = best.prior * miss[:, best.side] + (1.0 - best.prior) * false_alarm[:, best.side]
            found["rocch_eer"] = _products(errors, best.shares)
        if "min_cllr" in self.keys:
            of_targets = _products(np.diff(miss), best.bits_of_targets)
            found["min_cllr"] = of_targets - _products(np.diff(false_alarm), best.bits_of_nontargets)
        return np.stack([found[key] for key in self.keys], axis=1)

    def curve(self, targets: Array, nontargets: Array) -> "Curve":
        """The rates of B weightings at once, each of which must have some weight on either kind of trial.

        targets: (B, M) weights in the order of `self.targets`; nontargets: (B, N-M) in that of `self.nontargets`.
        """
        rejected = [_summed(targets), _summed(nontargets)]
        bends = rates_of_rejected(
            *(total.take(place, axis=1) for total, place in zip(rejected, self._bends, strict=True))
        )
        corners = ErrorRates(bends.miss.take(self._corners, axis=1), bends.false_alarm.take(self._corners, axis=1))
        return Curve((targets, nontargets), rejected, bends, corners)

    def _smooth(self, curve: "Curve") -> dict[str, Array]:
        """The metrics that optimise nothing."""
        found: dict[str, Array] = {}
        if "eer" in self.keys:
            found["eer"] = crossings(curve.bends)
        if "auc" in self.keys:
            found["auc"] = areas(curve.bends)
        if "cllr" in self.keys:
            sides = zip(curve.weights, curve.rejected, self._bits, strict=True)
            found["cllr"] = np.asarray(sum(_products(weight, bits) / total[:, -1] for weight, total, bits in sides) / 2)
        rejected = curve.rejected
        for column, (key, p) in enumerate(self._act.items()):
            if key in self.keys:
                at_bayes = rates_of_rejected(
                    *(total[:, [cut[column], -1]] for total, cut in zip(rejected, self._cuts, strict=True))
                )
                found[key] = normalised_costs(ErrorRates(at_bayes.miss[:, 0], at_bayes.false_alarm[:, 0]), p)
        return found

    @cached_property
    def _best(self) -> "_Best":
        curve = self.curve(np.ones((1, len(self.targets))), np.ones((1, len(self.nontargets))))
        corners = ErrorRates(curve.corners.miss[0], curve.corners.false_alarm[0])
        vertices = hull_vertices(corners)
        miss, false_alarm = corners.miss[vertices], corners.false_alarm[vertices]
        after = int(np.argmax(miss >= false_alarm))
        below, above = (miss - false_alarm)[[after - 1, after]]
        shares = np.diff(miss), -np.diff(false_alarm)
        of_corner = np.repeat(np.arange(len(vertices) - 1), np.diff(vertices))
        bits = []
        for share in shares:
            with np.errstate(divide="ignore", invalid="ignore"):
                bits.append(np.where(share > 0, np.log2((shares[0] + shares[1]) / share), 0.0)[of_corner] / 2)
        return _Best(
            {key: int(normalised_costs(corners, p).argmin()) for key, p in self._dcf.items()},
            [int(vertices[after - 1]), int(vertices[after])],
            float(shares[1][after - 1] / (shares[0][after - 1] + shares[1][after - 1])),
            np.array([above, -below]) / (above - below),
            *bits,
        )


class Curve(NamedTuple):
    """B weightings of the trials."""

    weights: tuple[Array, Array]  # (B, M) and (B, N-M)
    rejected: list[Array]  # (B, M+1) and (B, N-M+1) weight of the lowest 0, 1, ...
    bends: ErrorRates  # (B, V)
    corners: ErrorRates  # (B, C)


class _Best(NamedTuple):
    """What metrics optimise, as it is best where all trials count alike."""

    thresholds: dict[str, int]  # of each minDCF, among the corners
    side: list[int]  # the corners around the ROCCH-EER
    prior: float  # at which both corners cost the same
    shares: Array  # (2,) of the two corners in that point
    bits_of_targets: Array  # (C-1,) half the surprise at a target between two corners, as minCllr calibrates it
    bits_of_nontargets: Array  # (C-1,)


def _summed(weights: Array) -> Array:
    """(B, N+1) sums of the first 0 to N of the weights (B, N)."""
    total = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=total[:, 1:])
    return total


def _products(rows: Array, column: Array) -> Array:
    """(B,) rows (B, N) times a column (N,); each sum on its own, which BLAS makes depend on how many rows there are."""
    return np.asarray(np.einsum("bn,n->b", rows, column))
