"""What a comparison makes of the scores of runs: intervals, differences with p-values, and why there are none."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from spkexp.errors import UserError
from spkexp.report.comparison.aligned import OtherTrials, aligned
from spkexp.report.comparison.content import content_of, holm
from spkexp.report.comparison.ranking import comparison
from spkexp.report.comparison.runs import read_runs
from spkexp.scoring.measures import Measures
from spkexp.scoring.resampling import SpeakerBootstrap, resample
from spkexp.scoring.statistics import combine_seeds, difference, interval
from spkexp.scoring.trial_scores import TrialScores
from tests.comparison_tools import make_run, trial_scores

REPLICATES = 50


def content(places: Sequence[Path], replicates: int = REPLICATES, **how: Any) -> dict[str, Any]:
    return content_of(comparison(read_runs(places), **how), replicates=replicates)


def draws(scores: TrialScores, key: str) -> tuple[float, Any]:
    assert scores.target is not None
    assert scores.speakers is not None
    measures = Measures(scores.score, scores.target, [0.01], llr=False)
    sampled = resample(measures, SpeakerBootstrap(*scores.speakers, REPLICATES))
    return float(measures()[measures.keys.index(key)]), sampled.of(key)


def test_intervals_and_differences_are_those_of_the_statistics(tmp_path: Path) -> None:
    """Two seeds of the reference and one run of another configuration, against the functions called one by one."""
    own = {"a-0": trial_scores(3.0, 1), "a-1": trial_scores(3.0, 2), "b": trial_scores(2.0, 3)}
    keys = {"a-0": ["seed=0"], "a-1": ["seed=1"], "b": ["loss.margin=0.3"]}
    found = content([make_run(tmp_path / name, keys[name], scores) for name, scores in own.items()])
    assert [len(row["runs"]) for row in found["rows"]] == [2, 1]
    assert found["reference"] == 0
    for row in found["rows"]:  # too few non-targets for one
        assert row["metrics"]["min_dcf.0.01"]["ci95"] is None
    each = {name: draws(scores, "eer") for name, scores in own.items()}
    mean = combine_seeds([each["a-0"][0], each["a-1"][0]], [each["a-0"][1], each["a-1"][1]])
    first, second = (row["metrics"]["eer"] for row in found["rows"])
    assert first["value"] == pytest.approx(mean[0])
    assert first["ci95"] == pytest.approx(interval(*mean))
    assert second["ci95"] == pytest.approx(interval(*each["b"]))
    expected = difference(*each["b"], *mean)
    assert expected is not None
    assert second["difference"]["value"] == pytest.approx(expected.value)
    assert second["difference"]["ci95"] == pytest.approx([expected.low, expected.high])
    assert second["difference"]["p"] == pytest.approx(expected.p_value)
    assert first["difference"] is None
    eer = found["rows"][1]["metrics"]["eer"]["difference"]
    assert eer["value"] > 0
    assert eer["significant"] == (eer["p_holm"] < 0.05)


def test_holm_by_hand() -> None:
    """.01 × 4, .02 × 3, .5 × 1; .021 × 2 is less than the one before it, which none may be. At most 1."""
    assert holm([0.021, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


def test_the_correction_counts_the_tests_and_the_reference_is_ones_own(tmp_path: Path) -> None:
    made = {"good": 4.0, "same": 4.0, "bad": 1.5}
    places = [make_run(tmp_path / name, [], trial_scores(q, n)) for n, (name, q) in enumerate(made.items())]
    found = content(places, seeds="apart")
    apart = {row["name"]: row["metrics"]["eer"]["difference"] for row in found["rows"]}
    best = found["rows"][0]["name"]
    assert apart.pop(best) is None
    assert apart["bad"]["p_holm"] == pytest.approx(2 * apart["bad"]["p"])
    assert apart["bad"]["significant"]
    assert not next(one for name, one in apart.items() if name != "bad")["significant"]
    runs = read_runs(places)
    found = content_of(comparison(runs, seeds="apart"), runs[2], REPLICATES)
    assert found["rows"][found["reference"]]["name"] == "bad"
    signs = {row["name"]: row["metrics"]["eer"]["difference"] for row in found["rows"]}
    assert signs["bad"] is None
    assert signs["good"]["value"] < 0
    assert signs["good"]["significant"]


def test_trials_that_one_run_skipped(tmp_path: Path) -> None:
    whole, other = trial_scores(3.0, 1), trial_scores(2.5, 2)
    fewer = other.take((other.enroll != 7) & (other.test != 7))  # an utterance that it could not read
    shuffled = fewer.take(np.random.default_rng(0).permutation(len(fewer)))
    found = content([make_run(tmp_path / "a", [], whole), make_run(tmp_path / "b", [], shuffled)], seeds="apart")
    assert "b: tested on the 1,711 of 1,770 trials that it has in common." in found["notes"]
    assert "The rows have other numbers of trials: 1,770 of a; 1,711 of b." in found["notes"]
    common = whole.take((whole.enroll != 7) & (whole.test != 7))
    expected = difference(*draws(fewer, "eer"), *draws(common, "eer"))
    assert expected is not None
    assert found["rows"][1]["metrics"]["eer"]["difference"]["p"] == pytest.approx(expected.p_value, rel=1e-6)


def test_trials_listed_twice_are_matched_in_order() -> None:
    table = pl.DataFrame({"name": ["x", "y"], "speaker": ["x", "y"]})
    rows, target = np.array([0, 0, 1]), np.array([True, True, True])
    one = TrialScores(table, table, rows, rows, np.array([1, 2, 3], dtype=np.float32), target)
    two = replace(one, score=np.array([10, 20, 30], dtype=np.float32)).take(np.array([2, 0, 1]))
    first, second = aligned([one, two])
    assert first.score.tolist() == [1, 2, 3]
    assert second.score.tolist() == [10, 20, 30]
    with pytest.raises(OtherTrials, match="other labels"):
        aligned([one, replace(one, target=~target)])


@pytest.mark.parametrize("kind", ["other", "none", "stale", "broken", "blind", "alone"])
def test_what_cannot_be_tested_is_said(tmp_path: Path, kind: str) -> None:
    scores = trial_scores(2.5, 2, first=50 if kind == "other" else 0)
    good = make_run(tmp_path / "good", [], trial_scores(3.5, 1))
    bad = make_run(tmp_path / "bad", [], scores)
    file = bad / "scores" / "test.txt"
    if kind == "none":
        file.unlink()
    if kind == "stale":
        results = json.loads((bad / "results.json").read_text())
        results["trials"]["test"]["eer"] += 0.05
        (bad / "results.json").write_text(json.dumps(results))
    if kind == "broken":
        file.write_text("what is this\n")
    if kind == "blind":
        replace(scores, target=None).write(file)
    if kind == "alone":  # of another toolkit, or an older version: names without speakers
        for run in (good, bad):
            (run / "scores" / "test.utterances.csv").unlink()
    found = content([good, bad], seeds="apart")
    expected = {
        "other": "Not tested: bad: it has other trials (0 of 1,770 in common).",
        "none": "Not tested: bad: no scores are kept (scoring.save_scores).",
        "stale": "Not tested: bad: its scores are not those that its results are of; evaluate it again.",
        "broken": f"Not tested: bad: its scores cannot be used: {file}: ",
        "blind": "Not tested: bad: its scores have no labels.",
        "alone": "Not tested: good, bad: who speaks in its trials is unknown.",
    }[kind]
    assert any(note.startswith(expected) for note in found["notes"]), found["notes"]
    assert found["rows"][1]["metrics"]["eer"]["difference"] is None
    assert found["rows"][1]["metrics"]["eer"]["value"] is not None
    assert (found["rows"][0]["metrics"]["eer"]["ci95"] is None) == (kind == "alone")


def test_one_run_that_knows_the_speakers_is_enough(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [], trial_scores(2.0, 2))
    (old / "scores" / "test.utterances.csv").unlink()
    found = content([make_run(tmp_path / "new", [], trial_scores(3.5, 1)), old], seeds="apart")
    assert found["rows"][1]["metrics"]["eer"]["difference"]["significant"]


def test_what_has_no_interval_has_no_p_value(tmp_path: Path) -> None:
    """No replicate of a run without a single error has one: it would pass for certain."""
    places = [make_run(tmp_path / f"{n}", [], trial_scores(quality, n)) for n, quality in enumerate((40.0, 2.5))]
    found = content(places)
    perfect, other = found["rows"]
    assert perfect["metrics"]["eer"]["value"] == 0
    assert perfect["metrics"]["eer"]["ci95"] is None
    assert other["metrics"]["eer"]["ci95"] is not None
    assert other["metrics"]["eer"]["difference"] is None
    assert other["untested"] == "EER is exactly 0 in one of the two, and has no interval there"


def test_a_reference_without_scores(tmp_path: Path) -> None:
    good, bad = (make_run(tmp_path / name, [], trial_scores(q, int(q))) for name, q in (("good", 4.0), ("bad", 1.0)))
    (good / "scores" / "test.txt").unlink()
    found = content([good, bad], seeds="apart")
    assert "Not tested: good: no scores are kept (scoring.save_scores)." in found["notes"]
    assert "Not tested: bad: the reference cannot be." in found["notes"]
    assert found["rows"][1]["metrics"]["eer"]["ci95"] is not None


def test_without_a_bootstrap_intervals_are_those_of_the_results(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [], trial_scores(3.0, 1))
    results = json.loads((run / "results.json").read_text())
    results["trials"]["test"]["eer_ci95"] = [0.01, 0.5]
    (run / "results.json").write_text(json.dumps(results))
    found = content([run], replicates=0)
    assert found["rows"][0]["metrics"]["eer"]["ci95"] == [0.01, 0.5]
    det = found["rows"][0]["det"]
    assert len(det["miss"]) == len(det["false_alarm"]) <= 300
    assert (np.diff(det["miss"]) >= 0).all()
    assert (np.diff(det["false_alarm"]) <= 0).all()


def test_the_reference_needs_a_place_in_the_ranking(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a", [], trial_scores(3.0, 1)), make_run(tmp_path / "b", ["seed=1"])])
    with pytest.raises(UserError, match="b: it has no EER for test; choose another run"):
        content_of(comparison(runs, seeds="apart"), runs[1])
