"""A reading process that is killed, as the kernel does for lack of memory: the run goes on with the same batches."""

from pathlib import Path

import pytest

from tests.faults.conftest import Victim
from tests.faults.runs import Run, wait_for


def workers_of(run: Run) -> list[int]:
    """The readers: forked by the training process, so that they go by the same command."""
    return [
        pid for pid in run.tree() if pid != run.pid and _parent(pid) == run.pid and _command(pid) == _command(run.pid)
    ]


def _command(pid: int) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_others_take_its_place(victim: Victim, whole: Path) -> None:
    run = victim.start("data.num_workers=2")
    victim.reaches(3, run)
    wait_for(lambda: len(workers_of(run)) == 2, run)
    run.kill(workers_of(run)[0])
    victim.assert_finishes_like(whole, run)
    assert "a reading process was killed" in run.text()
    assert "(1 of 3)" in run.text()


@pytest.mark.slow
def test_time_and_again_is_an_error(victim: Victim) -> None:
    run = victim.start("data.num_workers=1", "trainer.epochs=500")
    victim.reaches(3, run)
    killed: set[int] = set()
    while run.code() is None:
        for pid in set(workers_of(run)) - killed:
            run.kill(pid)
            killed.add(pid)
    assert run.code() == 2, run.text()
    assert len(killed) == 4
    assert "reading processes were killed 4 times" in run.text()
    assert "data.num_workers" in run.text()
    victim.assert_clean(run)
