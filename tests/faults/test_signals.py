"""A signal: the step is finished and saved, and the exit code says whether the job is to be started again."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spkexp import results
from spkexp.augment.augmentation import Augmentation, Material, Signal
from spkexp.compose import compose_config
from spkexp.counter import Keys
from spkexp.experiment import run_experiment
from spkexp.interrupt import Stopped, StopRequest
from spkexp.models.speaker import SpeakerModel
from tests.faults.conftest import Victim
from tests.faults.corpus import arguments
from tests.faults.runs import wait_for
from tests.faults.traces import last_step, saved_step

slow = pytest.mark.slow
CODES = [
    pytest.param(signal.SIGUSR1, 75, id="Slurm's warning"),
    pytest.param(signal.SIGUSR2, 75, id="submitit's warning", marks=slow),
    pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=slow),
    pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=slow),
]


class SlowToBuild(Augmentation):
    """Takes an hour to be made, unless the file `once` is there; it is made then."""

    def __init__(self, once: str) -> None:
        super().__init__()
        if not Path(once).exists():
            Path(once).touch()
            time.sleep(3600)

    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        return key

    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        return signal


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


@pytest.mark.parametrize(("number", "code"), CODES)
def test_before_the_first_step(victim: Victim, whole: Path, tmp_path: Path, number: int, code: int) -> None:
    begun = tmp_path / "begun"
    run = victim.start(f"augment.waveform={{_target_: tests.faults.test_signals.SlowToBuild, once: '{begun}'}}")
    wait_for(begun.exists, run)
    run.signal(number)
    assert run.wait(30) == code, run.text()
    victim.assert_clean(run)
    assert "nothing was saved yet; go on with: python -m spkexp.train resume=" in run.text()
    assert "Traceback" not in run.text()
    victim.assert_finishes_like(whole, victim.resume())


@pytest.mark.parametrize(("number", "code"), CODES)
def test_while_the_report_is_made(victim: Victim, whole: Path, number: int, code: int) -> None:
    run = victim.start()
    victim.reaches(5, run)
    picture = victim.folder / "plots" / "det.png"
    picture.parent.mkdir()
    os.mkfifo(picture)  # which nobody reads: a report without an end
    wait_for((victim.folder / "scores" / "val.txt").exists, run)
    run.signal(number)
    assert run.wait(10) == code, run.text()
    victim.assert_clean(run)
    _assert_all_is_saved(victim.folder, run.text())
    picture.unlink()
    victim.assert_finishes_like(whole, victim.resume())


def test_scoring_for_the_report_stops_between_batches(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_best, forward, scored = results._load_best, SpeakerModel.forward, []

    def load(*given: Any) -> Any:
        monkeypatch.setattr(SpeakerModel, "forward", signalled)
        return load_best(*given)

    def signalled(self: SpeakerModel, *given: Any) -> Tensor:
        scored.append(given)
        signal.raise_signal(signal.SIGUSR1)
        return forward(self, *given)

    monkeypatch.setattr(results, "_load_best", load)
    given = arguments(corpus, tmp_path / "run", "trainer.max_steps=2", "scoring.batch_seconds=2")
    with StopRequest() as stop, stop.at_once(), pytest.raises(Stopped, match="SIGUSR1"):
        run_experiment(compose_config(given), torch.device("cpu"), False, stop)
    assert len(scored) == 1
    assert not (tmp_path / "run" / "results.json").exists()


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
        _assert_all_is_saved(victim.folder, run.text(), tracebacks=int(launcher == "torchrun"))


def _assert_all_is_saved(folder: Path, text: str, tracebacks: int = 0) -> None:
    """tracebacks: of torchrun, which shows one of its own after any signal."""
    saved = saved_step(folder)
    assert saved == last_step(folder)
    assert f"saved at step {saved}; go on with: python -m spkexp.train resume=" in text
    assert text.count("Traceback") == text.count("elastic.multiprocessing.api.SignalException: ") == tracebacks
