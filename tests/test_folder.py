"""Trees of any layout, described by a pattern."""

from pathlib import Path

import polars as pl
import pytest
import soundfile

from spkexp.data import audio
from spkexp.data.corpora.folder import Folder
from spkexp.errors import UserError
from tests.audio_files import RATE, tones


def add(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tones(0.25, RATE), RATE)


def corpus(pattern: str, extensions: tuple[str, ...] = ("wav", "flac"), speakers: Path | None = None) -> Folder:
    return Folder(pattern=pattern, extensions=list(extensions), speakers=None if speakers is None else str(speakers))


def test_every_name_becomes_a_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "meine Stimmen ü"
    add(root, "train/de/anna/s1/a.wav", "train/de/anna/s1/a.v2.wav", "dev/fr/bob/s 2/b.flac", "stray.wav")
    (root / "train/de/anna/s1/._a.wav").touch()
    (root / "train/de/anna/s1/a.txt").touch()
    table = corpus("{split}/{language}/{speaker}/{session}/{utterance}").table(root)
    assert table.columns == ["id", "path", "speaker", "split", "language", "session", "utterance"]
    assert table.sort("id").drop("path").rows() == [
        ("dev/fr/bob/s 2/b", "bob", "dev", "fr", "s 2", "b"),
        ("train/de/anna/s1/a", "anna", "train", "de", "s1", "a"),
        ("train/de/anna/s1/a.v2", "anna", "train", "de", "s1", "a.v2"),
    ]
    assert audio.durations(table["path"].to_list()) == [0.25] * 3
    assert "1 of 4 audio files are left out: not as {split}/" in caplog.text
    assert "such as stray.wav" in caplog.text


def test_names_within_a_file_name(tmp_path: Path) -> None:
    add(tmp_path, "(x)/anna-s1_0001.wav", "(x)/bob-s1_0002.wav")
    table = corpus("(x)/{speaker}-{session}_{utterance}").table(tmp_path)
    assert table.select("speaker", "session", "utterance").rows() == [("anna", "s1", "0001"), ("bob", "s1", "0002")]


def test_real_speech(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = corpus("{speaker}/{keyword}_{round}").table(shared_data / "arabic_speech_commands")
    listed = pl.read_csv(shared_data / "utterances.csv", infer_schema=False)
    listed = listed.filter(pl.col("corpus").str.to_lowercase().str.contains("arabic"))
    expected = listed.select(pl.col("path").str.split("/").list.last(), "speaker", "keyword").sort("path", "speaker")
    got = table.select(pl.col("path").str.split("/").list.last(), "speaker", "keyword").sort("path", "speaker")
    assert len(got) == 1_680
    assert got.rows() == expected.rows()
    assert "zoom_in_01 as speaker=00000001, keyword=zoom_in, round=01 is taken, not speaker=" in caplog.text


@pytest.mark.parametrize("by", ["utterance", "id"])
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_speakers_from_a_list(tmp_path: Path, by: str, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "sitw_database.v4"
    add(root, "dev/audio/aaoao.flac", "dev/audio/ababb.flac", "eval/audio/zzzzz.flac")
    prefix = "dev/audio/" if by == "id" else ""
    rows = [(f"{prefix}aaoao", "10001"), (f"{prefix}ababb", "10002")]
    file = tmp_path / f"speakers.{suffix}"
    if suffix == "csv":
        file.write_text(f"extra,{by},speaker\n" + "".join(f"x,{name}, {speaker}\n" for name, speaker in rows))
    else:
        file.write_text("".join(f"{name} {speaker}\n" for name, speaker in rows))
    table = corpus("{split}/audio/{utterance}", ("flac",), file).table(root)
    assert table.select("id", "speaker", "split").rows() == [
        ("dev/audio/aaoao", "10001", "dev"),
        ("dev/audio/ababb", "10002", "dev"),
        ("eval/audio/zzzzz", None, "eval"),
    ]
    assert "1 of 3 utterances are not in it, such as eval/audio/zzzzz" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,speaker\na,b\n", r"a\.csv:1: expected the columns id \(or utterance\) and speaker, found file"),
        ("a.csv", "id,speaker\na,b\nc\n", r"a\.csv:3: expected 2 fields, got 'c'"),
        ("a.csv", "id,speaker\na,\n", r"a\.csv:2: expected an utterance and its speaker"),
        ("utt2spk", "a b\nc d e\n", r"utt2spk:2: expected 'utterance speaker', got 'c d e'"),
        ("utt2spk", "a b\na c\n", r"utt2spk:2: a is of c here and of b above"),
        ("utt2spk", "\n", "names no utterance"),
        ("utt2spk", "q x\n", r"names none of the utterances; it has q, data\.root has one"),
    ],
)
def test_broken_lists_of_speakers(tmp_path: Path, name: str, text: str, message: str) -> None:
    add(tmp_path / "root", "one.wav")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        corpus("{utterance}", speakers=tmp_path / name).table(tmp_path / "root")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{session}/{utterance}", r"has no \{speaker\}; add it, or name a list .*data\.corpus\.speakers=FILE"),
        ("speaker/utterance", "expected names in braces, each once"),
        ("{speaker}/{speaker}", "expected names in braces, each once"),
        ("{speaker}/{}", "expected names in braces, each once"),
        ("{speaker}/{utterance", "expected names in braces, each once"),
        ("{speaker}/{path}", r"\{path\} is a name of the table's own; choose another"),
    ],
)
def test_broken_patterns(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus(pattern)


def test_what_does_not_fit_is_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.corpus\.speakers: the pattern .* has a \{speaker\} already"):
        corpus("{speaker}/{utterance}", speakers=tmp_path / "x")
    with pytest.raises(UserError, match=r"data\.corpus\.extensions: is empty"):
        corpus("{speaker}/{utterance}", ())
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected one with files as \{speaker\}"):
        corpus("{speaker}/{utterance}").table(tmp_path / "nowhere")
    add(tmp_path / "one", "a.wav")
    with pytest.raises(UserError, match=r"speakers: .*missing: no such file"):
        corpus("{utterance}", speakers=tmp_path / "missing").table(tmp_path / "one")
    add(tmp_path / "deep", *(f"a/b/{i}.wav" for i in range(5)))
    with pytest.raises(
        UserError, match=r"none of the 5 audio files is as .*; found a/b/0\.wav, a/b/1\.wav, a/b/2\.wav$"
    ):
        corpus("{speaker}/{utterance}").table(tmp_path / "deep")
    with pytest.raises(UserError, match=r"no file ends in \.mp3; found a; set data\.corpus\.extensions"):
        corpus("{speaker}/{utterance}", (".mp3",)).table(tmp_path / "deep")


def test_an_utterance_in_two_formats_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, "anna/a.wav", "anna/a.flac", "bob/b.flac")
    table = corpus("{speaker}/{utterance}").table(tmp_path)
    assert [Path(path).name for path in table.sort("id")["path"]] == ["a.wav", "b.flac"]
    assert "1 of the files hold an utterance that is there twice (flac, wav)" in caplog.text
