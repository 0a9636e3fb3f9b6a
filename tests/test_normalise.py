"""Score normalisation against a slow loop in float64, and by its properties."""

import logging

import numpy as np
import pytest

from spkexp.counter import generator
from spkexp.errors import UserError
from spkexp.scoring import normalise
from spkexp.scoring.normalise import ScoreNormalisation, cohort_of, overlap
from spkexp.scoring.projection import Cosine, Projected, pair_scores


def sides(count: int, seed: int, offsets: bool = True, size: int = 6) -> Projected:
    rng = generator(3, seed)
    vector = rng.standard_normal((count, size), dtype=np.float32)
    return Projected(vector, offsets * rng.standard_normal(count, dtype=np.float32))


def slow(kind: str, cohort: Projected, top_n: int, enrolled: Projected, tested: Projected, a: int, b: int) -> float:
    """One trial, one cohort speaker at a time."""

    def score(x: Projected, i: int, y: Projected, j: int) -> float:
        return float(x.vector[i].astype(float) @ y.vector[j] + float(x.offset[i]) + float(y.offset[j]))

    parts = []
    for side, row, where in ((enrolled, a, "z"), (tested, b, "t")):
        found = sorted((score(side, row, cohort, c) for c in range(len(cohort))), reverse=True)
        used = found[:top_n] if kind == "as" else found
        mean = sum(used) / len(used)
        deviation = (sum((value - mean) ** 2 for value in used) / len(used)) ** 0.5
        if kind in (where, "s", "as"):
            parts.append((score(enrolled, a, tested, b) - mean) / deviation)
    return sum(parts) / len(parts)


@pytest.mark.parametrize("kind", ["z", "t", "s", "as"])
def test_against_a_slow_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalise, "ROWS", 16)  # several blocks, the last of them short
    enrolled, tested, cohort = sides(37, 0), sides(41, 1), sides(29, 2)
    rng = generator(4)
    enroll, test = rng.integers(37, size=60), rng.integers(41, size=60)
    scores = pair_scores(enrolled, tested, enroll, test)
    before = scores.copy()
    norm = ScoreNormalisation(kind, cohort, 5)
    found = norm.normalise(scores, enroll, test, norm.statistics(enrolled), norm.statistics(tested))
    expected = [slow(kind, cohort, 5, enrolled, tested, a, b) for a, b in zip(enroll, test, strict=True)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(scores, before)


def test_the_cohort_itself_is_standard_after_z_norm() -> None:
    enrolled, cohort = sides(4, 0), sides(50, 2)
    norm = ScoreNormalisation("z", cohort, 2)
    enroll, test = np.repeat(np.arange(4), 50), np.tile(np.arange(50), 4)
    of = norm.statistics(enrolled)
    found = norm.normalise(pair_scores(enrolled, cohort, enroll, test), enroll, test, of, of).reshape(4, 50)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-5)


def test_symmetric_and_unmoved_by_scale_and_shift() -> None:
    one, cohort = sides(8, 0), sides(20, 2)
    enroll, test = np.arange(4), np.arange(4, 8)

    def scores(side: Projected, others: Projected, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        norm = ScoreNormalisation("as", others, 7)
        of = norm.statistics(side)
        return norm.normalise(pair_scores(side, side, first, second), first, second, of, of)

    plain = scores(one, cohort, enroll, test)
    np.testing.assert_allclose(scores(one, cohort, test, enroll), plain, rtol=1e-5)
    # All scores times 9 and plus 4: as a calibration would have them.
    moved, others = (Projected(3 * side.vector, 9 * side.offset + 2) for side in (one, cohort))
    np.testing.assert_allclose(scores(moved, others, enroll, test), plain, rtol=1e-4)


def test_a_cohort_smaller_than_top_n_is_used_whole() -> None:
    one, cohort = sides(8, 0), sides(20, 2)
    short = ScoreNormalisation("as", cohort, 300)
    whole = ScoreNormalisation("s", cohort, 300)
    np.testing.assert_array_equal(short.statistics(one).mean, whole.statistics(one).mean)
    # Of all but the lowest score, the mean is what the slow way has: the two ways meet.
    nearly = ScoreNormalisation("as", cohort, 19).statistics(one)
    rows = one.vector.astype(float) @ cohort.vector.T + cohort.offset + one.offset[:, None]
    np.testing.assert_allclose(nearly.mean, (rows.sum(axis=1) - rows.min(axis=1)) / 19, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["s", "as"])
def test_what_cannot_be_normalised_is_said(kind: str) -> None:
    cohort = sides(20, 2, offsets=False)
    embeddings = np.ones((3, 6), dtype=np.float32)
    embeddings[1] = 0
    with pytest.raises(UserError, match=r"1 of 3 embeddings \(the first: row 1\) score the same"):
        ScoreNormalisation(kind, cohort, 5).statistics(Cosine().project(embeddings))
    with pytest.raises(UserError, match="at least 2 speakers, got 1"):
        ScoreNormalisation(kind, sides(1, 0), 5)
    with pytest.raises(UserError, match="the 9 cohort embeddings are all the same"):
        ScoreNormalisation(kind, Cosine().project(np.full((9, 6), 0.3, dtype=np.float32)), 5)
    cohort.vector[3, 0] = np.nan
    with pytest.raises(UserError, match="1 of 20 cohort embeddings are not finite"):
        ScoreNormalisation(kind, cohort, 5)
    with pytest.raises(UserError, match="top_n=1"):
        ScoreNormalisation("as", sides(20, 2), 1)
    with pytest.raises(ValueError, match="'x'"):
        ScoreNormalisation("x", sides(20, 2), 5)


@pytest.mark.parametrize("kind", ["s", "as"])
def test_the_five_nearest_alike(kind: str) -> None:
    """A row whose highest scores are equal has no deviation, though the cohort as a whole varies."""
    cohort = Projected(np.eye(8, dtype=np.float32)[[0, 0, 0, 1, 2, 3]], np.zeros(6, dtype=np.float32))
    norm = ScoreNormalisation(kind, cohort, 3)
    alike = Projected(np.full((1, 8), 0.3, dtype=np.float32), np.full(1, 0.1, dtype=np.float32))
    with pytest.raises(UserError, match="score the same"):
        norm.statistics(alike)
    unlike = Projected(np.arange(8, dtype=np.float32)[None], np.zeros(1, dtype=np.float32))
    assert norm.statistics(unlike).mean[0] == pytest.approx({"s": 1, "as": 2}[kind])  # of 0 0 0 1 2 3


@pytest.mark.filterwarnings("error")
def test_unreadable_utterances_stay_nan() -> None:
    one = sides(5, 0)
    one.vector[2], one.offset[2] = np.nan, np.nan
    for kind in ("s", "as"):
        of = ScoreNormalisation(kind, sides(20, 2), 5).statistics(one)
        assert np.isnan(of.mean).tolist() == np.isnan(of.deviation).tolist() == [False, False, True, False, False]


def test_cohort_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    embeddings = np.array([[0, 4], [1, 0], [np.nan, 1], [2, 0], [0, 0]], dtype=np.float32)
    with caplog.at_level(logging.WARNING):
        cohort = cohort_of(embeddings, np.array([7, 5, 6, 7, 9]))
    # 5: (1, 0); 6: unreadable; 7: directions (0, 1) and (1, 0), mean length 3; 9: of length 0.
    np.testing.assert_allclose(cohort, [[1, 0], [1.5, 1.5], [0, 0]])
    assert "1 of 4 speakers left out" in caplog.text
    assert overlap(["b", "a", "c"], ["c", "d", "b", "b"]) == ["b", "c"]
