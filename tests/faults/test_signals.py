"""A signal: the step is finished and saved, and the exit code says whether the job is to be started again."""

import re
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Victim
from tests.faults.traces import last_step, saved_step

slow = pytest.mark.slow
CODES = [
    pytest.param(signal.SIGUSR1, 75, id="Slurm's warning"),
    pytest.param(signal.SIGUSR2, 75, id="submitit's warning", marks=slow),
    pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=slow),
    pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=slow),
]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_the_same_command_goes_on(victim: Victim, whole: Path, number: int, code: int) -> None:
    run = victim.start("resume=auto")
    victim.reaches(3, run)
    run.signal(number)
    assert run.wait(30) == code, run.text()
    victim.assert_clean(run)
    _assert_all_is_saved(victim.folder, run.text())
    again = victim.start("resume=auto")
    victim.assert_finishes_like(whole, again)
    assert re.search(r"resumed at step [3-9]", again.text())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("launcher", ["nproc", "torchrun"])
def test_every_process_obeys(victim: Victim, launcher: str, number: int, code: int) -> None:
    victim.forked, victim.processes = False, 2 if launcher == "torchrun" else 1
    run = victim.start("trainer.epochs=100", *(["trainer.nproc=2"] if launcher == "nproc" else []))
    victim.reaches(3, run)
    run.signal(number)
    # torchrun has exit codes of its own, and knows neither of Slurm's signals: it dies of them.
    assert run.wait(60) == code if launcher == "nproc" else run.wait(60) != 0, run.text()
    victim.assert_clean(run)
    if launcher == "nproc" or number in (signal.SIGTERM, signal.SIGINT):
        _assert_all_is_saved(victim.folder, run.text())


def _assert_all_is_saved(folder: Path, text: str) -> None:
    saved = saved_step(folder)
    assert saved == last_step(folder)
    assert f"saved at step {saved}; go on with: python -m spkexp.train resume=" in text
    assert "Traceback" not in text
