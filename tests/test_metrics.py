"""Error rates against hand-worked numbers, exact rational arithmetic and slow searches."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from spkexp.scoring.measures import Measures
from spkexp.scoring.metrics import (
    Ranking,
    act_dcf,
    auc,
    bayes_error_curve,
    calibration_curve,
    cllr,
    eer,
    eer_threshold,
    error_rates,
    min_cllr,
    min_dcf,
    rocch_eer,
)


def test_by_hand() -> None:
    # Thresholds from low to high reject: n, n, t, n, t, t -> miss 0 0 0 1/3 1/3 2/3 1, false alarm 1 2/3 1/3 1/3 0 0 0.
    rates = error_rates([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [False, False, True, False, True, True])
    np.testing.assert_allclose(rates.miss, np.array([0, 0, 0, 1, 1, 2, 3]) / 3)
    np.testing.assert_allclose(rates.false_alarm, np.array([3, 2, 1, 1, 0, 0, 0]) / 3)
    assert eer(rates) == pytest.approx(1 / 3)


def test_eer_is_interpolated_between_thresholds() -> None:
    # 2 targets, 3 non-targets; the curve goes from (miss 0, fa 1/3) to (1/2, 1/3) and (1/2, 0).
    rates = error_rates([1, 2, 3, 4, 5], [False, False, True, False, True])
    assert eer(rates) == pytest.approx(1 / 3)
    # All scores tied: one threshold, from accepting everything to rejecting everything.
    assert eer(error_rates([0.5] * 4, [True, False, True, False])) == pytest.approx(0.5)


def test_perfect_and_worst() -> None:
    assert eer(error_rates([0, 1], [False, True])) == 0.0
    assert eer(error_rates([1, 0], [False, True])) == 1.0
    assert min_dcf(error_rates([0, 1], [False, True]), 0.01) == 0.0
    assert min_dcf(error_rates([1, 0], [False, True]), 0.01) == 1.0


def test_order_of_tied_scores_does_not_matter() -> None:
    scores = np.array([0.2, 0.5, 0.5, 0.5, 0.5, 0.9])
    target = np.array([False, True, False, True, False, True])
    values = set()
    for order in map(list, itertools.permutations(range(6))):
        rates = error_rates(scores[order], target[order])
        values.add((round(eer(rates), 12), round(min_dcf(rates, 0.05), 12)))
    assert len(values) == 1


def slow_min_dcf(scores: np.ndarray, target: np.ndarray, p: float) -> float:
    costs = []
    for threshold in [-np.inf, *np.unique(scores), np.inf]:
        accept = scores > threshold
        miss = np.mean(~accept[target])
        false_alarm = np.mean(accept[~target])
        costs += [p * miss + (1 - p) * false_alarm]
    costs.append(1 - p)  # accept everything
    return min(costs) / min(p, 1 - p)


@pytest.mark.parametrize("seed", range(5))
def test_against_a_slow_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.random(200) < 0.3
    scores = np.round(rng.normal(size=200) + 1.5 * target, 1)  # rounded: many ties
    rates = error_rates(scores, target)
    for p in (0.01, 0.05, 0.5):
        assert min_dcf(rates, p) == pytest.approx(slow_min_dcf(scores, target, p), abs=1e-12)
    # The EER lies between the errors of the two thresholds around it.
    points = [(np.mean(scores[target] <= t), np.mean(scores[~target] > t)) for t in np.unique(scores)]
    below = max((max(m, f) if m <= f else -1, m, f) for m, f in points)
    assert min(max(m, f) for m, f in points) + 1e-12 >= eer(rates)
    assert below[1] - 1e-12 <= eer(rates)


def test_gaussian_scores_have_the_known_eer() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(2, 1, 200_000), rng.normal(0, 1, 200_000)])
    target = np.arange(400_000) < 200_000
    # Equal variances, means two apart: Φ(-1).
    assert eer(error_rates(scores, target)) == pytest.approx(0.158655, abs=2e-3)
    assert eer_threshold(Ranking(scores, target)) == pytest.approx(1.0, abs=0.02)


def test_threshold_separates_what_can_be_separated() -> None:
    assert eer_threshold(Ranking([-1, 0.7, 0.8, 0.9], [False, False, True, True])) == pytest.approx(0.75)
    # Rates cross at the score 0.6, which is a target and rejected with everything below.
    assert eer_threshold(Ranking([0.1, 0.6, 0.7, 0.9], [False, True, False, True])) == pytest.approx(0.65)


def test_weights_count_as_copies() -> None:
    rng = np.random.default_rng(1)
    scores, target = np.round(rng.normal(size=60), 1), rng.random(60) < 0.4
    copies = rng.integers(0, 4, size=60)
    copies[:2] = 1
    target[:2] = [True, False]
    weighted = Ranking(scores, target).error_rates(copies.astype(float))
    repeated = error_rates(np.repeat(scores, copies), np.repeat(target, copies))
    assert eer(weighted) == pytest.approx(eer(repeated), abs=1e-12)
    assert min_dcf(weighted, 0.05) == pytest.approx(min_dcf(repeated, 0.05), abs=1e-12)


Points = list[tuple[Fraction, Fraction]]


def exact_points(scores: list[int], target: list[bool], weights: list[int]) -> Points:
    """(miss, false alarm) for every threshold, by counting."""
    kinds = [sum(w for w, t in zip(weights, target, strict=True) if t == kind) for kind in (True, False)]
    points = []
    for threshold in [*sorted(set(scores)), max(scores) + 1]:
        trials = list(zip(scores, target, weights, strict=True))
        miss = sum(w for s, t, w in trials if t and s < threshold)
        accepted = sum(w for s, t, w in trials if not t and s >= threshold)
        points.append((Fraction(miss, kinds[0]), Fraction(accepted, kinds[1])))
    return points


def exact_crossing(start: tuple[Fraction, Fraction], end: tuple[Fraction, Fraction]) -> Fraction:
    """Where the line from `start` (miss ≤ false alarm) to `end` (miss > false alarm) has equal rates."""
    below, above = start[1] - start[0], end[0] - end[1]
    return start[0] + below / (below + above) * (end[0] - start[0])


def exact(points: Points, p: Fraction) -> dict[str, Fraction]:
    steps = list(itertools.pairwise(points))
    eers = [exact_crossing(a, b) for a, b in steps if a[0] <= a[1] and b[0] > b[1]]
    assert len(eers) == 1
    # The lower hull passes below or through every chord, and is one where it crosses.
    chords = [exact_crossing(a, b) for a in points if a[0] <= a[1] for b in points if b[0] > b[1]]
    return {
        "eer": eers[0],
        "rocch_eer": min(chords),
        "auc": sum(((1 - (a[0] + b[0]) / 2) * (a[1] - b[1]) for a, b in steps), Fraction(0)),
        "min_dcf": min(p * miss + (1 - p) * accepted for miss, accepted in points) / min(p, 1 - p),
    }


def test_equal_to_exact_rational_arithmetic() -> None:
    """On 400 small lists with ties, duplicates, equal scores only, and weights: the double next to the exact value."""
    rng = np.random.default_rng(0)
    for case in range(400):
        count = int(rng.integers(2, 14))
        scores = rng.integers(0, rng.integers(1, 2 * count), count)
        target = rng.permutation(np.arange(count) < rng.integers(1, count))
        weights = rng.integers(1, 4, count) if case % 2 else np.ones(count, dtype=np.int64)
        p = Fraction(int(rng.integers(1, 20)), 20)
        rates = error_rates(scores, target, weights)
        expected = exact(exact_points(scores.tolist(), target.tolist(), weights.tolist()), p)
        found = {
            "eer": eer(rates),
            "rocch_eer": rocch_eer(rates),
            "auc": auc(rates),
            "min_dcf": min_dcf(rates, float(p)),
        }
        assert found == {key: pytest.approx(float(value), rel=1e-14, abs=1e-15) for key, value in expected.items()}
        values = Measures(scores, target, [float(p)], llr=False)
        many = dict(zip(values.keys, values(weights).tolist(), strict=True))
        assert [many["eer"], many["rocch_eer"], many["auc"], many[f"min_dcf.{float(p)}"]] == [
            pytest.approx(value, rel=1e-14, abs=1e-15) for value in found.values()
        ]


def tied_trials(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, targets and weights, some 0."""
    rng = np.random.default_rng(seed)
    target = rng.random(count) < 0.4
    return np.round(rng.normal(size=count) * 2 + 3 * target - 1.5, 1), target, rng.integers(0, 4, count).astype(float)


