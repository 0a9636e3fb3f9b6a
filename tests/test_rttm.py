"""RTTM files: what other tools write, what is refused, and names that the format has no room for."""

import logging
from itertools import pairwise
from pathlib import Path

import pytest
from pyannote.core import Annotation
from pyannote.core import Segment as Stretch

from spkexp.data import rttm
from spkexp.data.rttm import Segment
from spkexp.errors import UserError


def test_what_pyannote_writes_is_read(tmp_path: Path) -> None:
    annotation = Annotation(uri="meeting")
    annotation[Stretch(0.5, 2.25), "a"] = "ann"
    annotation[Stretch(1.5, 3.0), "b"] = "böb"
    (tmp_path / "peer.rttm").write_text(annotation.to_rttm(), encoding="utf-8")
    assert rttm.read(tmp_path / "peer.rttm") == [("meeting", 0.5, 2.25, "ann"), ("meeting", 1.5, 3.0, "böb")]


def test_lines_are_those_of_the_format(tmp_path: Path) -> None:
    rttm.write(tmp_path / "a.rttm", [Segment("talk", 0.0, 1.25, "ann"), Segment("my talk", 10.0004, 11.0, "50%")])
    assert (tmp_path / "a.rttm").read_text() == (
        "SPEAKER talk 1 0.000 1.250 <NA> <NA> ann <NA> <NA>\n"
        "SPEAKER my%20talk 1 10.000 1.000 <NA> <NA> 50%25 <NA> <NA>\n"
    )


@pytest.mark.parametrize("name", ["a b", " a\t", "100%", "%20", "%2520", "ü\u3000\u2028é", ";;a", "<NA>", "a%zz"])
def test_a_name_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    segments = [Segment(name, 1.0, 2.0, "x"), Segment("y", 1.0, 2.0, name)]
    rttm.write(tmp_path / "a.rttm", segments)
    assert [len(line.split()) for line in (tmp_path / "a.rttm").read_text().splitlines()] == [10, 10]
    assert rttm.read(tmp_path / "a.rttm") == segments


def test_turns_without_a_pause_have_none_in_the_file(tmp_path: Path) -> None:
    edges = [number * 0.3337 for number in range(50)]
    rttm.write(tmp_path / "a.rttm", [Segment("r", *pair, "s") for pair in pairwise(edges)])
    found = rttm.read(tmp_path / "a.rttm")
    assert [f"{segment.end:.6f}" for segment in found[:-1]] == [f"{segment.start:.6f}" for segment in found[1:]]
    assert max(abs(segment.start - edge) for segment, edge in zip(found, edges, strict=False)) <= 0.000501


def test_what_is_no_turn_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.rttm").write_bytes(
        b"\xef\xbb\xbf;; made by hand\r\n\r\n# so was this\r\n"
        b"SPKR-INFO r 1 <NA> <NA> <NA> unknown ann <NA> <NA>\r\n"
        b"SPEAKER\tr 2 \t.5 1e0 <NA> <NA> ann <NA>\r\n"  # nine fields, as before 2009
        b"SPEAKER r 1 3 0 <NA> <NA> ann <NA> <NA>\r\n"
        b"LEXEME r 1 .5 .2 yes lex ann .9 <NA>\r\nLEXEME r 1 .8 .2 no lex ann .9 <NA>"
    )
    with caplog.at_level(logging.WARNING):
        assert rttm.read(tmp_path / "a.rttm") == [("r", 0.5, 1.5, "ann")]
    assert "skipped 4 lines that are no turns: 2 LEXEME, 1 SPKR-INFO, 1 SPEAKER of 0 s" in caplog.text


def test_a_file_without_turns_has_none(tmp_path: Path) -> None:
    rttm.write(tmp_path / "new folder" / "a.rttm", [])
    assert rttm.read(tmp_path / "new folder" / "a.rttm") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"SPEEKER r 1 0 1 <NA> <NA> s <NA> <NA>", "'SPEEKER' is no line of an RTTM"),
        (b"SPEAKER r 1 0 1 <NA> <NA> s", "8 fields, expected 9 or 10"),
        (b"SPEAKER my own talk 1 0 1 <NA> <NA> s <NA> <NA>", "12 fields.*write a blank in a name as %20"),
        (b"SPEAKER r 1 zero 1 <NA> <NA> s <NA> <NA>", "start 'zero': expected seconds"),
        (b"SPEAKER r 1 -1 1 <NA> <NA> s <NA> <NA>", "start '-1'"),
        (b"SPEAKER r 1 0 nan <NA> <NA> s <NA> <NA>", "duration 'nan'"),
        (b"SPEAKER r 1 0 inf <NA> <NA> s <NA> <NA>", "duration 'inf'"),
        (b"SPEAKER r 1 0 -2 <NA> <NA> s <NA> <NA>", "duration '-2'"),
        (b"RIFF\x24\x00\x00\x00WAVE", "is not UTF-8 text"),
        (b"SPEAKER \xff 1 0 1 <NA> <NA> s <NA> <NA>", "is not UTF-8 text"),
        (b"x" * 20_000, "is not UTF-8 text"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "wer spricht.rttm"
    file.write_bytes(b"SPEAKER r 1 0 1 <NA> <NA> s <NA> <NA>\n" + line + b"\n")
    with pytest.raises(UserError, match=f"wer spricht.rttm:2: .*{message}"):
        rttm.read(file)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.rttm: no such RTTM file"):
        rttm.read(tmp_path / "none.rttm")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        rttm.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a\.rttm: cannot be written"):
        rttm.write(tmp_path / "file" / "a.rttm", [])
    with pytest.raises(UserError, match=r"a name that is not UTF-8: 'SPEAKER r\\udcff "):
        rttm.write(tmp_path / "a.rttm", [Segment("r", 0, 1, "s"), Segment("r\udcff", 0, 1, "s")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("turn", [("", 0, 1, "s"), ("r", 0, 1, ""), ("r", -1, 1, "s"), ("r", 1, 1, "s")])
def test_turns_that_make_no_sense(tmp_path: Path, turn: tuple[str, float, float, str]) -> None:
    with pytest.raises(ValueError, match="Segment"):
        rttm.write(tmp_path / "a.rttm", [Segment(*turn)])
    with pytest.raises(ValueError, match="shorter than the millisecond"):
        rttm.write(tmp_path / "a.rttm", [Segment("r", 1.0001, 1.0004, "s")])


def test_segments_by_recording() -> None:
    segments = [Segment("b", 0, 1, "s"), Segment("a", 0, 1, "s"), Segment("b", 2, 3, "t")]
    assert list(rttm.by_recording(segments).items()) == [("b", [segments[0], segments[2]]), ("a", [segments[1]])]
