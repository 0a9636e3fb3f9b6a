"""A sweep: each job leaves a record, one that fails does not stop the others, and a signal stops all of them.

The command's process composes the jobs and waits; a launcher puts them into this process, others or other machines.
What they have in common is the folder runs/sweeps/<group>/, so that a job that died without a word is found as well.
"""

import gc
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from spkexp import exit_codes
from spkexp import records as on_disk
from spkexp.cli import Task, errors_to_exit_codes
from spkexp.compose import option
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.outcome import Outcome
from spkexp.pruning import masked
from spkexp.records import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, Record, Ticket
from spkexp.report.finished import other_code
from spkexp.report.sweep import sweep_report
from spkexp.sweep_signals import Signals, own_process

records = on_disk.records

FOLDER = Path("runs", "sweeps")


def run_sweep(overrides: list[str], first: DictConfig, start: Callable[[list[str]], None]) -> int:
    """Run all jobs by start(overrides to add) and print what became of them. Returns the exit code.

    first: the config of the first job. Jobs that finished in an earlier start of the same command are skipped, others
    go on (resume=auto), unless resume=… is given. Raises UserError where the same sweep is running already.
    """
    code = on_disk.fingerprint_of_sweep(overrides)[:8]
    group = first.tracking.group
    folder = (FOLDER / (f"sweep-{code}" if group is None else f"{group.replace('/', '-')}-{code}")).absolute()
    more = [] if any(line.lstrip("+~").startswith("resume=") for line in overrides) else ["resume=auto"]
    more += [] if group is not None else [f"tracking.group=sweep-{code}"]
    more.append(f"hydra.sweep.dir={_quoted(str(folder))}")
    busy = f"the same sweep is running already, in {folder}, by {{holder}}; wait for it or stop it"
    with hold(folder / ".lock", busy, "start from a folder that can be written to"):
        # As all jobs were composed just now.
        slurm = option("hydra/launcher") == "submitit_slurm"  # its jobs outlive the command
        search = option("hydra/sweeper") != "basic"  # which prints a page of its own
        _await_former_jobs(folder)
        ticket = Ticket(
            secrets.token_hex(4),
            [masked(argument) for argument in sys.orig_argv],
            socket.gethostname(),
            os.getpid(),
            not slurm,
            None,
        )
        ticket.write(folder)
        with Signals(folder, ticket) as signals:
            ended = _exit_code_of(lambda: start(more))
        return _report(folder, ticket, signals.code, ended, shown=not search)


def _await_former_jobs(folder: Path) -> None:
    """Until those that an earlier start left behind, killed, have saved; UserError where Slurm still has some."""
    if (folder / "sweep.json").is_file() and (left := _in_slurm(Ticket.read(folder).slurm, folder)):
        raise UserError(
            f"Slurm still has jobs of this sweep, started before, in {folder}: wait for them, or cancel them and "
            f"start again: scancel {' '.join(left)}"
        )
    said = False
    while running := [record for record in records(folder) if record.is_here]:
        if not said:
            numbers = ", ".join(str(record.pid) for record in running)
            print(f"spkexp: waiting for jobs of an earlier start to save: process {numbers}", file=sys.stderr)
        said = True
        time.sleep(0.2)


def _in_slurm(jobs: list[str], folder: Path) -> list[str]:
    """Those of `jobs` that are queued or run. Raises UserError where Slurm does not say."""
    if not jobs:
        return []
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(jobs)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        failure = done.stderr.strip() if done.returncode != 0 else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure is None:
        return [job for job in done.stdout.split() if job in jobs]
    if "Invalid job id" in failure:  # Slurm has forgotten them
        return []
    raise UserError(
        f"whether Slurm still has jobs {' '.join(jobs)} of this sweep cannot be told: {failure}; start it where squeue "
        f"works, or, if they are over, remove {folder / 'sweep.json'}"
    )


def _exit_code_of(start: Callable[[], None]) -> int:
    try:
        start()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return exit_codes.of_signal(signal.SIGINT)
    return 0


