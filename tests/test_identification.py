"""Identification against counts by hand and a loop over probes."""

import numpy as np
import pytest

from spkexp.scoring import identification as module
from spkexp.scoring.identification import identification, leave_one_out, top_k
from spkexp.scoring.plda import Plda
from spkexp.scoring.projection import Cosine, Projected


def scores(matrix: list[list[float]], offsets: list[float] | None = None) -> tuple[Projected, Projected]:
    """A gallery and probes with the scores `matrix` (P, G)."""
    table = np.array(matrix, dtype=np.float32)
    models = np.eye(table.shape[1], dtype=np.float32)
    added = np.zeros(len(models)) if offsets is None else np.array(offsets)
    zeros = np.zeros(len(table), dtype=np.float32)
    return Projected(models, added.astype(np.float32)), Projected(table, zeros)


def test_by_hand() -> None:
    gallery, probes = scores([[0.9, 0.1, 0.2], [0.5, 0.3, 0.4], [0.1, 0.7, 0.6]])
    expected = np.array([0, 1, 2])  # ranks 1, 3 and 2
    assert top_k(gallery, probes, expected, (1, 2, 3)) == {"top1": pytest.approx(1 / 3), "top2": pytest.approx(2 / 3)}
    # Offsets of the models count: they lift the second to 1.3 and the third to 1.4, and ranks become 3, 2 and 2.
    gallery, probes = scores([[0.9, 0.1, 0.2], [0.5, 0.3, 0.4], [0.1, 0.7, 0.6]], [0, 1, 1])
    assert top_k(gallery, probes, expected, (1, 2)) == {"top1": 0.0, "top2": pytest.approx(2 / 3)}


def test_ties_count_as_wrong_as_they_are_likely_to_be() -> None:
    gallery, probes = scores([[0.5, 0.5, 0.5, 0.1], [0.9, 0.5, 0.5, 0.5]])
    # The right one is 1st to 3rd with 1/3 each; then 2nd to 4th.
    found = top_k(gallery, probes, np.array([0, 1]), (1, 2, 3))
    assert found == {"top1": pytest.approx(1 / 6), "top2": pytest.approx(1 / 2), "top3": pytest.approx(5 / 6)}
    gallery, probes = scores([[0.0] * 8] * 8)
    assert top_k(gallery, probes, np.arange(8), (1, 5)) == {"top1": 1 / 8, "top5": 5 / 8}


def voices(seed: int, speakers: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of 1 to 4 utterances of each speaker, mixed; (N, size) and (N,)."""
    rng = np.random.default_rng(seed)
    speaker = rng.permutation(np.repeat(np.arange(speakers), rng.integers(1, 5, speakers))) * 7 - 3
    centre = np.random.default_rng(seed + 1).normal(size=(7 * speakers, dimensions))
    found = centre[speaker] + rng.normal(size=(len(speaker), dimensions))
    return (found * rng.uniform(0.5, 2, (len(speaker), 1))).astype(np.float32), speaker


def test_against_a_loop_over_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, speaker = voices(0, 12, 6)
    embeddings[5] = np.nan
    hits: dict[int, list[bool]] = {1: [], 3: [], 5: []}
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    readable = [row for row in range(len(unit)) if row != 5]
    for probe in readable:
        others = [row for row in readable if row != probe]
        if speaker[probe] not in speaker[others]:
            continue
        similarity = {}
        for one in set(speaker[readable]):
            model = unit[[row for row in others if speaker[row] == one]].mean(axis=0)
            similarity[one] = unit[probe] @ model / np.linalg.norm(model)
        rank = 1 + sum(value > similarity[speaker[probe]] for value in similarity.values())
        for k, found in hits.items():
            found.append(rank <= k)
    expected = {
        "speakers": len(set(speaker[readable])),
        "probes": len(hits[1]),
        "skipped": len(embeddings) - len(hits[1]),
        **{f"top{k}": pytest.approx(np.mean(found)) for k, found in hits.items()},
    }
    assert 0 < np.mean(hits[1]) < np.mean(hits[5]) < 1
    assert identification(embeddings, speaker, Cosine(), (1, 3, 5)) == expected
    monkeypatch.setattr(module, "BLOCK", 25)  # two probes at a time
    assert identification(embeddings, speaker, Cosine(), (1, 3, 5)) == expected


def test_who_is_compared_with_whom() -> None:
    embeddings = np.array([[2, 0], [0, 3], [1, 0], [np.nan, 0], [0, 5]], dtype=np.float32)
    parts = leave_one_out(embeddings, np.array([4, 4, 9, 9, 4]))
    np.testing.assert_allclose(parts.gallery, [[10 / 9, 20 / 9], [1, 0]], rtol=1e-6)  # (1/3, 2/3) × 10/3
    assert parts.probe.tolist() == [0, 1, 4]  # the second speaker has one utterance that can be read: a distractor
    assert parts.expected.tolist() == [0, 0, 0]
    np.testing.assert_allclose(parts.own, [[0, 4], [1.75, 1.75], [1.25, 1.25]], rtol=1e-6)
    assert parts.skipped == 2
    # [2, 0] is as the other's model and unlike its own; the others are nearer to their own.
    expected = {"speakers": 2, "probes": 3, "skipped": 2, "top1": pytest.approx(2 / 3)}
    assert identification(embeddings, np.array([4, 4, 9, 9, 4]), Cosine()) == expected


def test_the_scale_of_the_embeddings_is_no_matter() -> None:
    embeddings, speaker = voices(3, 40, 6)
    found = []
    for scale in (0.2, 1.0, 20.0):
        rows = (scale * embeddings).astype(np.float32)
        plda = Plda.fit(rows, speaker, "two_covariance", None, 5, None, whiten=False, length_norm=True)
        found.append(identification(rows, speaker, plda))
    assert found[0] == found[1] == found[2]
    assert 0.2 < found[0]["top1"] < 1.0


def test_nothing_to_identify() -> None:
    embeddings, _ = voices(0, 2, 4)
    assert identification(embeddings, np.zeros(len(embeddings), dtype=np.int64), Cosine()) is None
    assert identification(embeddings, np.arange(len(embeddings)), Cosine()) is None
    assert identification(np.full((4, 2), np.nan, dtype=np.float32), np.array([0, 0, 1, 1]), Cosine()) is None
    gallery, probes = scores([[0.1, np.nan]])
    with pytest.raises(ValueError, match="not finite"):
        top_k(gallery, probes, np.array([0]))
    with pytest.raises(ValueError, match="needs a model of the gallery"):
        top_k(gallery, probes, np.array([2]))