def test_auc_is_scikit_learns() -> None:
    scores, target, weights = tied_trials(2)
    expected = roc_auc_score(target, scores, sample_weight=weights)
    assert auc(error_rates(scores, target, weights)) == pytest.approx(expected, abs=1e-12)


def isotonic_bits(scores: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Bits of surprise of each trial once scikit-learn's isotonic regression has calibrated the scores."""
    share = np.where(target, weights / weights[target].sum(), weights / weights[~target].sum())
    posterior = IsotonicRegression().fit_transform(scores, target, sample_weight=share)
    return -np.log2(np.where(target, posterior, 1 - posterior), where=share > 0, out=np.zeros(len(scores)))


def test_min_cllr_is_that_of_an_isotonic_regression() -> None:
    scores, target, weights = tied_trials(3)
    for weight in (np.ones(len(scores)), weights):
        bits = isotonic_bits(scores, target, weight)
        halves = [np.average(bits[kind], weights=weight[kind]) for kind in (target, ~target)]
        assert min_cllr(error_rates(scores, target, weight)) == pytest.approx(sum(halves) / 2, abs=1e-9)
    assert min_cllr(error_rates([1, 1, 1], [True, False, False])) == pytest.approx(1.0)
    assert min_cllr(error_rates([2, 1, 0], [True, False, False])) == pytest.approx(0.0)


def test_cllr_and_actual_dcf_by_hand() -> None:
    # Targets of ratio 3 and 1: log2(4/3) and 1 bit. Non-targets of ratio 1/7 and 7: log2(8/7) and 3 bits.
    llr, target = np.log([3, 1, 1 / 7, 7]), [True, True, False, False]
    assert cllr(llr, target) == pytest.approx((np.log2(4 / 3) + 1 + np.log2(8 / 7) + 3) / 4)
    assert cllr(llr, target, np.array([1.0, 3, 1, 0])) == pytest.approx(((np.log2(4 / 3) + 3) / 4 + np.log2(8 / 7)) / 2)
    assert cllr([1e4, -1e4], [False, True]) == pytest.approx(1e4 / np.log(2))  # no overflow
    # p = 1/4: accepted from the ratio 3 on. One miss of two, one false alarm of two, over the cost of rejecting all.
    assert act_dcf(llr, target, 0.25) == pytest.approx((0.25 / 2 + 0.75 / 2) / 0.25)
    # Misses ten times as dear: from the ratio 0.3 on, so no miss; accepting all would cost .75, rejecting all 2.5.
    assert act_dcf(llr, target, 0.25, c_miss=10) == pytest.approx((0.75 / 2) / 0.75)
    # A ratio at the threshold, 1 for p = 1/2, is accepted: a target here, a non-target there.
    for at_threshold, expected in (([0.0, 1.0, -1.0], 0.0), ([1.0, 1.0, 0.0], 1.0)):
        assert act_dcf(at_threshold, [True, True, False], 0.5) == expected
        assert Measures(at_threshold, [True, True, False], [0.5], llr=True).only(["act_dcf.0.5"])()[0] == expected


def test_curves_of_calibration() -> None:
    # Posteriors .75, .75, .25, .25 at even odds; the upper two are a target and a non-target.
    curve = calibration_curve(np.log([3, 3, 1 / 3, 1 / 3]), [True, False, True, False], bins=2)
    np.testing.assert_allclose(curve.predicted, [0.25, 0.75])
    np.testing.assert_allclose(curve.observed, [0.5, 0.5])
    np.testing.assert_allclose(curve.share, [0.5, 0.5])
    # One target to three non-targets at each ratio, yet the prior is .5: weights make it so.
    uneven = calibration_curve(np.zeros(4), [True, False, False, False], bins=5)
    assert (uneven.predicted.tolist(), uneven.observed.tolist()) == ([0.5], [pytest.approx(0.5)])
    scores, target, _ = tied_trials(4)
    errors = bayes_error_curve(scores, target, np.log([1 / 99, 1 / 3, 4]))
    for index, p in enumerate((0.01, 0.25, 0.8)):
        assert errors.actual[index] == pytest.approx(act_dcf(scores, target, p))
        assert errors.minimum[index] == pytest.approx(min_dcf(error_rates(scores, target), p))


def test_calibrated_gaussian_ratios_are_on_the_diagonal() -> None:
    rng = np.random.default_rng(5)
    target = np.arange(200_000) % 2 == 0
    llr = np.where(target, 2.0, -2.0) + 2.0 * rng.normal(size=len(target))  # variance = twice the mean: calibrated
    curve = calibration_curve(llr, target, bins=10)
    np.testing.assert_allclose(curve.observed, curve.predicted, atol=0.02)
    assert cllr(llr, target) == pytest.approx(min_cllr(error_rates(llr, target)), abs=2e-3)


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([0.1, 0.2], [True, True], "all 2 trials are targets"),
        ([0.1, 0.2], [False, False], "all 2 trials are non-targets"),
        ([], [], "there are no trials"),
        ([0.3, np.nan, 0.2], [True, False, False], "1 of 3 scores are not finite, the first that of trial 2: nan"),
        ([np.inf, 0.2], [True, False], "1 of 2 scores are not finite, the first that of trial 1: inf"),
        ([0.1], [True, False], "two lists of one length"),
    ],
)
def test_bad_input(scores: list[float], target: list[bool], message: str) -> None:
    for use in (error_rates, cllr, lambda *trials: Measures(*trials, [0.01], llr=True)):
        with pytest.raises(ValueError, match=message):
            use(scores, target)


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="target and non-target trials with weight"):
        error_rates([1, 2, 3], [True, False, True], np.array([0.0, 1, 0]))
    with pytest.raises(ValueError, match="expected 3 weights of at least 0"):
        Measures([1, 2, 3], [True, False, True], [0.01], llr=False)([1, -1, 1])
