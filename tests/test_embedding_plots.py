"""Pictures of embeddings and scores, and the hardest trials: what is drawn is what there is."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from spkexp.errors import UserError
from spkexp.report import embeddings as pictures_of_embeddings
from spkexp.report.embeddings import GROUPS, check_method, embedding_plot, project
from spkexp.report.hardest import hardest_trials, write_hardest
from spkexp.report.pictures import write_pictures
from spkexp.report.similarities import _shares, similarity_plot
from spkexp.scoring.trial_scores import TrialScores


def voices(speakers: int, each: int, size: int = 24, spread: float = 0.1) -> tuple[np.ndarray, pl.Series]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(speakers, size)) / np.sqrt(size)
    rows = np.repeat(centres, each, axis=0) + rng.normal(0, spread / np.sqrt(size), (speakers * each, size))
    lengths = rng.uniform(0.1, 10, (len(rows), 1))  # which must not matter
    names = [f"s{speaker:02d}" for speaker in range(speakers) for _ in range(each)]
    return (rows * lengths).astype(np.float32), pl.Series("speaker", names)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **more: Any) -> None:
        figures.append(self)
        save(self, *arguments, **more)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def legend(figure: Figure) -> list[str]:
    return [text.get_text().lstrip("\u200b") for text in figure.legends[0].get_texts()]


def test_points_are_the_principal_components_of_unit_vectors(tmp_path: Path, drawn: list[Figure]) -> None:
    rows, speaker = voices(3, 10)
    assert embedding_plot(tmp_path / "plots/ü.png", rows, speaker, "val")
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    pca = PCA(2).fit(unit)
    expected = pca.transform(unit)
    axes = drawn[0].axes[0]
    found = np.concatenate([group.get_offsets() for group in axes.collections])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)  # directions have no sign
    first, second = (
        f"component {n}: {100 * r:.0f} % of the variance" for n, r in enumerate(pca.explained_variance_ratio_, 1)
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == (first, second)
    assert legend(drawn[0]) == ["s00", "s01", "s02"]
    assert axes.get_title() == "val: PCA of 30 embeddings of 3 speakers"
    assert (tmp_path / "plots/ü.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_colours_and_markers_tell_all_groups_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    rows, speaker = voices(GROUPS, 3)
    embedding_plot(tmp_path / "a.png", rows, speaker, "val")
    groups = drawn[0].axes[0].collections
    looks = {(to_hex(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes()) for group in groups}
    assert len(looks) == GROUPS


def test_too_many_speakers_are_drawn_from_by_seed(tmp_path: Path, drawn: list[Figure]) -> None:
    rows, speaker = voices(40, 3)
    rows[0, 0] = np.nan  # unreadable
    for seed in (0, 0, 1):
        embedding_plot(tmp_path / f"{len(drawn)}.png", rows, speaker, "val", seed=seed)
    first, again, other = map(legend, drawn)
    assert len(first) == GROUPS
    assert first == again
    assert first != other
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    number = sum(len(group.get_offsets()) for group in drawn[0].axes[0].collections)
    assert drawn[0].axes[0].get_title() == f"val: PCA of {number} embeddings of {GROUPS} of 40 speakers"


def test_too_many_points_are_thinned_out(tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_of_embeddings, "POINTS", 20)
    rows, speaker = voices(3, 30)
    embedding_plot(tmp_path / "a.png", rows, speaker, "val")
    assert sum(len(group.get_offsets()) for group in drawn[0].axes[0].collections) == 20
    assert drawn[0].axes[0].get_title() == "val: PCA of 20 of 90 embeddings of 3 speakers"


def test_unknown_groups_and_unreadable_utterances_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    rows, _ = voices(2, 5)
    rows[0] = np.nan
    gender = pl.Series("gender", ["f", "f", "f", None, "", "m", "m", "m", "_odd", "_odd"])
    assert embedding_plot(tmp_path / "a.png", rows, gender, "val")
    assert legend(drawn[0]) == ["_odd", "f", "m"]
    assert [len(group.get_offsets()) for group in drawn[0].axes[0].collections] == [2, 2, 3]
    assert not embedding_plot(tmp_path / "b.png", rows, pl.Series("gender", [None] * 9 + ["f"]), "val")
    assert not (tmp_path / "b.png").exists()
    with pytest.raises(ValueError, match="9 values"):
        embedding_plot(tmp_path / "b.png", rows, gender[:9], "val")


def test_numbers_make_a_scale(tmp_path: Path, drawn: list[Figure]) -> None:
    rows, _ = voices(2, 15)
    duration = pl.Series("duration", np.arange(30) + 1.0)
    embedding_plot(tmp_path / "a.png", rows, duration, "val")
    points, bar = drawn[0].axes[0].collections[0], drawn[0].axes[1]
    np.testing.assert_array_equal(points.get_array(), duration.to_numpy())
    assert bar.get_ylabel() == "duration"
    embedding_plot(tmp_path / "b.png", rows, pl.Series("year", [2001, 2002, 2003] * 10), "val")  # a few: groups
    assert legend(drawn[1]) == ["2001", "2002", "2003"]


def agreeing(points: np.ndarray, labels: Sequence[str]) -> float:
    """Share of the points whose nearest neighbour has their label."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    names = np.asarray(labels)
    return float(np.mean(names[distance.argmin(axis=1)] == names))


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_neighbours_stay_neighbours(method: Any) -> None:
    rows, speaker = voices(6, 12)
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    points, axes = project(unit, method, seed=3)
    assert agreeing(points, speaker.to_list()) > 0.98
    assert axes == ({"tsne": "t-SNE", "umap": "UMAP"}[method] + " 1", {"tsne": "t-SNE", "umap": "UMAP"}[method] + " 2")
    np.testing.assert_array_equal(project(unit, method, seed=3)[0], points)
    few, _ = project(unit[:4], method, seed=3)  # fewer than the neighbours that are asked for
    assert np.isfinite(few).all()


