"""A disk that is full or cannot be written to: the run ends and says so, and goes on when there is room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Victim
from tests.faults.disk import Disk
from tests.faults.traces import last_step, lost_steps


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    small = Disk(tmp_path / "small disk", 16)
    yield small
    small.close()


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
