"""Which signals stop, which hurry, with which exit code, and who hears of it afterwards."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spkexp import interrupt
from spkexp.interrupt import Stopped, StopRequest

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interrupt, "ONE_REQUEST_SECONDS", 0.2)
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL", raising=False)
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    assert {number: signal.getsignal(number) for number in HANDLED} == before


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 75),
        (signal.SIGUSR2, 75),
    ],
)
def test_a_signal_asks_to_stop(number: signal.Signals, code: int) -> None:
    with StopRequest() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
    stopped = stop.stopped()
    assert (stopped.signal, stopped.exit_code) == (number, code)
    with pytest.raises(SystemExit) as end:
        stopped.leave()
    assert end.value.code == code


def test_submitits_signal_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Stopped(signal.SIGTERM).exit_code == 143
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "TERM")
    assert Stopped(signal.SIGTERM).exit_code == 75


def test_the_same_signal_once_more_stops_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same Ctrl-C by another way
        time.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)  # asks for what is being done
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.stopped().signal == signal.SIGINT


def test_warnings_never_hurry_and_count_before_others() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)
            time.sleep(0.3)
        assert stop.stopped().signal == signal.SIGUSR2
        assert stop.received() == {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def test_signals_are_passed_on() -> None:
    passed: list[int] = []
    with StopRequest(passed.append) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)
    assert passed == [signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM]
    assert stop.stopped().exit_code == 75


def test_with_nothing_to_save_it_stops_at_once() -> None:
    assert not issubclass(Stopped, Exception)  # of which libraries catch any, to go on with something else
    with StopRequest() as stop, stop.at_once():
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.exit_code == 143
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)  # what happens at the end is not broken off
        assert stop.ending().exit_code == 75
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_in_between_it_is_asked_to_stop() -> None:
    def nobody_heeds() -> None:
        with stop.asked() as same:
            assert not same()
            signal.raise_signal(signal.SIGUSR1)
            assert same()

    def fails() -> None:
        with stop.asked():
            raise ValueError("mine")

    with StopRequest() as stop, stop.at_once():
        with pytest.raises(Stopped, match="SIGUSR1"):
            nobody_heeds()
        with pytest.raises(ValueError, match="mine"):
            fails()
    with StopRequest() as stop, stop.at_once():
        with stop.asked():
            pass
        with pytest.raises(Stopped, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)


def test_what_another_process_received_does_not_stop_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spkexp.distributed.gather", lambda own: [own, signal.SIGTERM])
    with StopRequest() as stop, stop.at_once():
        with pytest.raises(Stopped, match="SIGTERM"), stop.asked():
            raise stop.stopped()
        signal.raise_signal(signal.SIGTERM)  # a little later here


def test_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_outside_the_main_thread_there_are_no_handlers() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_an_earlier_handler_of_a_warning_is_called_when_all_is_done() -> None:
    calls: list[object] = []

    def requeue(number: int, frame: object) -> None:
        calls.append((number, stop()))
        sys.exit(-1)

    previous = signal.signal(signal.SIGUSR2, requeue)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGUSR2)
            stopped = stop.stopped()
        assert calls == []
        with pytest.raises(SystemExit) as end:
            stopped.leave()
        assert (calls, end.value.code) == ([(signal.SIGUSR2, True)], -1)
    finally:
        signal.signal(signal.SIGUSR2, previous)
    with StopRequest() as stop:  # Python's own handler of SIGINT is not a requeuer
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        stop.stopped().leave()


class Job:
    """A job of submitit: stopped once, it notes where it was; submitit starts it again."""

    def __call__(self, folder: str) -> int:
        position = Path(folder, "position")
        if position.exists():
            return int(position.read_text())
        with StopRequest() as stop:
            Path(folder, "trains").touch()
            for step in range(1_000):
                time.sleep(0.05)
                if stop():
                    position.write_text(str(step))
                    stopped = stop.stopped()
                    break
        return stopped.leave()

    def checkpoint(self, folder: str) -> object:
        import submitit

        return submitit.helpers.DelayedSubmission(self, folder)


@pytest.mark.slow
def test_submitit_requeues_a_job_that_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    executor = submitit.LocalExecutor(tmp_path / "log")
    executor.update_parameters(timeout_min=5, signal_delay_s=10)
    job = executor.submit(Job(), str(tmp_path))
    end = time.monotonic() + 120
    while not (tmp_path / "trains").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    (worker,) = _children(job.job_id)
    os.kill(worker, signal.SIGUSR2)
    assert job.result() == int((tmp_path / "position").read_text())


def _children(process: str) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
