"""Calibration against counts by hand and minimisers of others; fusion, quality measures, and leaks that are refused."""

import logging

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from spkexp.errors import UserError
from spkexp.scoring.calibrate import Calibration, align, calibrate
from spkexp.scoring.metrics import cllr, eer, error_rates, min_cllr
from spkexp.scoring.quality import features, quality, require_disjoint
from spkexp.scoring.trial_scores import TrialScores


def trial_scores(pairs: list[tuple[str, str]], score: list[float], target: list[bool], **columns: list) -> TrialScores:
    """Over utterances a, b, … in order, spoken by as many speakers unless `columns` say otherwise."""
    names = sorted({name for pair in pairs for name in pair})
    table = pl.DataFrame({"name": names, "speaker": [f"speaker of {name}" for name in names], **columns})
    enroll, test = (np.array([names.index(pair[side]) for pair in pairs]) for side in (0, 1))
    return TrialScores(table, table, enroll, test, np.array(score, dtype=np.float32), np.array(target))


def binary(targets: tuple[int, int], nontargets: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One feature that is 0 or 1: how many targets, and how many non-targets, have which."""
    x = np.repeat([0.0, 1.0, 0.0, 1.0], [*targets, *nontargets])[:, None]
    return x, np.arange(len(x)) < sum(targets)


@pytest.mark.parametrize("p_target", [0.5, 0.01, 0.9])
def test_ratios_of_a_feature_of_two_values_are_those_of_its_counts(p_target: float) -> None:
    # 3 of 4 targets have 1 and 1 of 5 non-targets: two coefficients fit both ratios exactly, whatever the prior.
    x, target = binary((1, 3), (4, 1))
    fitted = Calibration.fit(x, target, ["x"], p_target)
    expected = np.log([0.25 / 0.8, 0.75 / 0.2])
    np.testing.assert_allclose(fitted.apply(np.array([[0.0], [1.0]])), expected, rtol=1e-6)
    assert fitted.offset == pytest.approx(expected[0], rel=1e-6)
    assert fitted.weights[0] == pytest.approx(expected[1] - expected[0], rel=1e-6)


def overlapping(seed: int = 0, trials: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.random(trials) < 0.2
    return rng.normal(size=(trials, 3)) * [1, 50, 0.01] + np.outer(target, [1.5, 30, 0.0]) + [3, -900, 0.2], target


@pytest.mark.parametrize("p_target", [0.5, 0.01])
def test_weights_are_those_that_other_minimisers_find(p_target: float) -> None:
    x, target = overlapping()
    fitted = Calibration.fit(x, target, ["a", "b", "c"], p_target)
    logit = np.log(p_target / (1 - p_target))

    def cost(weights: np.ndarray) -> float:  # the formula of the docstring, of features without a shift for BFGS's sake
        ratios = (x - x.mean(axis=0)) / x.std(axis=0) @ weights[:-1] + weights[-1]
        of_targets, of_nontargets = ratios[target] + logit, ratios[~target] + logit
        misses = np.log1p(np.exp(-of_targets)).mean()
        return p_target * misses + (1 - p_target) * np.log1p(np.exp(of_nontargets)).mean()

    found = minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 1e-10}).x
    np.testing.assert_allclose(fitted.weights, found[:-1] / x.std(axis=0), rtol=1e-4)
    share = np.where(target, p_target / target.sum(), (1 - p_target) / (~target).sum())
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    other = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(scaled, target, share * len(x))
    np.testing.assert_allclose(fitted.apply(x), scaled @ other.coef_[0] + other.intercept_ - logit, atol=1e-5)


def test_units_of_the_features_do_not_matter() -> None:
    x, target = overlapping()
    fitted = Calibration.fit(x, target, ["a", "b", "c"])
    scale, shift = np.array([1e6, -1e-5, 7.0]), np.array([-3e7, 2.0, 0.1])
    other = Calibration.fit(x * scale + shift, target, ["a", "b", "c"])
    np.testing.assert_allclose(other.weights * scale, fitted.weights, rtol=1e-7)
    np.testing.assert_allclose(other.apply(x * scale + shift), fitted.apply(x), atol=1e-7)


@pytest.mark.parametrize("p_target", [0.5, 0.001])
def test_without_an_error_ratios_claim_no_more_than_the_trials_can_vouch_for(
    p_target: float, caplog: pytest.LogCaptureFixture
) -> None:
    # 2 targets, 3 non-targets: a share of 1/4 and of 1/5 counts as if it lay among the others.
    x, target = binary((0, 2), (3, 0))
    fitted = Calibration.fit(x, target, ["x"], p_target)
    expected = np.log([(1 / 4) / (4 / 5), (3 / 4) / (1 / 5)])
    np.testing.assert_allclose(fitted.apply(np.array([[0.0], [1.0]])), expected, rtol=1e-5)
    assert "2 targets and 3 non-targets are told apart without an error" in caplog.text


def test_features_that_say_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    x, target = overlapping()
    once = Calibration.fit(x[:, :1], target, ["a"])
    fitted = Calibration.fit(np.stack([x[:, 0], np.full(len(x), 0.1), x[:, 0]], axis=1), target, ["a", "same", "again"])
    assert fitted.weights[1] == 0
    assert "same is the same for all trials" in caplog.text
    np.testing.assert_allclose(fitted.weights[[0, 2]], once.weights[0] / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("features", "target"),
    [([[1.0], [np.nan]], [True, False]), ([[1.0], [2.0]], [True, True]), ([[1.0]], [True, False])],
)
def test_nonsense_is_refused(features: list, target: list) -> None:
    with pytest.raises(ValueError, match=r"finite|non-target|shape"):
        Calibration.fit(np.array(features), np.array(target), ["a"])


def system(seed: int, prefix: str, noise: int, speakers: int = 40) -> TrialScores:
    """Cosines of 5 noisy utterances of each speaker. prefix: of names; noise: seed of what the system gets wrong."""
    rng, own = np.random.default_rng(seed), np.random.default_rng([seed, noise])
    speaker = np.repeat(np.arange(speakers), 5)
    duration = rng.uniform(0.5, 8, len(speaker))
    voices = rng.normal(size=(speakers, 16))[speaker] + rng.normal(size=(len(speaker), 16)) / np.sqrt(duration)[:, None]
    voices += 0.8 * own.normal(size=voices.shape)
    magnitude = np.linalg.norm(voices, axis=1)
    enroll, test = np.triu_indices(len(speaker), k=1)
    score = np.einsum("td,td->t", voices[enroll], voices[test]) / magnitude[enroll] / magnitude[test]
    table = pl.DataFrame(
        {
            "name": [f"{prefix}{number}" for number in range(len(speaker))],
            "speaker": [f"{prefix}{number}" for number in speaker],
            "duration": duration,
            "magnitude": magnitude,
        }
    )
    return TrialScores(table, table, enroll, test, score.astype(np.float32), speaker[enroll] == speaker[test])


def test_other_speakers_ratios_cost_little_more_than_the_best_ones() -> None:
    evaluated = system(1, "test", 0)
    ratios, fitted = calibrate([system(0, "val", 0)], [evaluated])
    assert fitted.names == ("score",)
    assert ratios.target is not None
    best = min_cllr(error_rates(ratios.score, ratios.target))
    assert cllr(evaluated.score, ratios.target) > best + 0.3
    assert cllr(ratios.score, ratios.target) < best + 0.03
    rates = [eer(error_rates(scores.score, ratios.target)) for scores in (evaluated, ratios)]
    assert rates[1] == pytest.approx(rates[0], abs=1e-4)  # a weight above 0 keeps the order
    assert "magnitude" in ratios.tested.columns


def test_a_fusion_is_better_than_its_systems_and_better_still_with_what_is_known_of_quality() -> None:
    learnt = [system(0, "val", noise) for noise in range(3)]
    evaluated = [system(1, "test", noise) for noise in range(3)]
    shuffled = evaluated[1].take(np.random.default_rng(0).permutation(len(evaluated[1])))
    names = ["a", "b", "c"]
    fused, fitted = calibrate(learnt, [evaluated[0], shuffled, evaluated[2]], names)
    same, _ = calibrate(learnt, evaluated, names)
    np.testing.assert_array_equal(fused.score, same.score)
    target = fused.target
    assert target is not None
    best = [min_cllr(error_rates(one.score, target)) for one in evaluated]
    assert cllr(fused.score, target) < min(best) - 0.05
    aware, fitted = calibrate(learnt, evaluated, names, ["duration", "magnitude"], 0.3)
    assert cllr(aware.score, target) < cllr(fused.score, target) - 0.005
    assert fitted.names[:5] == ("a", "b", "c", "duration min", "duration max")
    assert fitted.names[-2:] == ("c magnitude min", "c magnitude max")
    assert "magnitude" not in aware.tested.columns  # it was that of one of three systems
    assert aware.enrolled is aware.tested


QUALITY = {"duration": [1.0, np.e, np.e**2], "magnitude": [np.e, 1.0, 1.0], "cohort_mean": [-0.5, 0.25, None]}


def test_quality_measures_by_hand() -> None:
    pairs = [("a", "b"), ("b", "a"), ("c", "b")]
    scores = trial_scores(pairs, [1, 2, 3], [False] * 3, **QUALITY)
    np.testing.assert_allclose(quality(scores, "duration"), [[0, 1], [0, 1], [1, 2]])
    np.testing.assert_allclose(quality(scores, "magnitude"), [[0, 1], [0, 1], [0, 0]], atol=1e-15)
    table, names = features([scores, scores], ["x", "y"], ["duration"])
    np.testing.assert_allclose(table, [[1, 1, 0, 1], [2, 2, 0, 1], [3, 3, 1, 2]])
    assert names == ["x", "y", "duration min", "duration max"]
    np.testing.assert_allclose(quality(scores.take(np.array([0])), "cohort_mean"), [[-0.5, 0.25]])
    with pytest.raises(UserError, match=r"quality=cohort_mean: 1 of 3 trials have none, such as that of 'c'"):
        quality(scores, "cohort_mean")
    with pytest.raises(UserError, match=r"without a column 'duration'; .*score the run again"):
        quality(trial_scores(pairs, [1, 2, 3], [False] * 3), "duration")
    nan = trial_scores(pairs, [1, np.nan, 3], [False] * 3)
    with pytest.raises(UserError, match="x: 1 scores are not finite"):
        features([nan], ["x"], [])


def test_a_calibration_that_has_heard_the_speakers_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [("a", "b"), ("c", "d")]
    heard = trial_scores(pairs, [1, 2], [False] * 2, speaker=["1", "2", "3", "4"], path=["/1", "/2", "/3", "/4"])
    other = trial_scores(pairs, [1, 2], [False] * 2, speaker=["5", "2", "4", "3"], path=["/a", "/b", "/c", "/d"])
    with pytest.raises(UserError, match=r"on=val: shares 3 speakers \(2, 3, …\) with test: .*calibrate on trials of"):
        require_disjoint(heard, other, "val", "test")
    # Only who occurs in the trials counts: a, b are 1, 2 and 5, 2; of c and d nothing is left.
    with pytest.raises(UserError, match=r"shares 1 speaker \(2\) with"):
        require_disjoint(heard.take(np.array([0])), other.take(np.array([0])))
    require_disjoint(heard.take(np.array([0])), other.take(np.array([1])))
    assert caplog.text == ""
    unknown = trial_scores(pairs, [1, 2], [False] * 2, speaker=["5", None, "6", "7"], path=["/a", "/b", "/3", "/d"])
    with pytest.raises(UserError, match=r"shares 1 utterance \(/3\) with"):
        require_disjoint(heard, unknown)
    with pytest.raises(UserError, match=r"shares 4 utterances \(a, b, …\) with"):  # no paths: it is the names that tell
        require_disjoint(heard, trial_scores(pairs, [1, 2], [False] * 2, speaker=["5", "6", "7", None]))
    require_disjoint(heard.take(np.array([0])), unknown.take(np.array([1])), "val", "test")
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        require_disjoint(heard.take(np.array([1])), unknown.take(np.array([0])), "val", "test")
    assert "test: not all speakers are known, so that val and test could share some" in caplog.text
    # Models are called as they like, but who speaks counts.
    models = pl.DataFrame({"name": ["a", "b"], "speaker": ["8", "1"], "path": pl.Series([None] * 2, dtype=pl.String)})
    tested = pl.DataFrame({"name": ["y", "z"], "speaker": ["8", "9"]})
    row, score = np.array([0, 1]), np.zeros(2, dtype=np.float32)
    enrolling = TrialScores(models, tested, row, row, score, None)
    require_disjoint(heard, enrolling.take(row[:1]))
    with pytest.raises(UserError, match=r"shares 1 speaker \(1\) with evaluated"):
        require_disjoint(heard, enrolling)


def test_the_same_trials_in_another_order_are_brought_into_one() -> None:
    first = trial_scores([("a", "b"), ("b", "a"), ("a", "b"), ("c", "a")], [1, 2, 3, 4], [True, False, True, False])
    # Other names come first in the other system's table, and a trial that comes twice keeps its order.
    table = pl.DataFrame({"name": ["c", "x", "b", "a"], "speaker": [None] * 4}, schema_overrides={"speaker": pl.String})
    enroll, test = np.array([0, 3, 2, 3]), np.array([3, 2, 3, 2])
    target = np.array([False, True, False, True])
    second = TrialScores(table, table, enroll, test, np.array([40, 10, 20, 30], dtype=np.float32), target)
    aligned = align([first, second], ["one", "two"], "test")
    assert aligned[0] is first
    assert aligned[1].score.tolist() == [10, 20, 30, 40]
    with pytest.raises(UserError, match="one and two: their trials test have not the same labels"):
        align([first, TrialScores(table, table, enroll, test, second.score, ~target)], ["one", "two"], "test")
    with pytest.raises(UserError, match="have not the same labels"):
        align([first, TrialScores(table, table, enroll, test, second.score, None)], ["one", "two"], "test")
    lacking = second.take(np.array([1, 2, 3]))
    with pytest.raises(UserError, match="trials=test: two lacks 1 of the 4 trials of one, such as 'c a'; systems"):
        align([first, lacking], ["one", "two"], "test")
    with pytest.raises(UserError, match="trials=test: two lacks 1 of the 4 trials of one, such as 'c a'; systems"):
        align([lacking, second], ["two", "one"], "test")
    with pytest.raises(UserError, match="one has 4 of them, two 3: some come twice"):
        align([first, second.take(np.array([0, 1, 2]))], ["one", "two"], "test")


def test_lists_that_nothing_can_be_learnt_on() -> None:
    learnt, evaluated = system(0, "val", 0), system(1, "test", 0)
    assert learnt.target is not None
    with pytest.raises(UserError, match="on=calibration: has no non-targets"):
        calibrate([learnt.take(learnt.target)], [evaluated])
    blind = TrialScores(learnt.enrolled, learnt.tested, learnt.enroll, learnt.test, learnt.score, None)
    with pytest.raises(UserError, match="on=val: has no labels"):
        calibrate([blind], [evaluated], on="val")


def test_scores_that_mean_the_opposite_are_told(caplog: pytest.LogCaptureFixture) -> None:
    learnt, evaluated = system(0, "val", 0), system(1, "test", 0)
    distances = TrialScores(learnt.enrolled, learnt.tested, learnt.enroll, learnt.test, -learnt.score, learnt.target)
    _, fitted = calibrate([distances], [evaluated])
    assert fitted.weights[0] < 0
    assert "higher scores do not mean that speakers are the same" in caplog.text
