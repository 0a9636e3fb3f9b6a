"""Error rates against hand-worked numbers and a slow search over thresholds."""

import itertools

import numpy as np
import pytest

from spkexp.scoring.metrics import Ranking, eer, eer_threshold, error_rates, min_dcf
from spkexp.scoring.statistics import eer_interval


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


@pytest.mark.parametrize(
    ("scores", "target"), [([0.1, 0.2], [True, True]), ([np.nan, 0.2], [True, False]), ([0.1], [True, False])]
)
def test_bad_input(scores: list[float], target: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"score|target"):
        error_rates(scores, target)


def test_interval_is_wider_than_one_over_trials() -> None:
    """Speakers differ, so trials of one speaker err together; resampling trials would not see it."""
    rng = np.random.default_rng(0)
    speakers, each = 12, 10
    speaker = np.repeat(np.arange(speakers), each)
    offset = rng.normal(0, 1.0, speakers)
    first, second = np.triu_indices(speakers * each, k=1)
    same = speaker[first] == speaker[second]
    scores = 2.0 * same + offset[speaker[first]] + offset[speaker[second]] + rng.normal(0, 0.3, len(first))
    ranking = Ranking(scores, same)
    low, high = eer_interval(ranking, speaker[first], speaker[second], replicates=200)
    value = eer(ranking.error_rates())
    assert low < value < high
    naive = np.sqrt(value * (1 - value) / same.sum())
    assert high - low > 3 * 1.96 * naive
    assert eer_interval(ranking, speaker[first], speaker[second], replicates=200) == (low, high)
