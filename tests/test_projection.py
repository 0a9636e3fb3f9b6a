"""Scores of trials and enrolment of models against values by hand and slow loops."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from spkexp.counter import generator
from spkexp.data.trials import Models
from spkexp.data.utterances import Strings
from spkexp.scoring import projection
from spkexp.scoring.projection import Cosine, Projected, enrol, mean_embeddings, pair_scores


def models(*members: list[int]) -> Models:
    start = np.cumsum([0, *map(len, members[:-1])])
    return Models(Strings(pl.Series([f"m{n}" for n in range(len(members))])), np.concatenate(members), start)


class Quadratic:
    """A back end with offsets: x·y - |x|²/4 - |y|²/4."""

    gives_llr = True

    def project(self, embeddings: np.ndarray) -> Projected:
        return Projected(embeddings, -np.sum(embeddings**2, axis=1) / 4)


def test_cosine_by_hand() -> None:
    embeddings = np.array([[3, 0], [0, 5], [2, 2], [0, 0], [np.nan, 1], [1e-30, 1e-30]], dtype=np.float32)
    before = embeddings.copy()
    sides = Cosine().project(embeddings)
    scores = pair_scores(sides, sides, np.array([0, 0, 0, 0, 4, 5, 5]), np.array([0, 1, 2, 3, 0, 2, 0]))
    np.testing.assert_allclose(scores, [1, 0, np.sqrt(0.5), 0, np.nan, 1, np.sqrt(0.5)], rtol=1e-6)
    assert sides.vector.dtype == sides.offset.dtype == scores.dtype == np.float32
    np.testing.assert_array_equal(embeddings, before)


def test_blocks_cover_all_trials() -> None:
    rng = generator(0)
    count = 2 * projection.BLOCK + 3
    sides = Projected(rng.standard_normal((count, 5), dtype=np.float32), rng.standard_normal(count, dtype=np.float32))
    enroll, test = rng.integers(count, size=(2, count))
    expected = [
        float(sides.vector[a].astype(float) @ sides.vector[b]) + float(sides.offset[a]) + float(sides.offset[b])
        for a, b in zip(enroll, test, strict=True)
    ]
    np.testing.assert_allclose(pair_scores(sides, sides, enroll, test), expected, atol=2e-6)
    exact = sides.vector.astype(float)
    np.testing.assert_allclose(
        Cosine().project(sides.vector).vector, exact / np.linalg.norm(exact, axis=1, keepdims=True), rtol=1e-6
    )


def test_mean_of_embeddings_by_hand() -> None:
    embeddings = np.array([[3, 0], [0, 5], [np.nan, 0], [-2, 0], [0, 7], [0, 1]], dtype=np.float32)
    # Directions (1,0), (0,1), lengths 3 and 5; one by itself; (-1,0), (0,1), (0,1), lengths 2, 7, 1; none readable.
    groups = models([0, 1], [4], [3, 2, 4, 5], [2])
    means = mean_embeddings(embeddings, groups.utterance, groups.start)
    np.testing.assert_allclose(means, [[2, 2], [0, 7], [-10 / 9, 20 / 9], [np.nan, np.nan]], rtol=1e-6)
    side = enrol(embeddings, groups, Cosine())
    np.testing.assert_allclose(side.vector[2], np.array([-1, 2]) / np.sqrt(5), rtol=1e-6)
    assert np.isnan(side.vector[3]).all()


def test_mean_of_scores_is_that_of_the_mean_projection() -> None:
    rng = generator(1)
    embeddings = rng.standard_normal((12, 4), dtype=np.float32)
    embeddings[5] = np.nan
    members = [[0], [1, 2, 3], [4, 5, 6], [5]]
    sides = Quadratic().project(embeddings)
    tested = np.arange(7, 12)
    enrolled = enrol(embeddings, models(*members), Quadratic(), "mean_score")
    for model, utterances in enumerate(members):
        readable = [n for n in utterances if n != 5]
        single = [pair_scores(sides, sides, np.full(5, n), tested) for n in readable]
        expected = np.mean(single, axis=0) if single else np.full(5, np.nan)
        found = pair_scores(enrolled, sides, np.full(5, model), tested)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # A model of one utterance scores as the utterance does, either way.
    one = enrol(embeddings, models([3]), Quadratic(), "mean_embedding")
    np.testing.assert_allclose(
        pair_scores(one, sides, np.zeros(5, dtype=int), tested),
        pair_scores(sides, sides, np.full(5, 3), tested),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(enrol(embeddings, None, Quadratic()).vector, sides.vector)


def test_many_models_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = generator(2)
    embeddings = rng.standard_normal((50, 3), dtype=np.float32)
    members = [rng.integers(50, size=size).tolist() for size in rng.integers(1, 12, size=40)]
    groups = models(*members)
    whole = mean_embeddings(embeddings, groups.utterance, groups.start)
    monkeypatch.setattr(projection, "BLOCK", 7)  # some groups are larger
    np.testing.assert_allclose(mean_embeddings(embeddings, groups.utterance, groups.start), whole, rtol=1e-6)
    for mean, rows in zip(whole, members, strict=True):
        length = np.linalg.norm(embeddings[rows], axis=1, keepdims=True)
        np.testing.assert_allclose(mean, (embeddings[rows] / length).mean(axis=0) * length.mean(), rtol=1e-4, atol=1e-6)


def test_scores_need_no_torch() -> None:
    code = (
        "import sys, spkexp.scoring.plda, spkexp.scoring.normalise;"
        "print([n for n in ('torch', 'scipy', 'sklearn') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