def test_without_umap_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_of_embeddings, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'spkexp\[umap\]'"):
        check_method("umap")
    check_method("pca")
    check_method("tsne")


def scored(score: list[float], target: list[bool] | None) -> TrialScores:
    count = len(score)
    table = pl.DataFrame(
        {
            "name": [f"u{n}" for n in range(count + 1)],
            "speaker": [f"s{n // 2}" for n in range(count + 1)],
            "path": [f"/my audio/ü{n}.wav" for n in range(count + 1)],
            "duration": [n + 0.25 for n in range(count + 1)],
        }
    )
    labels = None if target is None else np.array(target)
    return TrialScores(
        table, table, np.zeros(count, np.int64), np.arange(1, count + 1), np.array(score, dtype=np.float32), labels
    )


SCORE = [0.9, 0.1, 0.9, 0.4, 0.2, 0.5, 0.95, 0.1]
TARGET = [False, True, False, False, False, True, True, True]


def test_the_hardest_trials() -> None:
    """Non-targets from the top: 0.9 (the first and the third), 0.4; targets from the bottom: 0.1 twice, 0.5."""
    found = hardest_trials(scored(SCORE, TARGET), 0.4, 3)
    assert found["test"].to_list() == ["u1", "u3", "u4", "u2", "u8", "u6"]
    assert found["kind"].to_list() == ["nontarget"] * 3 + ["target"] * 3
    assert found["wrong"].to_list() == [True, True, False, True, True, False]  # 0.4 is not above the threshold
    assert found["test_path"][0] == "/my audio/ü1.wav"
    assert found["enroll"].to_list() == ["u0"] * 6
    assert found.columns[:5] == ["kind", "wrong", "score", "enroll", "test"]
    assert hardest_trials(scored(SCORE, TARGET), 0.4, 1)["test"].to_list() == ["u1", "u2"]
    assert len(hardest_trials(scored(SCORE, TARGET), 0.4, 100)) == 8
    assert len(hardest_trials(scored(SCORE, TARGET), 0.4, 0)) == 0
    with pytest.raises(ValueError, match="without labels"):
        hardest_trials(scored(SCORE, None), 0.4, 3)


def test_the_hardest_of_many_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    score, target = rng.integers(0, 50, 3000) / 50, rng.random(3000) < 0.3  # with many equal scores
    found = hardest_trials(scored(score.tolist(), target.tolist()), 0.5, 40)
    order = sorted(np.flatnonzero(~target), key=lambda n: (-score[n], n))[:40]
    order += sorted(np.flatnonzero(target), key=lambda n: (score[n], n))[:40]
    assert found["test"].to_list() == [f"u{n + 1}" for n in order]


