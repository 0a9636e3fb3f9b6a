"""Resampled speakers, intervals and differences against hand-worked numbers and simulated lists of known truth."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t

from spkexp.counter import generator
from spkexp.scoring.measures import Measures
from spkexp.scoring.resampling import Draws, SpeakerBootstrap, resample
from spkexp.scoring.statistics import MIN_SPEAKERS, combine_seeds, difference, interval


def weights_of(bootstrap: SpeakerBootstrap, replicate: int) -> np.ndarray:
    trials = np.arange(len(bootstrap))
    return bootstrap.places(trials).by_speakers(bootstrap.counts(range(replicate, replicate + 1)))[0]


def test_trials_count_as_often_as_their_speakers_are_drawn() -> None:
    enroll, test = np.array([3, 3, 7, 3, 9, 9]), np.array([3, 7, 7, 9, 9, 7])  # the speakers 3, 7 and 9
    bootstrap = SpeakerBootstrap(enroll, test, replicates=5, seed=4)
    assert bootstrap.num_speakers == 3
    various = set()
    for replicate in range(5):
        drawn = generator(4, 0, replicate).integers(3, size=3)
        a, b, c = ((drawn == speaker).sum() for speaker in range(3))
        assert weights_of(bootstrap, replicate).tolist() == [a, a * b, b, a * c, c, c * b]
        various.add((a, b, c))
    assert len(various) > 2


def test_pairs_count_never_or_twice() -> None:
    enroll, test = np.array([0, 1, 2, 0, 1, 2, 0]), np.array([0, 0, 1, 2, 0, 2, 1])
    bootstrap = SpeakerBootstrap(enroll, test, replicates=5)
    counts = bootstrap.pair_counts(range(40))
    weights = bootstrap.places(np.arange(7)).by_pairs(counts)
    assert (weights[:, [0, 5]] == 1).all()  # of one speaker
    assert set(weights[:, [1, 2, 3]].ravel().tolist()) == {0.0, 2.0}
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 6])  # the same two the other way round
    assert 5 < (weights[:, 1] == weights[:, 2]).sum() < 35  # pairs are independent


def simulated(seed: int, speakers: int = 20, each: int = 20, per_pair: int = 4) -> tuple[np.ndarray, ...]:
    """Scores with parts of their speakers, all of variance 1 about ±1.5: the EER is Φ(-1.5)."""
    rng = np.random.default_rng(seed)
    of_speaker = rng.normal(size=speakers)
    one = np.repeat(np.arange(speakers), each)
    first, second = (np.repeat(side, per_pair) for side in np.triu_indices(speakers, k=1))
    enroll, test = np.append(one, first), np.append(one, second)
    target = np.arange(len(enroll)) < len(one)
    shared = np.where(target, of_speaker[enroll] * 0.5, (of_speaker[enroll] + of_speaker[test]) * 0.3)
    own = np.where(target, np.sqrt(0.75), np.sqrt(0.82)) * rng.normal(size=len(target))
    return np.where(target, 1.5, -1.5) + shared + own, target, enroll, test


def test_replicates_are_the_metrics_of_repeated_trials() -> None:
    score, target, enroll, test = simulated(0, speakers=10, each=8, per_pair=6)
    measures = Measures(score, target, [0.1], llr=True)
    bootstrap = SpeakerBootstrap(enroll, test, replicates=30)
    found = resample(measures, bootstrap)
    lowered = []
    for replicate in range(30):
        copies = weights_of(bootstrap, replicate).astype(int)
        repeated = Measures(np.repeat(score, copies), np.repeat(target, copies), [0.1], llr=True)
        expected = dict(zip(repeated.keys, repeated().tolist(), strict=True))
        values = dict(zip(found.keys, found.speakers[replicate].tolist(), strict=True))
        for key in ("eer", "auc", "cllr", "act_dcf.0.1"):
            assert values[key] == pytest.approx(expected[key], abs=1e-12)
        lowered.append([expected[key] - values[key] for key in ("min_dcf.0.1", "min_cllr")])
    assert np.max(lowered) <= 1e-12  # held fast, what is optimised can only be worse
    optimism = [found.of(key).optimism for key in ("min_dcf.0.1", "min_cllr")]
    assert optimism == pytest.approx(np.mean(lowered, axis=0).tolist(), abs=1e-12)
    assert max(optimism) < -0.001


def test_a_cost_that_a_few_errors_make_is_not_resampled() -> None:
    """45 pairs of speakers, 90 non-targets: at .1 a cost of 1 is 10 false alarms, at .2 it is 22, at .9 10 misses."""
    score, target, enroll, test = simulated(0, speakers=10, each=9, per_pair=2)
    found = resample(Measures(score, target, [0.1, 0.2, 0.9], llr=True), SpeakerBootstrap(enroll, test, 30))
    known = {key: bool(np.isfinite(found.of(key).speakers).all()) for key in found.keys}
    assert not any(known[f"{cost}.{p}"] for cost in ("min_dcf", "act_dcf") for p in (0.1, 0.9))
    assert all(known[key] for key in ("eer", "auc", "cllr", "min_dcf.0.2", "act_dcf.0.2"))


def test_replicates_depend_on_seed_and_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    score, target, enroll, test = simulated(1)
    measures = Measures(score, target, [0.1], llr=False)
    whole = resample(measures, SpeakerBootstrap(enroll, test, 40, seed=1), threads=1)
    monkeypatch.setattr("spkexp.scoring.resampling.BLOCK", 3 * len(score))
    # In other blocks, by several threads, with other numbers for the speakers, and fewer of them asked for.
    again = resample(measures, SpeakerBootstrap(5 * enroll + 2, 5 * test + 2, 40, seed=1), threads=3)
    np.testing.assert_array_equal(whole.speakers, again.speakers)
    np.testing.assert_array_equal(whole.pairs, again.pairs)
    fewer = resample(measures, SpeakerBootstrap(enroll, test, 7, seed=1), ["auc"])
    np.testing.assert_array_equal(fewer.speakers[:, 0], whole.speakers[:7, whole.keys.index("auc")])
    other = resample(measures, SpeakerBootstrap(enroll, test, 40, seed=2), ["auc"])
    assert not np.isclose(other.speakers[:, 0], whole.speakers[:, whole.keys.index("auc")]).any()


def test_chance_of_the_pair_counts_three_times() -> None:
    """Non-targets without any part of a speaker: the variance that the two kinds of replicates see is 3 to 1."""
    rng = np.random.default_rng(2)
    first, second = np.triu_indices(60, k=1)
    score = np.append(np.full(60, 1.0), rng.normal(size=len(first)))
    enroll, test = np.append(np.arange(60), first), np.append(np.arange(60), second)
    measures = Measures(score, enroll == test, [0.5], llr=True).only(["auc"])
    draws = resample(measures, SpeakerBootstrap(enroll, test, 1000)).of("auc")
    assert np.var(draws.speakers) / np.var(draws.pairs) == pytest.approx(3, abs=0.6)
    truth = norm.cdf(1) * norm.sf(1) / len(first)  # of the share of the non-targets below 1
    assert np.var(draws.pairs) == pytest.approx(truth, rel=0.3)


def test_replicates_without_a_kind_of_trial_are_left_out() -> None:
    # One speaker of four has the targets, and the non-targets are of two of the others.
    enroll, test = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 0, 2, 3, 1, 2])
    measures = Measures([3.0, 2, 1, 4, 0, 1], enroll == test, [0.5], llr=False)
    draws = resample(measures, SpeakerBootstrap(enroll, test, 300)).of("eer")
    outcomes = list(itertools.product(range(4), repeat=4))
    without = [0 not in drawn or len(set(drawn) - {0}) < 2 for drawn in outcomes]
    assert np.isnan(draws.speakers).mean() == pytest.approx(sum(without) / len(outcomes), abs=0.08)
    assert interval(0.4, replace(draws, num_speakers=100)) is None


def drawn(deviation: float, *, about: float = 0.0, pairs: float = 0.0, n: int = 41, **more: object) -> Draws:
    """Of exactly these standard deviations."""
    sign = np.resize([1.0, -1.0], 100)
    return Draws(about + deviation * sign, about + pairs * sign, num_speakers=n, **{"optimism": 0.0, **more})


def around(centre: float, step: float) -> tuple[float, float]:
    """log(x + step²/10centre) moves by step/(centre + step²/10centre) where x does by the step."""
    pad = step * step / (10 * centre)
    reach = step / (centre + pad)
    return (centre + pad) * np.exp(-reach) - pad, (centre + pad) * np.exp(reach) - pad


def test_interval_by_hand() -> None:
    # 41 speakers: 20 degrees of freedom, and V - 2P·41/61, over 39/41.
    low, high = interval(0.2, drawn(0.03, pairs=0.01))
    variance = (0.03**2 - 2 * 0.01**2 * 41 / 61) * 41 / 39
    step = t.ppf(0.975, 20) * np.sqrt(variance)
    assert (low, high) == pytest.approx(around(0.2, step))
    # The pairs' part cannot be more than all of it: a third of V is left.
    step = t.ppf(0.975, 20) * np.sqrt(0.03**2 / 3 * 41 / 39)
    assert interval(0.2, drawn(0.03, pairs=0.03, bounded=False)) == pytest.approx(around(0.2, step))
    # Optimism of -0.05 moves the middle up and widens.
    step = t.ppf(0.975, 20) * np.sqrt(0.03**2 * 41 / 39 + 0.05**2)
    assert interval(0.2, drawn(0.03, optimism=-0.05)) == pytest.approx(around(0.25, step))


@pytest.mark.parametrize("optimism", [0.0, -1e-9])
def test_interval_grows_with_the_error_and_does_not_explode(optimism: float) -> None:
    deviations = np.geomspace(1e-5, 0.5, 200)
    steps = t.ppf(0.975, 20) * np.sqrt(41 / 39) * deviations
    for value in (0.001, 0.05, 0.3, 0.5, 0.8, 0.99, 0.999):
        low, high = np.array([interval(value, drawn(one, optimism=optimism)) for one in deviations]).T
        assert np.diff(low).max() <= 1e-15
        assert np.diff(high).min() >= -1e-15
        assert ((low >= 0) & (low < value) & (value < high) & (high <= 1)).all()
        # A small error makes an even interval, whatever the scale; no scale stretches more than exp(√10/2) times.
        assert (low[0], high[0]) == pytest.approx((value - steps[0], value + steps[0]), abs=0.03 * steps[0])
        assert (np.maximum(value - low, high - value) <= np.exp(np.sqrt(10) / 2) * steps).all()


def test_interval_of_a_cost_near_what_rejecting_everything_costs() -> None:
    """A minDCF of .990 (.168 either way) is not 0 to 1."""
    spread = 0.168 / (t.ppf(0.975, 20) * np.sqrt(41 / 39))
    low, high = interval(0.989, drawn(spread, optimism=-1e-3))
    assert (low, high) == (pytest.approx(around(0.990, 0.168)[0], abs=1e-4), 1.0)
    assert 0.81 < low < 0.84
    # At 1 nothing varies with the threshold held fast; what optimising finds in the replicates is left.
    low, high = interval(1.0, drawn(0.0, about=1.0, optimism=-0.03))
    assert (low, high) == (pytest.approx(around(1.0, t.ppf(0.975, 20) * 0.03)[0]), 1.0)


def test_interval_of_a_quality_mirrors_that_of_an_error() -> None:
    low, high = interval(0.99, drawn(0.02))
    assert (low, high) == pytest.approx(tuple(1 - end for end in reversed(interval(0.01, drawn(0.02)))))
    assert 0.99 - low > 3 * (high - 0.99)


def test_no_interval_where_nothing_can_be_said() -> None:
    assert interval(0.2, drawn(0.03, n=MIN_SPEAKERS)) is not None
    assert interval(0.2, drawn(0.03, n=MIN_SPEAKERS - 1)) is None
    assert interval(0.2, drawn(0.0)) is None  # no replicate differs
    assert interval(0.0, drawn(0.03)) is None  # not one error
    assert interval(1.0, drawn(0.03)) is None  # an AUC without one error
    assert interval(1.0, drawn(0.0)) is None
    assert interval(1.2, drawn(0.03, bounded=False)) is not None


def test_difference_by_hand() -> None:
    # Replicates move together by .05 and apart by .01: what moves both does not matter.
    sign, other = np.resize([1.0, -1.0], 100), np.repeat([1.0, -1.0], 50)
    still = np.zeros(100)
    a, b = Draws(0.05 * sign, still, 0.0, 41), Draws(0.05 * sign + 0.01 * other, still, 0.0, 41)
    found = difference(0.25, a, 0.22, b)
    error = 0.01 * np.sqrt(41 / 39)
    assert found.value == pytest.approx(0.03)
    assert (found.low, found.high) == pytest.approx(tuple(0.03 + np.array([-1, 1]) * t.ppf(0.975, 40) * error))
    assert found.p_value == pytest.approx(2 * t.sf(0.03 / error, 40))
    back = difference(0.22, b, 0.25, a)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert back.p_value == pytest.approx(found.p_value)


def test_difference_of_what_is_optimised() -> None:
    # Flattered by .02 and by .03: the difference is .01 more, known to .01 and a quarter of either's square.
    sign, still = np.resize([0.01, -0.01], 100), np.zeros(100)
    found = difference(0.25, Draws(sign, still, -0.02, 41), 0.22, Draws(still, still, -0.03, 41))
    variance = 0.01**2 * 41 / 39 + 0.01**2 + (0.02**2 + 0.03**2) / 4
    assert (found.low + found.high) / 2 == pytest.approx(0.03 - 0.01)
    assert found.high - found.low == pytest.approx(2 * t.ppf(0.975, 40) * np.sqrt(variance))
    assert found.p_value == pytest.approx(2 * t.sf(0.02 / np.sqrt(variance), 40))


def test_a_system_does_not_differ_from_itself() -> None:
    found = difference(0.25, drawn(0.05), 0.25, drawn(0.05))
    assert (found.value, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert difference(0.25, drawn(0.05, n=3), 0.2, drawn(0.05, n=3)) is None
    with pytest.raises(ValueError, match="same trials"):
        difference(0.25, drawn(0.05), 0.25, drawn(0.05, n=42))


def test_seeds_by_hand() -> None:
    values = [0.20, 0.23, 0.26]  # variance .0009 between the seeds
    mean, draws = combine_seeds(values, [drawn(0.03)] * 3)
    assert mean == pytest.approx(0.23)
    assert draws.of_seeds == pytest.approx(0.0009 / 3)
    speakers = 0.03**2 * 41 / 39
    variance = speakers + 0.0003
    freedom = variance**2 / (speakers**2 / 20 + 0.0003**2 / 2)
    step = t.ppf(0.975, freedom) * np.sqrt(variance)
    assert interval(mean, draws) == pytest.approx(around(0.23, step))
    # One seed says nothing of seeds.
    assert interval(*combine_seeds(values[:1], [drawn(0.03)])) == pytest.approx(interval(0.20, drawn(0.03)))
    # Of two groups both add up.
    against = difference(mean, draws, 0.2, drawn(0.03))
    alone = t.ppf(0.975, 2) * np.sqrt(0.0003)
    assert (against.low, against.high) == pytest.approx((0.03 - alone, 0.03 + alone))
    both = difference(mean, draws, *combine_seeds([0.10, 0.13, 0.16], [drawn(0.03)] * 3))
    alone = t.ppf(0.975, 4) * np.sqrt(0.0006)
    assert (both.low, both.high) == pytest.approx((0.10 - alone, 0.10 + alone))


def test_what_chance_moves_seeds_apart_is_not_put_down_to_them() -> None:
    """Values as far apart as the trials' chances alone would have them."""
    rng = np.random.default_rng(3)
    moved = rng.normal(size=(3, 1000))
    moved -= moved.mean(axis=1, keepdims=True)
    seeds = [Draws(0.01 * row, np.zeros(200), 0.0, 400) for row in moved]
    assert combine_seeds([0.19, 0.20, 0.21], seeds)[1].of_seeds == pytest.approx(0, abs=0.0001 / 3 * 0.1)
    assert combine_seeds([0.17, 0.20, 0.23], seeds)[1].of_seeds == pytest.approx(0.0008 / 3, rel=0.05)


