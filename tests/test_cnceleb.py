"""CN-Celeb1 and CN-Celeb2 in their own layout, in flac and converted, built in small."""

import os
from pathlib import Path

import pytest
import soundfile

from spkexp.data import audio
from spkexp.data.corpora.cnceleb import CNCeleb
from spkexp.errors import UserError
from tests.audio_files import RATE, tones

ALL = ["cnceleb1", "cnceleb2", "eval"]
# path below the root, without extension: row of id, speaker, genre, split
ONE = {
    "CN-Celeb_flac/data/id00010/singing-01-001": ("id00010/singing-01-001", "id00010", "singing", "train"),
    "CN-Celeb_flac/data/id00011/live_broadcast-02-003": (
        "id00011/live_broadcast-02-003",
        "id00011",
        "live_broadcast",
        "train",
    ),
}
EVAL = {
    "CN-Celeb_flac/eval/enroll/id00800-enroll": ("enroll/id00800-enroll", "id00800", None, "test"),
    "CN-Celeb_flac/eval/test/id00800-singing-01-001": ("test/id00800-singing-01-001", "id00800", "singing", "test"),
}
TWO = {"CN-Celeb2_flac/data/id10000/vlog-01-001": ("id10000/vlog-01-001", "id10000", "vlog", "train")}
UNUSED = ["CN-Celeb_flac/data/id00800/singing-01-001"]


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Both corpora, with their lists, in flac."""
    root = tmp_path / "名人 corpora"
    soundfile.write(tmp_path / "x.flac", tones(0.25, RATE), RATE)
    for name in [*ONE, *EVAL, *TWO, *UNUSED]:
        path = root / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "x.flac", path)
    for name, text in {
        "CN-Celeb_flac/dev/dev.lst": "id00010\nid00011\nid00012\n",
        "CN-Celeb_flac/eval/lists/trials.lst": "id00800-enroll test/id00800-singing-01-001.wav 1\n",
        "CN-Celeb2_flac/spk.lst": "id10000\nid10001\n",
        "CN-Celeb_flac/data/.DS_Store": "",
        "CN-Celeb_flac/data/id00010/._singing-01-001.flac": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_rows(corpora: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        table = CNCeleb(subsets=ALL).table(corpora)  # type: ignore[arg-type]
    assert table.columns == ["id", "path", "speaker", "genre", "split"]
    assert table.drop("path").rows() == [*ONE.values(), *TWO.values(), *EVAL.values()]
    assert table["path"].to_list() == [str(corpora / f"{name}.flac") for name in [*ONE, *TWO, *EVAL]]
    assert audio.durations(table["path"].to_list()) == [0.25] * 5
    text = caplog.text
    assert "1 utterances of data/ are left out: of speakers of the evaluation set" in text
    assert "cnceleb1: 2 of 797 speakers, 2 of 107,953 utterances; missing are id00012; partly extracted?" in text
    assert "cnceleb2: 1 of 1,996 speakers, 1 of 524,787 utterances; missing are id10001; partly extracted?" in text
    assert "eval: 1 of 200 speakers, 2 of 17,973 utterances; partly extracted?" in text


def test_subsets_and_parts_of_the_tree(corpora: Path) -> None:
    assert CNCeleb(subsets=["eval"]).table(corpora).drop("path").rows() == list(EVAL.values())
    assert CNCeleb(subsets=["cnceleb2"]).table(corpora).drop("path").rows() == list(TWO.values())
    one = CNCeleb(subsets=ALL).table(corpora / "CN-Celeb_flac")  # type: ignore[arg-type]
    assert one.drop("path").rows() == [*ONE.values(), *EVAL.values()]
    with pytest.raises(UserError, match="holds nothing of CN-Celeb's eval, only cnceleb2"):
        CNCeleb(subsets=["eval"]).table(corpora / "CN-Celeb2_flac")
    with pytest.raises(
        UserError, match="CN-Celeb_flac/data: this is only a part of CN-Celeb; give the folder above it"
    ):
        CNCeleb(subsets=["cnceleb1"]).table(corpora / "CN-Celeb_flac/data")
    # What enrolments were joined from: what enroll.map names, or all there is.
    chosen = CNCeleb(subsets=["enroll_map"])
    row = ("id00800/singing-01-001", "id00800", "singing", "test")
    assert chosen.table(corpora).drop("path").rows() == [row]
    enroll_map = corpora / "CN-Celeb_flac/eval/lists/enroll.map"
    enroll_map.write_text("id00800-enroll id00800/singing-01-001.wav id00800/speech-01-001.wav\n")
    os.link(corpora.parent / "x.flac", corpora / "CN-Celeb_flac/data/id00800/vlog-01-001.flac")
    assert chosen.table(corpora).drop("path").rows() == [row]
    # Without dev.lst the numbers tell who is held out.
    (corpora / "CN-Celeb_flac/dev/dev.lst").unlink()
    assert len(CNCeleb(subsets=["cnceleb1"]).table(corpora)) == 2


def test_sources(corpora: Path) -> None:
    """The lists of the trees, also deeper than the state of a folder looks."""
    lists = {corpora / "CN-Celeb_flac" / name for name in ("dev/dev.lst", "eval/lists/enroll.map")}
    assert lists <= set(CNCeleb(subsets=["eval"]).sources(corpora))


def test_a_converted_copy_beside_the_original(corpora: Path, caplog: pytest.LogCaptureFixture) -> None:
    # As recipes convert: the lists stay with the flac tree.
    wave = tones(0.5, RATE)
    for name in [*list(ONE)[:1], *EVAL]:
        path = corpora / f"{name.replace('_flac', '_wav')}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE)
    table = CNCeleb(subsets=["cnceleb1", "eval"]).table(corpora)
    assert audio.durations(table["path"].to_list()) == [0.5, 0.25, 0.5, 0.5]
    assert "CN-Celeb: 3 of the files hold an utterance that is there twice (flac, wav)" in caplog.text


def test_what_is_no_tree_says_so(tmp_path: Path) -> None:
    corpus = CNCeleb(subsets=["cnceleb1"])
    with pytest.raises(UserError, match=r"no such folder; expected CN-Celeb: CN-Celeb_flac/data.*openslr\.org/82"):
        corpus.table(tmp_path / "nowhere")
    (tmp_path / "data/id10001/video").mkdir(parents=True)
    (tmp_path / "data/id10001/video/00001.wav").touch()
    with pytest.raises(UserError, match=r"this is VoxCeleb1, expected CN-Celeb: .*use data=voxceleb1"):
        corpus.table(tmp_path)
    with pytest.raises(UserError, match=r"data\.corpus\.subsets: expected some of .*, enroll_map, got"):
        CNCeleb(subsets=["dev"])  # type: ignore[list-item]
