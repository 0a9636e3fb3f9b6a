"""A sweep in this process: records, what stays of a job, names, signals, the table at the end."""

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spkexp import exit_codes, sweep, sweep_signals
from spkexp.errors import ConfigError, UserError
from spkexp.records import Record, Ticket, born, differences, fingerprint, fingerprint_of_sweep, record_of, records
from spkexp.report import finished
from spkexp.report.sweep import sweep_report
from tests import fake_slurm, sweep_program
from tests.conftest import Done

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
Program = Callable[..., Done]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """program(ARGUMENT, …): tests/sweep_program.py with -m, in this process and in a folder of its own."""
    folder = tmp_path / "my sweeps ü"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sweep_program", "-m", *arguments])
        capfd.readouterr()
        code = 0
        try:
            sweep_program.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capfd.readouterr())

    return run


def the_folder() -> Path:
    (folder,) = Path("runs", "sweeps").iterdir()
    return folder


def events(name: str) -> list[list[str]]:
    file = Path("runs", name, "events")
    return [line.split(" ") for line in file.read_text().splitlines()] if file.exists() else []


def test_one_failed_job_does_not_stop_the_others(program: Program) -> None:
    before = list(logging.getLogger().handlers)
    done = program("names.model=user,raise,two,prune,ok", "seed=3")
    assert done.code == 1
    found = records(the_folder())
    assert [(r.number, r.status, r.value) for r in found] == [
        (0, "failed", None),
        (1, "failed", None),
        (2, "failed", None),
        (3, "pruned", 0.3),
        (4, "finished", 0.3),
    ]
    errors = [r.error for r in found]
    assert errors[:2] == ["data.manifest: no such file; make it", "ZeroDivisionError: another line"]
    assert errors[2:] == ["exit code 2", None, None]
    assert [Path(r.run_dir or "").name for r in found] == ["user-3", "raise-3", "two-3", "prune-3", "ok-3"]
    assert "3 of 5 jobs failed:" in done.out
    assert "  0  names.model=user: data.manifest: no such file; make it" in done.out
    assert "more in runs/raise-3/train.log" in done.out
    assert "ZeroDivisionError" in Path("runs/raise-3/train.log").read_text()
    assert max(map(len, done.out.splitlines())) <= 80
    # Each job found the process as the one before it did, and belongs to the sweep's group.
    group = the_folder().name
    for name in ("user-3", "raise-3", "ok-3"):
        ((_, pid, resume, its_group, left),) = events(name)
        assert (pid, resume, its_group, left) == (str(os.getpid()), "auto", group, "")
    assert logging.getLogger().handlers == before
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_the_same_command_is_the_same_sweep(program: Program) -> None:
    assert program("names.model=ok", "seed=0,1").code == 0
    first = the_folder()
    starts = {record.start for record in records(first)}
    done = program("seed=0,1", "names.model=ok", "resume=never", "data.num_workers=0")
    assert done.code == 0
    assert the_folder() == first
    assert starts < {record.start for record in records(first)}
    assert [event[2] for event in events("ok-1")] == ["auto", "never"]
    assert done.out.count("finished") == 2  # the jobs of this start
    ids = [["seed=0", "trainer.nproc=2", "hydra/launcher=ray"], ["hydra.sweeper.n_trials=3", "seed=0", "resume=never"]]
    assert len({fingerprint_of_sweep(lines) for lines in ids}) == 1
    assert fingerprint_of_sweep(["seed=0,1"]) != fingerprint_of_sweep(["seed=0"])


def test_a_group_of_the_user_stays(program: Program) -> None:
    assert program("names.model=ok", "seed=0,1", "tracking.group=my/paper").code == 0
    assert the_folder().name.startswith("my-paper-")
    assert events("ok-0")[0][3] == "my/paper"


def test_a_job_that_asks_to_be_started_again_stops_the_sweep(program: Program) -> None:
    done = program("names.model=requeue,ok", "seed=0")
    assert done.code == 75
    assert [record.status for record in records(the_folder())] == ["stopped"]
    assert events("ok-0") == []
    assert "the same command goes on with it" in done.err


