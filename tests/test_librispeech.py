"""LibriSpeech's layout, subsets and pools. The trees are made by hand, the real ones are named in the papers."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.data.corpora.librispeech import LibriSpeech
from spkexp.errors import UserError

RATE = 16_000


@pytest.fixture(scope="session")
def flac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 0.1 s, to be linked under many names."""
    path = tmp_path_factory.mktemp("flac") / "x.flac"
    soundfile.write(path, np.random.default_rng(0).integers(-99, 99, 1_600).astype(np.int16), RATE)
    return path


def add(root: Path, subset: str, speakers: range, flac: Path, utterances: int = 1) -> None:
    for speaker in speakers:
        chapter = root / subset / str(speaker) / str(speaker + 100_000)
        chapter.mkdir(parents=True)
        for i in range(utterances):
            os.link(flac, chapter / f"{speaker}-{speaker + 100_000}-{i:04d}.flac")


def test_rows_of_a_tree(tmp_path: Path, flac: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "Daten für uns" / "LibriSpeech"
    add(root, "train-clean-100", range(19, 21), flac, utterances=2)
    add(root, "dev-other", range(30, 31), flac)
    add(root, "test-clean", range(40, 41), flac)
    (root / "train-clean-100/19/100019/19-100019.trans.txt").write_text("19-100019-0000 A WORD\n")
    (root / "SPEAKERS.TXT").write_text("; readers\n")
    os.link(flac, root / "train-clean-100/19/100019/19-777-0000.flac")  # not this chapter's
    for given in (root, root.parent):
        table = LibriSpeech(train="auto", closed_set=False).table(given)
        assert table.columns == ["id", "path", "speaker", "chapter", "split"]
        assert table.drop("path").rows() == [
            ("19-100019-0000", "19", "100019", "train"),
            ("19-100019-0001", "19", "100019", "train"),
            ("20-100020-0000", "20", "100020", "train"),
            ("20-100020-0001", "20", "100020", "train"),
            ("30-100030-0000", "30", "100030", "val"),
            ("40-100040-0000", "40", "100040", "test"),
        ]
        assert table["path"][4] == str(root / "dev-other/30/100030/30-100030-0000.flac")
    assert "1 audio files are left out" in caplog.text


def test_relative_root_gives_absolute_paths(tmp_path: Path, flac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "train-clean-360", range(1, 2), flac)
    monkeypatch.chdir(tmp_path)
    table = LibriSpeech(train=360, closed_set=False).table(Path("."))
    assert table["path"][0] == str(tmp_path / "train-clean-360/1/100001/1-100001-0000.flac")


def test_published_speaker_counts(tmp_path: Path, flac: Path) -> None:
    # Speakers per subset: Panayotov et al. 2015, table 1.
    counts = {
        "train-clean-100": 251,
        "train-clean-360": 921,
        "train-other-500": 1_166,
        "dev-clean": 40,
        "test-clean": 40,
        "dev-other": 33,
        "test-other": 33,
    }
    first = 1
    for subset, count in counts.items():
        add(tmp_path, subset, range(first, first + count), flac)
        first += count
    pooled = {100: 331, 360: 1_001, 500: 1_246, 460: 1_252, 960: 2_418, "auto": 2_418}
    for train, speakers in pooled.items():
        table = LibriSpeech(train=train, closed_set=True).table(tmp_path)  # type: ignore[arg-type]
        assert table["speaker"].n_unique() == speakers == len(table)
        assert "split" not in table.columns
    table = LibriSpeech(train=460, closed_set=False).table(tmp_path)
    assert dict(table.group_by("split").len().rows()) == {"train": 251 + 921, "val": 73, "test": 73}


def test_a_short_subset_is_reported_and_a_whole_one_is_not(
    tmp_path: Path, flac: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "train-clean-100", range(1, 4), flac)
    add(tmp_path, "dev-clean", range(11, 51), flac, utterances=67)  # 40 speakers, 2,680
    chapter = tmp_path / "dev-clean/50/100050"
    for i in range(67, 67 + 23):
        os.link(flac, chapter / f"50-100050-{i:04d}.flac")
    LibriSpeech(train=100, closed_set=False).table(tmp_path)
    assert "train-clean-100: 3 of 251 speakers, 3 of 28,539 utterances; partly extracted?" in caplog.text
    assert "dev-clean" not in caplog.text


def test_missing_subsets_are_named(tmp_path: Path, flac: Path) -> None:
    add(tmp_path, "train-clean-100", range(1, 2), flac)
    add(tmp_path, "dev-clean", range(2, 3), flac)
    with pytest.raises(
        UserError, match=r"no folder train-clean-360, which data\.corpus\.train=460 needs; put it there"
    ):
        LibriSpeech(train=460, closed_set=False).table(tmp_path)
    with pytest.raises(
        UserError, match=r"no folder test-clean, .*closed_set pools .*found: dev-clean, train-clean-100"
    ):
        LibriSpeech(train=100, closed_set=True).table(tmp_path)
    # 'auto' promises nothing: the pool is what is there.
    assert LibriSpeech(train="auto", closed_set=True).table(tmp_path)["speaker"].to_list() == ["1", "2"]
    (tmp_path / "train-clean-360").mkdir()
    with pytest.raises(UserError, match=r"train-clean-360: holds no utterance; expected SUBSET/SPEAKER/CHAPTER"):
        LibriSpeech(train="auto", closed_set=False).table(tmp_path)


def test_a_root_of_another_kind_says_what_is_there(tmp_path: Path) -> None:
    corpus = LibriSpeech(train="auto", closed_set=False)
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected LibriSpeech: SUBSET/.*train-clean-100"):
        corpus.table(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found nothing"):
        corpus.table(tmp_path)
    for i in range(10):
        (tmp_path / f"id{i:05d}").mkdir()
    with pytest.raises(
        UserError, match=r"not a LibriSpeech tree; expected SUBSET/.*found id00000, .*, id00007 and 2 more"
    ):
        corpus.table(tmp_path)
    (tmp_path / "dev-clean").mkdir()
    with pytest.raises(UserError, match=f"this is one subset; give the folder above it, {tmp_path}"):
        corpus.table(tmp_path / "dev-clean")
    with pytest.raises(UserError, match=r"data\.corpus\.train: expected auto, 100, .*, got 200"):
        LibriSpeech(train=200, closed_set=False)  # type: ignore[arg-type]
