"""All metrics at once, under weights, against those one at a time and slow searches."""

import numpy as np
import pytest

from spkexp.scoring.measures import Measures
from spkexp.scoring.metrics import act_dcf, auc, cllr, eer, error_rates, min_cllr, min_dcf, rocch_eer
from tests.test_metrics import isotonic_bits, tied_trials


def test_measures_are_the_metrics_of_weighted_trials() -> None:
    scores, target, weights = tied_trials(6)
    measures = Measures(scores, target, [0.01, 0.3], llr=True)
    rates = error_rates(scores, target, weights)
    expected = {
        "eer": eer(rates),
        "min_dcf.0.01": min_dcf(rates, 0.01),
        "min_dcf.0.3": min_dcf(rates, 0.3),
        "auc": auc(rates),
        "rocch_eer": rocch_eer(rates),
        "min_cllr": min_cllr(rates),
        "cllr": cllr(scores, target, weights),
        "act_dcf.0.01": act_dcf(scores, target, 0.01, weights=weights),
        "act_dcf.0.3": act_dcf(scores, target, 0.3, weights=weights),
    }
    assert measures.keys == tuple(expected)
    np.testing.assert_allclose(measures(weights), list(expected.values()), atol=1e-12)
    few = measures.only(["auc", "eer"])
    np.testing.assert_allclose(few(weights), [expected["auc"], expected["eer"]], atol=1e-12)
    with pytest.raises(ValueError, match=r"no such metric: min_dcf\.0\.5; there are eer, min_dcf\.0\.01"):
        measures.only(["min_dcf.0.5"])


def test_what_is_held_is_that_of_the_trials_themselves() -> None:
    scores, target, weights = tied_trials(7)
    measures = Measures(scores, target, [0.05], llr=True)

    def held(weight: np.ndarray) -> dict[str, float]:
        curve = measures.curve(weight[None, measures.targets], weight[None, measures.nontargets])
        return dict(zip(measures.keys, measures.held(curve)[0].tolist(), strict=True))

    ones = np.ones(len(scores))
    np.testing.assert_allclose(list(held(ones).values()), measures(), atol=1e-12)
    found = held(weights)
    # minDCF: the threshold that is best without weights, found by trying all.
    costs = {t: slow_cost(scores, target, t, 0.05, ones) for t in [*np.unique(scores), np.inf]}
    best = min(costs, key=lambda t: costs[t])
    assert found["min_dcf.0.05"] == pytest.approx(slow_cost(scores, target, best, 0.05, weights))
    bits = isotonic_bits(scores, target, ones)
    halves = [np.average(bits[kind], weights=weights[kind]) for kind in (target, ~target)]
    assert found["min_cllr"] == pytest.approx(sum(halves) / 2, abs=1e-9)
    # ROCCH-EER: its slope as the weights move a little (envelope theorem), against a difference quotient.
    step, ready = 1e-6, measures.only(["rocch_eer"])
    moved = ones + step * (weights - 1)
    slope = (ready(moved)[0] - ready()[0]) / step
    assert (held(moved)["rocch_eer"] - held(ones)["rocch_eer"]) / step == pytest.approx(slope, abs=1e-4)
    assert slope != pytest.approx(0, abs=1e-3)


def slow_cost(scores: np.ndarray, target: np.ndarray, threshold: float, p: float, weights: np.ndarray) -> float:
    accept = scores >= threshold
    miss = np.average(~accept[target], weights=weights[target])
    false_alarm = np.average(accept[~target], weights=weights[~target])
    return float(p * miss + (1 - p) * false_alarm) / min(p, 1 - p)
