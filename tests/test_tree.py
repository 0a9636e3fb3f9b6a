"""What the corpora share: the walk through a tree, and telling corpora apart."""

import os
from pathlib import Path

import polars as pl
import pytest

from spkexp.data.corpora.tree import Count, audio_files, one_format, report
from spkexp.data.corpora.voxceleb import VoxCeleb2
from spkexp.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_listed_in_one_order(tmp_path: Path) -> None:
    root = tmp_path / "a ü b"
    touch(root, "z.wav", "b/2.FLAC", "b/10.m4a", "a/deep/er/x.opus", "a/y.ogg", "b.mp3")
    touch(root, "notes.txt", ".x.wav", ".hidden/x.wav", "a/._y.ogg", "a/wav")
    (root / "folder.wav").mkdir()
    expected = ["b.mp3", "z.wav", "a/y.ogg", "a/deep/er/x.opus", "b/10.m4a", "b/2.FLAC"]
    assert audio_files(root).to_list() == expected
    assert audio_files(root, ["wav"]).to_list() == ["z.wav"]
    assert audio_files(root / "folder.wav").to_list() == []
    with pytest.raises(UserError, match="nowhere: cannot be listed: No such file"):
        audio_files(root / "nowhere")


def test_links_are_followed_but_not_in_circles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "one/1.wav", "two/2.wav", "ones/3.wav", "root/0.wav")
    (tmp_path / "root/one").symlink_to(tmp_path / "one")
    (tmp_path / "one/two").symlink_to(tmp_path / "two")
    (tmp_path / "two/one").symlink_to(tmp_path / "one")  # root/one/two/one is root/one
    (tmp_path / "one/ones").symlink_to(tmp_path / "ones")  # only its name begins like one's
    (tmp_path / "root/up").symlink_to(tmp_path)
    assert audio_files(tmp_path / "root").to_list() == ["0.wav", "one/1.wav", "one/ones/3.wav", "one/two/2.wav"]
    assert {record.getMessage() for record in caplog.records} == {
        f"{link}: is a link to a folder above it, and is left out"
        for link in (tmp_path / "root/one/two/one", tmp_path / "root/up")
    }


def test_a_name_that_is_not_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.wav")
    try:
        (tmp_path / os.fsdecode(b"\xff\xfe.wav")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert audio_files(tmp_path).to_list() == ["a.wav"]
    assert "1 audio files are left out: their names are not UTF-8" in caplog.text


def test_one_format_of_each_utterance(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("b", "/x/b.m4a"), ("a", "/x/a.flac"), ("b", "/y/b.WAV"), ("b", "/z/b.ogg"), ("a", "/y/a.flac")]
    table = pl.DataFrame(rows, schema=["id", "path"], orient="row")
    assert dict(one_format(table, "mine").rows()) == {"a": "/x/a.flac", "b": "/y/b.WAV"}
    assert "mine: 3 of the files hold an utterance that is there twice (flac, m4a, ogg, wav)" in caplog.text


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    table = pl.DataFrame({"speaker": ["a", "a", "b"]})
    for whole in (Count(2, 3), Count(2, 4), Count(3, 5), Count(1, 5)):
        report("mine", table, whole, ["b", "c", "a"])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "mine: 2 of 2 speakers, 3 of 3 utterances: complete"),
        ("WARNING", "mine: 2 of 2 speakers, 3 of 4 utterances; missing are c; partly extracted?"),
        ("WARNING", "mine: 2 of 3 speakers, 3 of 5 utterances; missing are c; partly extracted?"),
        (
            "WARNING",
            "mine: 2 of 1 speakers, 3 of 5 utterances: more than it should have; is another corpus among it?",
        ),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["LibriSpeech/train-clean-100/1/2/1-2-0000.flac"], "this is LibriSpeech, .*use data=librispeech"),
        (["dev-other/1/2/1-2-0000.flac"], "this is LibriSpeech, .*use data=librispeech"),
        (["train-clean-5/1/2/1-2-0000.flac"], "this is Mini LibriSpeech, .*use data=mini_librispeech"),
        (
            ["musan/noise/free-sound/a.wav", "musan/music/fma/b.wav"],
            r"this is MUSAN, .*\(augment=\.\.\.\)",
        ),
        (["RIRS_NOISES/pointsource_noises/a.wav"], "this is RIRS_NOISES, .*augmentation"),
        (["CN-Celeb_flac/data/id00010/singing-01-001.flac"], "this is CN-Celeb, .*use data=cnceleb"),
        (["vox1/dev/wav/id10001/video/00001.wav"], "this is VoxCeleb1, .*use data=voxceleb1"),
        (["id00012/only.txt"], "not a VoxCeleb2 tree; .*found id00012"),
        (["mine/a.wav"], "not a VoxCeleb2 tree; .*found mine"),
        ([], "not a VoxCeleb2 tree; .*found nothing"),
    ],
)
def test_another_corpus_is_named(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        VoxCeleb2(subsets=["dev", "test"], voxceleb1=None).table(tmp_path)
