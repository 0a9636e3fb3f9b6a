"""A sweep: each job leaves a record, one that fails does not stop the others, and a signal stops all of them.

The command's process composes the jobs and waits; a launcher puts them into this process, others or other machines.
What they have in common is the folder runs/sweeps/<group>/, so that a job that died without a word is found as well.
"""

import gc
import logging
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from spkexp import records as on_disk
from spkexp.cli import Task, errors_to_exit_codes
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.outcome import Outcome
from spkexp.records import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, Record, Ticket
from spkexp.report.sweep import sweep_report

records = on_disk.records

FOLDER = Path("runs", "sweeps")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Where and how a sweep runs does not tell it from another.
_ELSEWHERE = (
    *("hydra/launcher", "hydra.launcher", "resume", "trainer.nproc", "trainer.device", "data.num_workers"),
    *(f"hydra.sweeper.{key}" for key in ("n_trials", "n_jobs", "max_failures")),  # a search that goes on longer
)


def exit_code(number: int) -> int:
    """75 (EX_TEMPFAIL: start it again) after a cluster's warning, else 128 and the signal, as shells have it."""
    return os.EX_TEMPFAIL if number in (signal.SIGUSR1, signal.SIGUSR2) else 128 + number


def run_sweep(overrides: list[str], first: DictConfig, start: Callable[[list[str]], None]) -> int:
    """Run all jobs by start(overrides to add) and print what became of them. Returns the exit code.

    first: the config of the first job. Jobs that finished in an earlier start of the same command are skipped, others
    go on (resume=auto), unless resume=… is given. Raises UserError where the same sweep is running already.
    """
    keys = {line.lstrip("+~").partition("=")[0]: line.partition("=")[2] for line in overrides}
    code = on_disk.fingerprint([line for line in overrides if not line.lstrip("+~").startswith(_ELSEWHERE)])[:8]
    group = first.tracking.group
    folder = (FOLDER / (f"sweep-{code}" if group is None else f"{group.replace('/', '-')}-{code}")).absolute()
    more = [] if "resume" in keys else ["resume=auto"]
    more += [] if group is not None else [f"tracking.group=sweep-{code}"]
    more.append(f"hydra.sweep.dir={_quoted(str(folder))}")
    busy = f"the same sweep is running already, in {folder}, by {{holder}}; wait for it or stop it"
    with hold(folder / ".lock", busy, "start from a folder that can be written to"):
        slurm = keys.get("hydra/launcher") == "submitit_slurm"  # its jobs outlive the command
        ticket = Ticket(secrets.token_hex(4), sys.orig_argv, socket.gethostname(), os.getpid(), not slurm, None)
        ticket.write(folder)
        with _Signals(folder, ticket) as signals:
            ended = _exit_code_of(lambda: start(more))
        search = keys.get("hydra/sweeper", "basic") != "basic"  # which prints a page of its own
        return _report(folder, ticket, signals.code or ended, shown=not search)


def _exit_code_of(start: Callable[[], None]) -> int:
    try:
        start()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return exit_code(signal.SIGINT)
    return 0


def _report(folder: Path, ticket: Ticket, ended: int, shown: bool) -> int:
    for record in records(folder):
        if record.status == RUNNING and record.start == ticket.start:
            record.now(status=FAILED, error="ended without a message: killed, or out of memory").write(folder)
    found = records(folder)
    if found and shown:
        print(sweep_report(found, on_disk.differences(found)), flush=True)
    this = [record for record in found if record.start == ticket.start]
    stopped = Ticket.read(folder).stopped
    if stopped is None and any(record.status == STOPPED for record in this):
        stopped = exit_code(signal.SIGTERM)
    if stopped is not None:
        print("spkexp: the sweep was stopped; the same command goes on with it", file=sys.stderr)
        return stopped
    return ended or int(any(record.status == FAILED for record in this))


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
    own_process = (start.host, start.pid) != (host, pid)
    begin = time.monotonic()
    with _nothing_stays(), _own_process(start) if own_process else nullcontext():
        record, code = _attempt(task, cfg, overrides, record)
    record = record.now(seconds=round(time.monotonic() - begin, 3))
    record.write(folder)
    if record.status == STOPPED:
        if "SUBMITIT_EXECUTOR" not in os.environ:  # else it may have been requeued, and others are no concern of it
            Ticket.read(folder).stop(folder, code)
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
    except Exception:
        traceback.print_exc()
        code = 1
    if isinstance(outcome, Outcome):
        status = PRUNED if outcome.pruned else FINISHED
        return record.now(status=status, run_dir=outcome.run_dir, value=outcome.value), code
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


@contextmanager
def _own_process(ticket: Ticket) -> Iterator[None]:
    """A job in another process than the sweep's: it stops by signals that it is sent, and when the sweep is gone."""
    if ticket.watched and ticket.host == socket.gethostname():
        if os.getpid() != os.getpgid(0):
            os.setpgid(0, 0)  # Ctrl-C reaches the sweep alone, which passes it on
        threading.Thread(target=_end_with, args=(ticket.pid,), daemon=True).start()
    numbers = STOPPING[:2] if threading.current_thread() is threading.main_thread() else ()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # Ray's workers are born with Ctrl-C blocked
    # Before training and after it nothing is to be saved; meanwhile training has a handler of its own.
    former = {number: signal.signal(number, _leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(exit_code(number))


def _end_with(pid: int) -> None:
    """Wait until the process ends, then stop this one, which saves."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        pass
    else:
        select.select([descriptor], [], [])
        os.close(descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


class _Signals:
    """While the block runs, a signal to the sweep stops all jobs: `code` is then the exit code, else None.

    No further job starts, those that run are passed the signal and waited for; a second one is passed on as well,
    and they end at once.
    """

    def __init__(self, folder: Path, ticket: Ticket) -> None:
        self.folder, self.ticket = folder, ticket
        self.code: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.code = self.code is None, exit_code(number)
        self.ticket.stop(self.folder, self.code)
        running = self._running()
        if first and running:
            name, count = signal.Signals(number).name, len(running)
            print(
                f"spkexp: {name}: {count} job{'s' * (count != 1)} to save and stop (once more: stop at once)",
                file=sys.stderr,
                flush=True,
            )
        for record in running:
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(record.pid, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        while first and self._running():
            time.sleep(0.1)
        if first:
            sys.exit(self.code)

    def _running(self) -> list[Record]:
        """Jobs of this start in other processes of this machine."""
        found = [record for record in records(self.folder) if record.start == self.ticket.start]
        return [record for record in found if record.is_here and record.pid != os.getpid()]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
