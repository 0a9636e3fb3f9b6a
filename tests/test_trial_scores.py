"""Files of scores: what is read back is what was written, whatever names look like."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from spkexp.errors import UserError
from spkexp.scoring.trial_scores import TrialScores

NAMES = ["a b.wav", "ü%20/c\u3000.wav", 'quo"ted,x', "#tag\ttab", "d"]


def scores(speaker: list[str | None]) -> TrialScores:
    table = pl.DataFrame({"name": NAMES, "speaker": speaker, "duration": [0.5, 1.0, 2.0, 3.0, 4.0]})
    table = table.with_columns(session=pl.Series(["1", "007", "2b", None, "x"]))
    enroll, test = np.array([0, 3, 2, 1]), np.array([1, 2, 3, 0])
    score = np.array([0.1, 1e-9, -1 / 3, np.float32(16777217.0)], dtype=np.float32)
    return TrialScores(table, table, enroll, test, score, np.array([True, False, False, True]))


def test_round_trip(tmp_path: Path) -> None:
    written = scores(["y", "y", "x", "007", None])
    file = tmp_path / "sco res ü" / "test.v2.txt"
    written.write(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["test.v2.txt", "test.v2.utterances.csv"]
    assert file.read_text(encoding="utf-8").splitlines()[0] == "a%20b.wav ü%2520/c\u3000.wav 0.1 1"
    found = TrialScores.read(file)
    np.testing.assert_array_equal(found.score, written.score)  # to the last bit
    np.testing.assert_array_equal(found.target, written.target)
    assert found.enrolled is found.tested
    assert found.tested["name"].to_list() == NAMES
    assert found.tested["speaker"].to_list() == ["y", "y", "x", "007", None]
    assert found.tested["session"].to_list() == ["1", "007", "2b", None, "x"]
    assert found.tested["duration"].to_list() == [0.5, 1.0, 2.0, 3.0, 4.0]
    assert [found.tested["name"][int(n)] for n in found.enroll] == [NAMES[n] for n in (0, 3, 2, 1)]
    # Sorted names: 007, x, y. The last has no speaker, and is in no trial.
    assert [side.tolist() for side in found.speakers or ()] == [[2, 0, 1, 2], [2, 1, 0, 2]]
    assert [side.tolist() for side in found.take(np.array([2, 0])).speakers or ()] == [[1, 2], [0, 2]]
    assert scores(["y", "y", "x", None, "z"]).speakers is None


def test_models_have_a_table_of_their_own(tmp_path: Path) -> None:
    models = pl.DataFrame({"name": ["d", "m2"], "speaker": ["x", "z"]})
    tested = pl.DataFrame({"name": ["d", "e"], "speaker": ["y", "x"], "gender": ["f", "m"]})
    score = np.array([0.5, 0.25], dtype=np.float32)
    TrialScores(models, tested, np.array([0, 1]), np.array([1, 0]), score, None).write(tmp_path / "t.txt")
    found = TrialScores.read(tmp_path / "t.txt")
    assert found.target is None
    assert found.enrolled["name"].to_list() == ["d", "m2"]
    assert found.tested.select("name", "speaker", "gender").rows() == [("d", "y", "f"), ("e", "x", "m")]
    assert [side.tolist() for side in found.speakers or ()] == [[0, 2], [0, 1]]


def test_scores_of_another_toolkit(tmp_path: Path) -> None:
    file = tmp_path / "theirs.txt"
    file.write_text("a b 0.5 1\nc a -2.5e-1 0\n")
    found = TrialScores.read(file)
    assert found.speakers is None
    assert found.tested["name"].to_list() == ["a", "c", "b"]
    np.testing.assert_array_equal(found.score, np.array([0.5, -0.25], dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b 0.5 1\na b\n", r"x\.txt:2: a field is missing"),
        ("a b high 1\n", r"x\.txt: expected 'enroll test score label' a line"),
        ("a\n", r"x\.txt:1: expected 'enroll test score label'"),
        ("", r"x\.txt:1: expected 'enroll test score label'"),
        (None, r"x\.txt: no such file of scores; scoring.save_scores=true writes one"),
    ],
)
def test_what_is_no_file_of_scores(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "x.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        TrialScores.read(tmp_path / "x.txt")


def test_a_table_of_other_names(tmp_path: Path) -> None:
    written = scores(["y", "y", "x", "z", None])
    written.write(tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("a z 0.5 1\n")
    with pytest.raises(UserError, match=r"its names are not those of x\.utterances\.csv; score the run again"):
        TrialScores.read(tmp_path / "x.txt")
    (tmp_path / "x.utterances.csv").write_text("name,path\na,b\n")
    with pytest.raises(UserError, match=r"x\.utterances\.csv: has no column 'model'; score the run again"):
        TrialScores.read(tmp_path / "x.txt")
