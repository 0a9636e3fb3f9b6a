"""What a sweep keeps on disk: a record of each job, and one of itself, in files that every process of it can read."""

import hashlib
import json
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from spkexp.errors import UserError
from spkexp.resume import IMMATERIAL, NEVER
from spkexp.whole_file import write_json

FINISHED, FAILED, PRUNED, STOPPED, RUNNING = "finished", "failed", "pruned", "stopped", "running"
# Keys that a sweep, or a search, sets itself: they tell no job from another.
_OWN = ("resume", "tracking.group", "search")
# What tells neither a job nor a sweep from another: where and how it runs, and that a search goes on longer.
_ELSEWHERE = (
    *(key for key in IMMATERIAL if key != "search"),  # a search sets it: the number of the trial
    *("hydra/launcher", "hydra.launcher", "hydra.mode"),
    *(f"hydra.sweeper.{key}" for key in ("n_trials", "n_jobs", "max_failures")),
)


@dataclass(frozen=True)
class Record:
    """One job of a sweep. number: counted from 0; overrides: what its config was composed of.

    status: running | finished | failed | stopped (by a signal) | pruned (by a search). error: why it failed. value:
    what chose the best checkpoint. seconds: how long it ran in this start of the sweep, `start`. host, pid: where.
    born: when that process began, which tells it from a later one of its number; None: nobody knows. code: of a run
    that finished before, the other version of the code that trained it.
    """

    number: int
    overrides: list[str]
    status: str
    error: str | None
    run_dir: str | None
    value: float | None
    seconds: float
    start: str
    host: str
    pid: int
    born: str | None = None
    code: str | None = None

    def file(self, folder: Path) -> Path:
        return folder / f"{fingerprint(self.overrides)}.json"

    def write(self, folder: Path) -> None:
        write_json(self.file(folder), asdict(self))

    def now(self, **changes: Any) -> "Record":
        return replace(self, **changes)

    @property
    def result(self) -> dict[str, Any]:
        """What a job returns to the sweep: status, value, error and run_dir."""
        return {"status": self.status, "value": self.value, "error": self.error, "run_dir": self.run_dir}

    @property
    def is_here(self) -> bool:
        """Whether the job runs on this machine in another process, which still exists."""
        if self.status != RUNNING or self.host != socket.gethostname() or self.pid == os.getpid():
            return False
        return is_alive(self.pid) and self.born in (None, born(self.pid))


@dataclass(frozen=True)
class Ticket:
    """The sweep itself, sweep.json. start: tells this start of it from others; host, pid: the process of the command.

    watched: a job ends when that process does. stopped: the exit code with which the sweep was stopped; no job starts.
    slurm: the jobs that it left to Slurm.
    """

    start: str
    command: list[str]
    host: str
    pid: int
    watched: bool
    stopped: int | None
    slurm: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        write_json(folder / "sweep.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> "Ticket":
        return Ticket(**_read(folder / "sweep.json", "start the same command again"))

    def stop(self, folder: Path, code: int) -> None:
        """Let no further job start. The first code stays; that of a later start of the sweep is no concern of this."""
        now = Ticket.read(folder)
        if now.start == self.start and now.stopped is None:
            replace(now, stopped=code).write(folder)

    def leave_to_slurm(self, folder: Path, jobs: list[str]) -> None:
        replace(self, slurm=jobs).write(folder)


def records(folder: Path) -> list[Record]:
    """All jobs that a sweep, in `folder`, has started so far, in order."""
    files = [file for file in folder.glob("*.json") if re.fullmatch(r"[0-9a-f]{12}\.json", file.name)]
    found = [_record(file) for file in files]
    return sorted(found, key=lambda record: (record.number, record.start))


def record_of(folder: Path, overrides: Sequence[str]) -> Record | None:
    """The record of the job with these overrides; None if it never began."""
    file = folder / f"{fingerprint(overrides)}.json"
    return _record(file) if file.is_file() else None


def _record(file: Path) -> Record:
    return Record(**_read(file, "remove it, and the same command runs that job again"))


def _read(file: Path, remedy: str) -> dict[str, Any]:
    """A power cut can leave a file empty. Raises UserError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); {remedy}") from None


def differences(found: Sequence[Record]) -> list[list[str]]:
    """Of each record the overrides that not all of them have."""
    own = [[line for line in record.overrides if not _is_below(line, _OWN)] for record in found]
    common = set.intersection(*map(set, own)) if len(own) > 1 else set()
    return [[line for line in lines if line not in common] for lines in own]


def fingerprint(overrides: Sequence[str]) -> str:
    """12 hex digits that are the same for the same jobs, or sweeps: whatever the order, and wherever they run.

    With resume=never each job is a run of its own, even if it differs from another in where it runs alone.
    """
    apart = any(line.lstrip("+") == f"resume={NEVER}" for line in overrides)
    left_out = ("resume",) if apart else _ELSEWHERE
    text = "\n".join(sorted(line for line in overrides if not _is_below(line, left_out)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fingerprint_of_sweep(overrides: Sequence[str]) -> str:
    """As `fingerprint`, of a command line."""
    return fingerprint([line for line in overrides if not _is_below(line, _ELSEWHERE)])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where there is none, or it has ended and nobody asked yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] == "Z" else stat[19]


def _is_below(override: str, keys: Sequence[str]) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return any(key == parent or key.startswith(f"{parent}.") for parent in keys)