def test_the_hardest_trials_as_files(tmp_path: Path) -> None:
    one = scored(SCORE, TARGET)
    models = pl.DataFrame({"name": ["model é"], "speaker": [None]}, schema_overrides={"speaker": pl.String})
    one = TrialScores(models, one.tested, one.enroll, one.test, one.score, one.target)
    found = hardest_trials(one, 0.4, 1)
    write_hardest(tmp_path / "h.csv", "val", found, 0.4)
    write_hardest(tmp_path / "h.txt", "val", found, 0.4)
    assert pl.read_csv(tmp_path / "h.csv")["test_path"].to_list() == ["/my audio/ü1.wav", "/my audio/ü2.wav"]
    assert (tmp_path / "h.txt").read_text().splitlines() == [
        "val: the hardest trials, at the threshold 0.4000",
        "",
        "Different speakers, the most alike first",
        "   1  score 0.9000  accepted, which is wrong",
        "      enroll  model é",
        "      test    s0  1.2 s  /my audio/ü1.wav",
        "",
        "Same speaker, the least alike first",
        "   1  score 0.1000  rejected, which is wrong",
        "      enroll  model é",
        "      test    s1  2.2 s  /my audio/ü2.wav",
    ]
    with pytest.raises(UserError, match=r"\.csv or \.txt"):
        write_hardest(tmp_path / "h.doc", "val", found, 0.4)


def test_shares_of_a_histogram_by_hand() -> None:
    scores = np.array([-9.0, 0.5, 1.5, 1.5, 0.5, 9.0], dtype=np.float32)
    target = np.array([False, False, False, False, True, True])
    own, others = _shares(scores, target, np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(own, [0.5, 0.5])  # what is beyond the axis counts as at its end
    np.testing.assert_array_equal(others, [0.5, 0.5])
    own, others = _shares(scores[1:5], target[1:5], np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(own, [1.0, 0.0])
    np.testing.assert_allclose(others, [1 / 3, 2 / 3])


def test_a_panel_a_list(tmp_path: Path, drawn: list[Figure]) -> None:
    """Lists without labels have none; EER of the first: at threshold 0.4, misses 2 of 4 and false alarms 2 of 4."""
    lists = {"val $x$": scored(SCORE, TARGET), "blind": scored(SCORE, None), "easy": scored([0.1, 0.9], [False, True])}
    assert similarity_plot(tmp_path / "a.png", lists, "cosine")
    first, second = drawn[0].axes
    assert first.get_title(loc="left").startswith("val $x$: EER 50.00 %, overlap ")
    assert second.get_title(loc="left") == "easy: EER 0.00 %, overlap 0.0 %"
    assert second.get_xlabel() == "cosine"
    names = [text.get_text() for text in first.get_legend().get_texts()]
    assert names[:2] == ["same speaker (4)", "different speakers (4)"]
    (line,) = [one for one in second.lines if one.get_linestyle() != "None" and len(set(one.get_xdata())) == 1]
    assert line.get_xdata()[0] == pytest.approx(0.5)  # half way between the two
    assert not similarity_plot(tmp_path / "b.png", {"blind": scored(SCORE, None)})
    assert not (tmp_path / "b.png").exists()


def test_what_an_evaluation_leaves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="spkexp")
    rows, speaker = voices(3, 3)
    one, table = scored(SCORE, TARGET), pl.DataFrame({"name": list("abcdefghi"), "speaker": speaker})
    written = write_pictures(tmp_path, "val", one, rows, table)
    names = ["plots/embeddings-val-pca.png", "plots/scores-val.png", "hardest/val.csv", "hardest/val.txt"]
    assert [str(file.relative_to(tmp_path)) for file in written] == names
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(written)
    assert write_pictures(tmp_path / "b", "x", scored(SCORE, None), rows, table, projection=None) == []
    found = write_pictures(tmp_path / "c", "x", one, rows, table, colour_by="gender", hardest=0)
    assert [file.name for file in found] == ["scores-x.png"]
    assert "scoring.colour_by: x has no column 'gender'; it has name, speaker" in caplog.text
    one_kind = one.take(np.flatnonzero(one.target))
    found = write_pictures(tmp_path / "d", "x", one_kind, rows[:3], table[:3])
    assert [file.name for file in found] == ["scores-x.png"]
    assert "too few have a known speaker" in caplog.text
