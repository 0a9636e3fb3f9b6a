"""Copies on the node's own disk."""

import multiprocessing
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from spkexp.data import audio
from spkexp.data.corpora.shards import Shards
from spkexp.data.shards import ShardWriter
from spkexp.data.staging import stage, staged
from spkexp.errors import AudioError, UserError
from tests.audio_files import integers, pcm, riff
from tests.test_audio import unprivileged


def make_files(folder: Path, count: int = 5, seed: int = 0) -> pl.DataFrame:
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        paths.append(str(folder / f"ein Wort é {number}.wav"))
        Path(paths[-1]).write_bytes(riff(pcm(), integers(400 + number, seed=seed + number).tobytes()))
    return pl.DataFrame({"id": [f"u{n}" for n in range(count)], "path": paths, "speaker": ["s"] * count})


def contents(paths: pl.Series) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def files_below(folder: Path) -> dict[str, int]:
    """Path and inode: a file that was written anew has another one."""
    found = [path for path in folder.rglob("*") if path.is_file() and ".spkexp-staging" not in path.parts]
    return {str(path): path.stat().st_ino for path in found}


def test_files_are_copied_once_and_sources_do_not_meet(tmp_path: Path) -> None:
    one, two = make_files(tmp_path / "one"), make_files(tmp_path / "two", seed=50)
    stage_dir = tmp_path / "node's disk"
    first, second = staged(one, stage_dir), staged(two, stage_dir)
    for table, copy in ((one, first), (two, second)):
        assert copy.columns == table.columns
        assert copy.drop("path").equals(table.drop("path"))
        assert all(path.startswith(f"{stage_dir}/") for path in copy["path"])
        assert contents(copy["path"]) == contents(table["path"])
    assert not set(first["path"]) & set(second["path"])
    before = files_below(stage_dir)
    assert len(before) == 10
    assert staged(one.tail(2), stage_dir)["path"].to_list() == first["path"].to_list()[-2:]  # a part of the table
    assert staged(first, stage_dir).equals(first)  # a table of copies
    assert staged(one.head(0), stage_dir).equals(one.head(0))
    assert files_below(stage_dir) == before
    assert [path.name for path in (stage_dir / ".spkexp-staging").iterdir() if path.is_dir()] == []


def test_an_interrupted_copy_goes_on_and_a_changed_source_is_copied_again(tmp_path: Path) -> None:
    table = make_files(tmp_path / "in", count=4)
    stage_dir = tmp_path / "out"
    copies = [Path(path) for path in staged(table, stage_dir)["path"]]
    before = files_below(stage_dir)
    copies[0].unlink()  # never finished
    os.truncate(copies[1], 100)
    changed = Path(table["path"][2])  # another file of the same size
    changed.write_bytes(riff(pcm(), integers(402, seed=77).tobytes()))
    os.utime(changed, ns=(10**18, 10**18))
    staged(table, stage_dir)
    assert [path.read_bytes() for path in copies] == contents(table["path"])
    after = files_below(stage_dir)
    assert after[str(copies[3])] == before[str(copies[3])]
    assert after[str(copies[2])] != before[str(copies[2])]


def _stage_and_tell(paths: list[str], stage_dir: Path, barrier: object, queue: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    found = stage(paths, stage_dir)
    queue.put([Path(path).stat().st_ino for path in found])  # type: ignore[attr-defined]


def test_processes_of_a_node_wait_for_one_copy(tmp_path: Path) -> None:
    table = make_files(tmp_path / "in", count=30)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    arguments = (table["path"].to_list(), tmp_path / "out", barrier, queue)
    processes = [context.Process(target=_stage_and_tell, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    inodes = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert inodes[0] == inodes[1] == inodes[2]  # nobody copied what another had copied
    assert contents(pl.Series(stage(table["path"].to_list(), tmp_path / "out"))) == contents(table["path"])


def test_shards_keep_their_places(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", 5_000) as writer:
        for number in range(4):
            writer.add(f"u{number}", "wav", riff(pcm(), integers(700, seed=number).tobytes()), {"speaker": "s"})
    table = Shards().table(tmp_path / "shards")
    copy = staged(table, tmp_path / "out")
    assert copy["path"].n_unique() == table["path"].n_unique() > 1
    shutil.rmtree(tmp_path / "shards")
    for number, row in enumerate(copy.iter_rows(named=True)):
        wave = audio.read(row["path"], part=(row["offset"], row["bytes"]))
        np.testing.assert_array_equal(wave, integers(700, seed=number)[:, 0] / 32768)


def test_a_missing_source_stays_where_it_is_with_skip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = make_files(tmp_path / "in", count=3)
    gone = table["path"][1]
    Path(gone).unlink()
    Path(gone).mkdir()  # can be looked at, and not read
    for _ in range(2):  # the second time the others are there already
        caplog.clear()
        copy = staged(table, tmp_path / "out", "skip")
        assert (copy["path"] == table["path"]).to_list() == [False, True, False]
        assert f"left where it is: {gone}: cannot be " in caplog.text
        assert contents(copy["path"][[0, 2]]) == contents(table["path"][[0, 2]])
        if Path(gone).exists():
            Path(gone).rmdir()


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_files(tmp_path / "in", count=2)
    needed = sum(Path(path).stat().st_size for path in table["path"])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed - 1))
    with pytest.raises(
        UserError, match=r"data.stage_dir=.*out: 0.00 GB are needed for 2 files, 0.00 GB are free; make"
    ):
        staged(table, tmp_path / "out")
    assert files_below(tmp_path / "out") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, needed))
    staged(table, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 0))
    staged(table, tmp_path / "out")  # nothing is missing, nothing is needed


def test_sources_that_are_gone_and_folders_that_are_forbidden(tmp_path: Path) -> None:
    table = make_files(tmp_path / "in", count=3)
    Path(table["path"][1]).unlink()
    with pytest.raises(
        AudioError, match=r"ein Wort é 1.wav: cannot be staged: No such file or directory; check data.ro"
    ):
        staged(table, tmp_path / "out")
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match=r"a file.*: cannot be written: .*choose another data.stage_dir"):
        staged(table, tmp_path / "a file")
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o555)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    tmp_path.chmod(0o755)
    with (
        unprivileged(),
        pytest.raises(UserError, match=r"forbidden.*: cannot be written: Permission denied; make room"),
    ):
        staged(table, forbidden)