def test_interval_is_wider_than_one_over_trials() -> None:
    """Speakers differ, so trials of one speaker err together; resampling trials would not see it."""
    speakers, each = 30, 12
    speaker = np.repeat(np.arange(speakers), each)
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 1.0, speakers)
    first, second = np.triu_indices(speakers * each, k=1)
    enroll, test = speaker[first], speaker[second]
    same = enroll == test
    scores = 2.0 * same + offset[enroll] + offset[test] + rng.normal(0, 0.3, len(first))
    measures = Measures(scores, same, [0.5], llr=False).only(["eer"])
    low, high = interval(measures()[0], resample(measures, SpeakerBootstrap(enroll, test, 200)).of("eer"))
    value = measures()[0]
    assert low < value < high
    assert high - low > 2.5 * 2 * 1.96 * np.sqrt(value * (1 - value) / same.sum())


@pytest.mark.parametrize("lists", [150, pytest.param(1500, marks=pytest.mark.slow)])
def test_intervals_hold_the_truth(lists: int) -> None:
    truth = {"eer": norm.cdf(-1.5), "auc": norm.cdf(3 / np.sqrt(2))}
    held = dict.fromkeys(truth, 0)
    for seed in range(lists):
        score, target, enroll, test = simulated(seed)
        measures = Measures(score, target, [0.5], llr=False).only(list(truth))
        draws = resample(measures, SpeakerBootstrap(enroll, test, 100, seed=seed), threads=1)
        for key, value in zip(truth, measures().tolist(), strict=True):
            low, high = interval(value, draws.of(key))
            held[key] += low <= truth[key] <= high
    error = np.sqrt(0.95 * 0.05 / lists)
    for count in held.values():
        assert 0.93 - 2 * error < count / lists < 0.97 + 2 * error