def _report(folder: Path, ticket: Ticket, signalled: int | None, ended: int, shown: bool) -> int:
    """signalled: the exit code of the signal that the sweep itself got, which counts more than those of its jobs."""
    stopped = signalled or Ticket.read(folder).stopped
    for record in records(folder):
        if record.status == RUNNING and record.start == ticket.start:
            if stopped is None:
                record = record.now(status=FAILED, error="ended without a message: killed, or out of memory")
            else:  # on another machine it may still save
                record = record.now(status=STOPPED)
            record.write(folder)
    found = [record for record in records(folder) if record.start == ticket.start]
    if found and shown:
        print(sweep_report(found, on_disk.differences(found)), flush=True)
        shorter = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        print(f"\nsweep folder: {shorter}", flush=True)
    if stopped is None and any(record.status == STOPPED for record in found):
        stopped = exit_codes.of_signal(signal.SIGTERM)
    if stopped is not None:
        print("spkexp: the sweep was stopped; the same command goes on with it", file=sys.stderr)
        return stopped
    return ended or int(any(record.status == FAILED for record in found))


def run_job(task: Task, cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """task(cfg, overrides) as one job of a sweep, recorded. Raises SystemExit where a signal stopped it, nothing else.

    Returns {"status": finished | failed | pruned | stopped, "value": what chose the best checkpoint, "error": str or
    None, "run_dir": str or None}.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir)
    start = Ticket.read(folder)
    host, pid = socket.gethostname(), os.getpid()
    record = Record(int(hydra.job.num), overrides, RUNNING, None, None, None, 0.0, start.start, host, pid)
    record = record.now(born=on_disk.born(pid))
    if int(os.environ.get("SLURM_PROCID", "0")) != 0:  # a node of a job over several; the first one keeps the record
        with errors_to_exit_codes():
            task(cfg, overrides)
        return record.now(status=FINISHED).result
    # First the record, then the question whether to stop; whoever stops says so first, then looks for records.
    record.write(folder)
    if (code := Ticket.read(folder).stopped) is not None:
        record.now(status=STOPPED).write(folder)
        if start.pid == pid:
            sys.exit(code)
        return record.now(status=STOPPED).result
    elsewhere = (start.host, start.pid) != (host, pid)
    begin = time.monotonic()
    with _nothing_stays(), own_process(start) if elsewhere else nullcontext():
        record, code = _attempt(task, cfg, overrides, record)
    record = record.now(seconds=round(time.monotonic() - begin, 3))
    if (
        Ticket.read(folder).start == start.start
    ):  # else the sweep was killed and started anew, and what this job did is no news of that start
        record.write(folder)
    if record.status == STOPPED:
        if "SUBMITIT_EXECUTOR" not in os.environ:  # else it may have been requeued, and others are no concern of it
            start.stop(folder, code)
        sys.exit(code)
    return record.result


def _attempt(task: Task, cfg: DictConfig, overrides: list[str], record: Record) -> tuple[Record, int]:
    """(the record of what became of the job, its exit code as a command of its own)."""
    error, outcome, code = None, None, 0
    try:
        with errors_to_exit_codes():
            try:
                outcome = task(cfg, overrides)
            except Exception as failure:
                error = describe(failure)
                raise
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # of whatever kind: the other jobs go on, and the record says what it was
        traceback.print_exc()
        code = 1
    if isinstance(outcome, Outcome):
        status = PRUNED if outcome.pruned else FINISHED
        other = other_code(Path(outcome.run_dir))
        return record.now(status=status, run_dir=outcome.run_dir, value=outcome.value, code=other), code
    record = record.now(run_dir=_run_folder())
    if code in (0, 1, 2):
        return record.now(status=FAILED, error=error or f"exit code {code}"), code
    return record.now(status=STOPPED, error=error), code


def describe(error: BaseException) -> str:
    """What failed, on one line: a user's mistake as it is, anything else with the name of its type."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, UserError):
        return "; ".join(lines)
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _run_folder() -> str | None:
    """Where the run of this process keeps its log."""
    files = [h.baseFilename for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    # Where nothing was trained the folder is gone again.
    return str(Path(files[0]).parent) if files and Path(files[0]).exists() else None


@contextmanager
def _nothing_stays() -> Iterator[None]:
    """The next job in this process finds it as this one did: environment, log handlers and levels, memory."""
    environment, root = dict(os.environ), logging.getLogger()
    handlers, levels = list(root.handlers), (root.level, logging.getLogger("spkexp").level)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        logging.getLogger("spkexp").setLevel(levels[1])
        gc.collect()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
