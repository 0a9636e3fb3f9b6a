"""Real runs that are made to be broken: how they start, how they are killed, and what is left running."""

import importlib
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import tests.conftest  # noqa: F401 (it gives SPKEXP_CACHE a place that goes with the tests)

ROOT = Path(__file__).parents[2]
MARK = "SPKEXP_FAULTS"  # in the environment of every process that is started here, and so of all below it
TIMEOUT = 120.0  # seconds after which something hangs
# Where Python is told not to write compiled modules beside its libraries, they are kept elsewhere: a hundred starts are
# to be fast.
BYTECODE = (
    {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{os.environ['SPKEXP_CACHE']}/bytecode"}
    if sys.dont_write_bytecode
    else {}
)


class Hang(AssertionError):
    """Something took longer than it may."""


def command(*arguments: str, processes: int = 1) -> list[str]:
    """`python -m spkexp.train`, with more than one process below torchrun."""
    if processes == 1:
        return [sys.executable, "-m", "spkexp.train", *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return [*launcher, f"--nproc-per-node={processes}", "-m", "spkexp.train", *arguments]


class Run:
    """A command under way. `forked`: a fork of a process that has imported torch, which saves seconds; else its own.

    What it prints goes to the file `output`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        output: Path,
        forked: bool,
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.output, self.mark = output, _FORKING.mark if forked else secrets.token_hex(8)
        self.environment = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self._own = {os.getpid()}
        self._child: Any
        if forked:
            assert processes == 1
            self._child = _FORKING.start(arguments, output, self.environment)
            self._own |= _FORKING.helpers()
        else:
            with output.open("wb") as file:
                self._child = subprocess.Popen(
                    [*prefix, *command(*arguments, processes=processes)],
                    env={**os.environ, **BYTECODE, "PYTHONPATH": str(ROOT), MARK: self.mark, **self.environment},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        self.pid: int = self._child.pid

    def code(self) -> int | None:
        """The exit code, minus the signal's number where one killed it; None while it runs."""
        return self._child.exitcode if hasattr(self._child, "exitcode") else self._child.poll()

    def wait(self, seconds: float = TIMEOUT) -> int:
        """The exit code. Raises Hang, with the whole tree killed."""
        wait_for(lambda: self.code() is not None, self, seconds, may_end=True)
        code = self.code()
        assert code is not None
        return code

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """To the command's first process alone."""
        os.kill(self.pid, number)

    def kill(self, pid: int) -> None:
        """SIGKILL to one process, which may be gone already."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def tree(self) -> dict[int, str]:
        """Every process that the command started and that is alive: pid -> command line."""
        return {pid: line for pid, line in _marked(self.mark).items() if pid not in self._own}

    def kill_all(self) -> None:
        """SIGKILL to all its processes, as the end of a machine is."""
        for pid in (self.pid, *self.tree()):
            self.kill(pid)
        self.wait(10)

    def orphans(self, seconds: float = 15.0) -> dict[int, str]:
        """What still runs so long after the command's end; it is killed then, so that it disturbs nothing else."""
        end = time.monotonic() + seconds
        while (left := self.tree()) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            self.kill(pid)
        return left


def wait_for(
    condition: Callable[[], bool], run: Run, seconds: float = TIMEOUT, may_end: bool = False, expected: bool = False
) -> None:
    """Until `condition()`, asked thousands of times a second. Raises AssertionError if the run ends before.

    Past the time Hang is raised and the run killed; `expected`: it returns.
    """
    end = time.monotonic() + seconds
    while not condition():
        if not may_end and run.code() is not None and not condition():
            raise AssertionError(f"the run ended with {run.code()} too early:\n{run.text()[-3000:]}")
        if time.monotonic() > end:
            if expected:
                return
            said = run.text()[-3000:]
            run.kill_all()
            raise Hang(f"no end after {seconds:.0f} s:\n{said}")
        time.sleep(0.0001)


class _Forking:
    """A server that has imported torch and spkexp once and forks for each command."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["spkexp.train", "spkexp.experiment", "torch._dynamo", "spkexp.models.ecapa", "matplotlib.figure"]
        )

    def start(self, arguments: Sequence[str], output: Path, environment: Mapping[str, str]) -> Any:
        os.environ[MARK] = self.mark
        os.environ["OMP_NUM_THREADS"] = "1"
        child = self._context.Process(target=_train, args=(list(arguments), output, dict(environment)))
        child.start()
        return child

    def helpers(self) -> set[int]:
        return {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]


_FORKING = _Forking()


def _train(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """In the forked process: be `python -m spkexp.train ARGUMENTS`."""
    os.setsid()
    with output.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))  # noqa: SIM115 (the process's own)
    os.environ.update(environment)
    sys.argv = ["spkexp.train", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    importlib.import_module("spkexp.train").main()


def _marked(mark: str) -> dict[int, str]:
    """The processes whose environment holds the mark; a zombie has none any more."""
    found, wanted = {}, f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # gone, or another user's
            continue
    return found