def test_a_sweep_runs_once_at_a_time(program: Program) -> None:
    assert program("names.model=ok", "seed=0").code == 0
    with (the_folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = program("names.model=ok", "seed=0")
    assert done.code == 2
    assert "the same sweep is running already" in done.err


def test_where_nothing_can_be_written(program: Program) -> None:
    Path("runs").write_text("in the way")
    done = program("names.model=ok", "seed=0,1")
    assert done.code == 2
    assert "cannot be written" in done.err


def test_mistakes_and_torchrun_come_before_the_first_job(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    done = program("names.model=ok", "seed=0,-1")
    assert (done.code, done.err) == (2, "spkexp: 1 mistake in the config\n  seed: must be >= 0, got -1\n")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    done = program("names.model=ok", "seed=0,1")
    assert done.code == 2
    assert "-m does not work under torchrun" in done.err
    assert not Path("runs").exists()


def test_a_job_of_a_killed_start_keeps_out_of_the_next(program: Program) -> None:
    assert program("names.model=anew", "seed=0").code == 143
    ticket = Ticket.read(the_folder())
    assert (ticket.start, ticket.stopped) == ("later", None)
    (left,) = records(the_folder())
    assert left.error != "exit code 143"
    with subprocess.Popen(["sleep", "2"]) as other:  # it saves
        left.now(status="running", start="killed", pid=other.pid, born=born(other.pid)).write(the_folder())
        assert records(the_folder())[0].is_here
        sweep._await_former_jobs(the_folder())
        assert other.poll() == 0


def test_a_process_of_the_same_number_is_not_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        mine = Record(0, [], "running", None, None, None, 0.0, "ab", socket.gethostname(), other.pid, born(other.pid))
        assert mine.is_here
        assert not mine.now(born="1").is_here
        other.kill()


def test_jobs_that_slurm_still_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, folder = tmp_path / "slurm", tmp_path / "sweep"
    for name, value in fake_slurm.install(slurm).items():
        monkeypatch.setenv(name, value)
    folder.mkdir()
    Ticket("ab", [], "host", 1, False, None, ["4711_0", "4711_1"]).write(folder)
    (slurm / "4711_0").write_text("COMPLETED")
    (slurm / "4711_1").write_text("PENDING")
    with pytest.raises(UserError, match=r"scancel 4711_1$"):
        sweep._await_former_jobs(folder)
    (slurm / "4711_1").write_text("FAILED")
    sweep._await_former_jobs(folder)
    (slurm / "down").touch()
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        sweep._await_former_jobs(folder)


def test_a_job_ends_with_its_sweep_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int) -> int:
        raise OSError("Operation not permitted")

    got: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    monkeypatch.setattr(os, "pidfd_open", refused)
    monkeypatch.setattr(sweep_signals, "POLL_SECONDS", 0.01)
    try:
        other = subprocess.Popen(["sleep", "0.1"])
        threading.Timer(0.3, other.wait).start()
        sweep_signals._end_with(other.pid)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert got == [signal.SIGTERM]
    assert other.returncode == 0


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
    assert [exit_codes.of_signal(number) for number in numbers] == [130, 143, 129, 75, 75]
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "CONT")
    assert exit_codes.of_signal(signal.SIGCONT) == 75
    ticket = Ticket("ab", [], "host", 1, True, None)
    ticket.write(tmp_path)
    got = sweep_signals.Signals(tmp_path, ticket)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGTERM, 75)):
        with pytest.raises(SystemExit, match=str(code)):
            got._receive(number, None)


