"""A disk that is full or cannot be written to: the run ends and says so, and goes on when there is room."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spkexp.durable import not_written
from tests.faults.conftest import Victim
from tests.faults.disk import Disk
from tests.faults.traces import last_step, lost_steps


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    small = Disk(tmp_path / "small disk", 16)
    yield small
    small.close()


@pytest.mark.slow
def test_full(victim: Victim, disk: Disk, whole: Path) -> None:
    victim.live_on(disk)
    run = victim.start()
    victim.reaches(5, run)
    other = disk.fill()
    assert run.wait() == 2, run.text()
    assert "No space left on device" in run.text()
    assert "make room" in run.text()
    _assert_nothing_is_lost(victim, run.text())
    victim.assert_clean(run)
    other.unlink()
    victim.assert_finishes_like(whole, victim.resume())


@pytest.mark.slow
def test_full_while_there_is_nothing_to_save(victim: Victim, disk: Disk, whole: Path) -> None:
    """What fails is a line of metrics.jsonl."""
    victim.live_on(disk)
    unsaved = ("trainer.checkpoint_steps=null", "trainer.checkpoint_minutes=null", "trainer.validate_every=1000")
    run = victim.start(*unsaved, "trainer.epochs=1000")
    victim.reaches(5, run)
    other = disk.fill()
    assert run.wait() == 2, run.text()
    assert "No space left on device" in run.text()
    assert f"make room, then go on with resume={victim.told}" in run.text()
    assert f"nothing was saved yet; go on with: python -m spkexp.train resume={victim.told}" in run.text()
    assert "Traceback" not in run.text()
    other.unlink()
    victim.assert_finishes_like(
        whole,
        victim.resume("trainer.checkpoint_steps=1", "trainer.validate_every=3", "trainer.epochs=5"),
    )


@pytest.mark.slow
def test_results_cannot_be_written(victim: Victim, disk: Disk, whole: Path) -> None:
    victim.live_on(disk)
    run = victim.start()
    victim.reaches(5, run)
    plots = victim.folder / "plots"
    plots.mkdir()
    disk.read_only(victim.told / "plots")
    assert run.wait() == 2, run.text()
    assert "Read-only file system" in run.text()
    assert "saved at step 20; go on with" in run.text()
    assert "Traceback" not in run.text()
    disk.writable(victim.told / "plots")
    victim.assert_finishes_like(whole, victim.resume())


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.ENOSPC, None, "No space left on device; make room"),
        (errno.EDQUOT, "metrics.jsonl", "Disk quota exceeded ({file}); make room"),
        (errno.EROFS, "plots/det.png", "Read-only file system ({file}); mount the file system for writing"),
        (errno.EACCES, "config.yaml", "Permission denied ({file}); give this user the right to write there"),
        (errno.EIO, "train.log", "Input/output error ({file}); have the disk, or the network to it, checked"),
        (errno.ENOENT, "train.log", None),
        (errno.EACCES, "../corpus/a.wav", None),
        (errno.EIO, None, None),
        (errno.EPIPE, None, None),
    ],
)
def test_what_the_user_is_told(number: int, file: str | None, said: str | None, tmp_path: Path) -> None:
    run = tmp_path / "a run ü"
    place = None if file is None else str((run / file).resolve())
    found = not_written(OSError(number, os.strerror(number), place), run)
    if said is None:
        assert found is None
    else:
        remedy = f"{said.format(file=place)}, then go on with resume={run}"
        assert str(found) == f"{run}: cannot be written: {remedy}"


@pytest.mark.parametrize("file", ["multiprocessing/synchronize.py", "pathlib.py"])
def test_shared_memory_is_no_disk(file: str, tmp_path: Path) -> None:
    """A semaphore without room has the error of a file without a name; only where it comes from tells them apart."""
    raises = compile("raise OSError(28, 'No space left on device')", f"/usr/lib/python3/{file}", "exec")
    with pytest.raises(OSError, match="No space left") as full:
        exec(raises)
    assert (not_written(full.value, tmp_path) is None) == file.startswith("multiprocessing")


@pytest.mark.slow
def test_full_from_the_start(victim: Victim, disk: Disk) -> None:
    victim.live_on(disk)
    disk.fill()
    run = victim.start()
    assert run.wait() == 2, run.text()
    assert "No space left on device" in run.text()
    assert "Traceback" not in run.text()


@pytest.mark.slow
def test_checkpoints_read_only(victim: Victim, disk: Disk, whole: Path) -> None:
    victim.live_on(disk)
    run = victim.start()
    victim.reaches(5, run)
    disk.read_only(victim.told / "checkpoints")
    assert run.wait() == 2, run.text()
    assert "Read-only file system" in run.text()
    _assert_nothing_is_lost(victim, run.text())
    again = victim.resume()  # still read-only: it says so at once
    assert again.wait() == 2, again.text()
    assert "Read-only file system" in again.text()
    disk.writable(victim.told / "checkpoints")
    victim.assert_finishes_like(whole, victim.resume())


def _assert_nothing_is_lost(victim: Victim, text: str) -> None:
    assert lost_steps(victim.folder, last_step(victim.folder)) <= 1
    assert f"resume={victim.told}" in text
    assert "Traceback" not in text
