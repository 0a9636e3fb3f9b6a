"""Groups of trials by hand, and error rates within them."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from spkexp.errors import UserError
from spkexp.scoring.conditions import MAX_GROUPS, MIN_TRIALS, breakdown, groups
from spkexp.scoring.metrics import eer, error_rates
from spkexp.scoring.trial_scores import TrialScores


def trial_scores(enroll: list[int], test: list[int], target: list[bool] | None = None, **columns: Any) -> TrialScores:
    table = pl.DataFrame({"name": [f"u{row}" for row in range(max(enroll + test) + 1)], **columns})
    score = np.arange(len(enroll), dtype=np.float32)
    labels = None if target is None else np.array(target)
    return TrialScores(table, table, np.array(enroll), np.array(test), score, labels)


def members(scores: TrialScores, column: str, edges: list[float] | None = None) -> list[str]:
    """The group of each trial."""
    found = groups(scores, column, edges)
    return [found.names[member] for member in found.member]


def test_pairs_of_values_whichever_is_enrolled() -> None:
    scores = trial_scores([0, 1, 2, 1, 0, 3], [1, 0, 1, 1, 2, 0], gender=["m", "f", "m", None])
    assert members(scores, "gender") == ["f m", "f m", "f m", "f f", "m m", "unknown"]
    assert groups(scores, "gender").names == ["f f", "f m", "m m", "unknown"]
    assert members(trial_scores([0, 1], [1, 1], far=[True, False]), "far") == ["false true", "false false"]
    # 'a b' with 'c' is not 'a' with 'b c'.
    places = trial_scores([0, 1], [2, 3], place=["a b", "a", "c", "b c"])
    assert members(places, "place") == ["a b | c", "a | b c"]


def test_numbers_by_the_lesser_side() -> None:
    scores = trial_scores([0, 1, 2, 3, 4], [4, 2, 3, 4, 4], duration=[1.5, 2.0, 3.0, 4.0, 60.0])
    assert members(scores, "duration", [2, 4]) == ["< 2 s", "2–4 s", "2–4 s", "≥ 4 s", "≥ 4 s"]
    # A group that no trial is in is listed all the same where the edges are a user's.
    assert groups(scores, "duration", [0.5, 2, 4]).names == ["< 0.5 s", "0.5–2 s", "2–4 s", "≥ 4 s"]
    unknown = trial_scores([0, 1, 2], [2, 2, 2], age=[None, 30, 40])
    assert members(unknown, "age", [35]) == ["unknown", "< 35", "≥ 35"]


def test_quartiles_to_two_digits() -> None:
    durations = [1.0 + 0.01 * row for row in range(400)]  # quartiles at 1.9975, 2.995 and 3.9925
    rows = list(range(400))
    scores = trial_scores(rows, rows, duration=durations)
    assert groups(scores, "duration").names == ["< 2 s", "2–3 s", "3–4 s", "≥ 4 s"]
    assert np.bincount(groups(scores, "duration").member).tolist() == [100, 100, 100, 100]
    alike = trial_scores([0, 1], [1, 0], duration=[3.0, 3.0])
    assert members(alike, "duration") == ["3 s", "3 s"]
    nearly = trial_scores([0, 1], [0, 1], duration=[3.001, 3.002])
    assert members(nearly, "duration") == ["all", "all"]
    none = trial_scores([0, 1], [1, 0], duration=pl.Series([None, None], dtype=pl.Float64))
    assert members(none, "duration") == ["unknown", "unknown"]


def test_rates_within_each_group_and_counts_of_all() -> None:
    rng = np.random.default_rng(0)
    gender = ["f", "m", None]
    enroll, test = rng.integers(3, size=900), rng.integers(3, size=900)
    target = (enroll == test) & (rng.random(900) < 0.5)
    table = pl.DataFrame({"name": ["0", "1", "2"], "gender": gender})
    score = rng.normal(size=900) + target * (1 + enroll)
    scores = TrialScores(table, table, enroll, test, score.astype(np.float32), target)

    def measure(part: TrialScores) -> dict[str, float]:
        assert part.target is not None
        return {"eer": eer(error_rates(part.score, part.target))}

    found = breakdown(scores, ["gender"], measure)["gender"]
    assert list(found) == ["f f", "f m", "m m", "unknown"]
    masks = {
        "f f": (enroll == 0) & (test == 0),
        "f m": (enroll != test) & (enroll < 2) & (test < 2),
        "m m": (enroll == 1) & (test == 1),
        "unknown": (enroll == 2) | (test == 2),
    }
    for name, mask in masks.items():
        entry = {"num_trials": mask.sum(), "num_targets": target[mask].sum()}
        if name != "f m":  # no targets: no rates
            entry["eer"] = eer(error_rates(scores.score[mask], target[mask]))
        assert found[name] == entry
    assert sum(entry["num_trials"] for entry in found.values()) == 900


@pytest.mark.parametrize(("targets", "measured"), [(MIN_TRIALS, True), (MIN_TRIALS - 1, False)])
def test_few_trials_give_no_rates(targets: int, measured: bool) -> None:
    target = [row < targets for row in range(50)]
    scores = trial_scores([0] * 50, [0] * 50, target, language=["ar"])
    expected = {"num_trials": 50, "num_targets": targets} | ({"rate": 1} if measured else {})
    assert breakdown(scores, ["language"], lambda part: {"rate": 1}) == {"language": {"ar ar": expected}}


def test_what_cannot_be_broken_down() -> None:
    scores = trial_scores([0, 1], [1, 0], [True, False], gender=["f", "m"], duration=[1.0, 2.0])
    with pytest.raises(UserError, match=r"utterances .* no column 'sex'; there are gender, duration\. scoring\.cond"):
        breakdown(scores, ["sex"], lambda part: {})
    with pytest.raises(UserError, match=r"edges of bins must rise, got \[2, 1\]"):
        breakdown(scores, ["duration"], lambda part: {}, {"duration": [2, 1]})
    with pytest.raises(UserError, match="'gender' holds no numbers"):
        breakdown(scores, ["gender"], lambda part: {}, {"gender": [2, 1]})
    with pytest.raises(UserError, match="no labels"):
        breakdown(trial_scores([0], [0], gender=["f"]), ["gender"], lambda part: {})
    models = TrialScores(
        pl.DataFrame({"name": ["m"]}), scores.tested, scores.enroll * 0, scores.test, scores.score, None
    )
    with pytest.raises(UserError, match="the models of the trials have no column 'gender'"):
        groups(models, "gender")
    rows = list(range(MAX_GROUPS + 1))
    with pytest.raises(UserError, match="'session' has 1,001 different pairs"):
        groups(trial_scores(rows, rows, session=[f"s{row}" for row in rows]), "session")