def test_results_of_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, object] = {"commit": "b" * 40, "modified": True, "diff": "1"}
    monkeypatch.setattr(finished, "code_state", lambda: now)
    monkeypatch.setattr(finished, "package_version", lambda: "2.0")

    def other(*starts: dict[str, object], version: str = "2.0") -> str | None:
        each = [{"git": git, "packages": {"spkexp": version}} for git in starts]
        (tmp_path / "environment.json").write_text(json.dumps({**each[0], "resumed": each[1:]}))
        return finished.other_code(tmp_path)

    assert finished.other_code(tmp_path) is None  # nothing tells
    old: dict[str, object] = {"commit": "a" * 40, "modified": False, "diff": None}
    assert other(old) == "commit aaaaaaa, this is bbbbbbb with changes"
    assert other(old, now) is None  # the last start is what made the results
    assert other({**now, "diff": "2"}) == "commit bbbbbbb with changes, this is the same with others"
    none: dict[str, object] = {"commit": None, "modified": None, "diff": None}
    assert other(none) is None
    assert other(none, version="1.0") == "spkexp 1.0, this is 2.0"
    row = record(0, ["seed=0"], "finished", None).now(code="commit aaaaaaa, this is bbbbbbb")
    text = sweep_report([row], [[]])
    assert "finished before  " in text
    assert "  0  trained by commit aaaaaaa, this is bbbbbbb" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_the_sweep(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.sweep_program", "-m", "names.model=wait", "seed=0,1"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "runs/wait-0/waits", process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + number
    assert (tmp_path / "runs/wait-0/saved").read_text() == number.name
    assert not (tmp_path / "runs/wait-1").exists()
    assert "stopped" in out


def wait_for(file: Path, process: subprocess.Popen[str], seconds: float = 60) -> None:
    begin = time.monotonic()
    while not file.exists():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() - begin < seconds, f"no {file}"
        time.sleep(0.05)


def test_describe() -> None:
    assert sweep.describe(ConfigError(["a: wrong", "b: wrong"])) == "a: wrong; b: wrong"
    assert sweep.describe(UserError("say\n  it\n")) == "say; it"
    assert sweep.describe(ValueError("first\nlast\n")) == "ValueError: last"
    assert sweep.describe(MemoryError()) == "MemoryError"


def record(number: int, overrides: list[str], status: str, folder: Path | None, error: str | None = None) -> Record:
    run_dir = None if folder is None else str(folder)
    return Record(number, overrides, status, error, run_dir, 0.5, 61.0, "ab", "host", 1)


def test_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lists = {"val": {"eer": 0.5, "eer_ci95": None}, "test": {"eer": 0.03141, "eer_ci95": [0.025, 0.041]}}
    (run / "results.json").write_text(json.dumps({"trials": lists}))
    found = [
        record(0, ["model=ecapa", "seed=0", "resume=auto", "data=x"], "finished", run),
        record(1, ["model=mamba", "seed=0", "resume=auto", "data=x"], "failed", None, "word " * 40),
    ]
    assert differences(found) == [["model=ecapa"], ["model=mamba"]]
    text = sweep_report(found, differences(found))
    lines = text.splitlines()
    (row,) = (line for line in lines if "finished" in line)
    assert row.split() == ["0", "model=ecapa", "finished", "3.14", "2.50–4.10", "61"]
    assert "EER %" in text
    assert "1 of 2 jobs failed:" in lines
    assert max(len(line) for line in lines if str(run) not in line) <= 80


def test_report_of_other_measures(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"trials": {"val": {"accuracy": 0.875, "macro_f1": 0.8}}}))
    found = [record(0, ["seed=0"], "finished", tmp_path), record(1, ["seed=1"], "finished", None)]
    text = sweep_report(found, differences(found))
    assert "accuracy % or value" in text
    assert "87.50" in text
    assert "0.5 " in text
    assert "95 % interval" not in text


def test_records_on_disk(tmp_path: Path) -> None:
    one = record(1, ["a=1", "b=ü", "resume=auto"], "running", None)
    one.write(tmp_path)
    assert record_of(tmp_path, ["b=ü", "a=1"]) == one  # whatever the order, and however it is resumed
    assert record_of(tmp_path, ["b=ü", "a=2"]) is None
    assert fingerprint(["a=1"]) != fingerprint(["a=12"])
    (tmp_path / ".half.json.partial").write_text("{")
    ticket = Ticket("ab", ["command"], "host", 1, True, None)
    ticket.write(tmp_path)
    ticket.stop(tmp_path, 143)
    ticket.stop(tmp_path, 75)  # the first stays
    assert Ticket.read(tmp_path).stopped == 143
    assert records(tmp_path) == [one]
    assert not one.is_here  # another machine's
