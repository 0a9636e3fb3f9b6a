"""A process that makes no progress says where it stands, and ends, so that its launcher can end or restart the run."""

import faulthandler
import io
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from spkexp import distributed

# After the process that hangs, those that wait for it have their say; the last word has a clock of another process.
_WAITING_SECONDS, _STUCK_SECONDS = 20.0, 40.0
# Files in whose functions a process waits for the others. Backward is where gradients are exchanged.
_MEETINGS = ("torch/distributed/", "spkexp/distributed.py", "torch/autograd/graph.py")


# Started as a child: PID SECONDS NAME. A byte is a sign of life, p one that no more are to be expected until the next.
# It counts its own ticks, and none while the process is suspended: a clock on the wall would go off on waking. What
# asks the run to stop is no business of its.
_CLOCK = """
import os, select, signal, sys
for name in ("INT", "TERM", "HUP", "USR1", "USR2", "ALRM"):
    signal.signal(getattr(signal, "SIG" + name), signal.SIG_IGN)
pid, seconds, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
tick, silent, paused = min(1.0, seconds / 10), 0.0, False
while silent <= seconds:
    if select.select([0], [], [], tick)[0]:
        signs = os.read(0, 4096)
        if not signs:
            sys.exit()
        silent, paused = 0.0, signs.endswith(b"p")
        continue
    if os.getppid() != pid:
        sys.exit()
    try:
        with open(f"/proc/{pid}/stat") as file:
            suspended = file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:  # a system without it
        suspended = False
    if not (paused or suspended):
        silent += tick
line = f"spkexp: {name} has kept the interpreter to itself for {silent:.0f} s; it is aborted, with the stacks below"
os.write(2, line.encode() + bytes([10]))
os.kill(pid, signal.SIGABRT)
"""


class Watchdog:
    """While the block runs, `beat` must be called at least every `timeout_minutes`; else the process ends with code 1.

    Before that it writes the stacks of all its threads to stderr and to folder/stacks/rank-N.txt: rank, host, process,
    how long it is, after what, and whether the main thread waits in an exchange with the others, who will be told
    apart from the one that they wait for. The others' collectives must wait longer: `distributed.PATIENCE` does.

    A thread watches, and counts the time that it was there itself: a process that is suspended (Ctrl-Z, scontrol
    suspend) is not late when it wakes. Where the thread cannot run, for the main thread keeps the interpreter to itself
    in some library, a child with a clock has the process abort 40 s later, with its stacks on stderr.
    """

    def __init__(self, timeout_minutes: float, folder: Path) -> None:
        self.seconds, self.file = 60 * timeout_minutes, folder / "stacks" / f"rank-{distributed.rank()}.txt"
        self._beats, self._where = 0, "the start"
        self._pauses = 0
        self._clock: subprocess.Popen[bytes] | None = None
        self._catches_aborts = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat("the start")
        self._catches_aborts = not faulthandler.is_enabled()
        if self._catches_aborts:
            faulthandler.enable(file=2)
        limit = str(self.seconds + _STUCK_SECONDS)
        command = [sys.executable, "-I", "-S", "-c", _CLOCK, str(os.getpid()), limit, _name()]
        self._clock = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._clock is not None:
            self._clock.kill()
            self._clock.communicate()
        if self._catches_aborts:
            faulthandler.disable()

    def beat(self, where: str) -> None:
        """There is progress: `where` has been reached."""
        self._where, self._beats = where, self._beats + 1

    @contextmanager
    def pause(self, where: str) -> Iterator[None]:
        """Not watched while the block runs, which takes as long as it takes."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self.beat(where)
            if not self._pauses:
                self._sign(b".")  # now, for the main thread may be about to keep the interpreter to itself

    def _watch(self) -> None:
        interval = min(1.0, self.seconds / 10)
        silent, beats, now = 0.0, self._beats, time.monotonic()
        while not self._over.wait(interval):
            self._sign(b"p" if self._pauses else b".")
            # What is more than a tick, and some, the process was suspended, or so short of time that nothing is late.
            before, now = now, time.monotonic()
            silent += min(now - before, 2 * interval)
            if self._pauses or self._beats != beats:
                silent, beats = 0.0, self._beats
            elif silent > self.seconds:
                waiting = self._waits()
                if not waiting or silent > self.seconds + _WAITING_SECONDS:
                    self._end(silent, waiting)

    def _sign(self, sign: bytes) -> None:
        assert self._clock is not None
        assert self._clock.stdin is not None
        with suppress(BrokenPipeError):  # somebody has killed the clock
            self._clock.stdin.write(sign)

    def _waits(self) -> bool:
        """Whether the main thread stands in an exchange with other processes."""
        main = threading.main_thread().ident
        frame: FrameType | None = sys._current_frames().get(main) if main is not None else None
        if frame is None or distributed.world_size() == 1:
            return False
        # The innermost call alone: DDP's own forward is below every other.
        return any(part in frame.f_code.co_filename for part in _MEETINGS)

    def _end(self, silent: float, waiting: bool) -> None:
        standing = (
            "it waits for the other processes: one of them hangs, and its stack says where"
            if waiting
            else "it does not wait for another process: the run hangs here"
        )
        text = io.StringIO()
        print(
            f"spkexp: {_name()} has made no progress for {silent:.0f} s since {self._where}; {standing}",
            file=text,
        )
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for number, frame in sys._current_frames().items():
            if number != threading.get_ident():
                print(f"Thread {names.get(number, number)}:", file=text)
                text.writelines(traceback.format_stack(frame))
        try:
            os.write(2, text.getvalue().encode())  # not by way of sys.stderr: the main thread may hold its lock
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(text.getvalue(), encoding="utf-8")
        finally:
            os._exit(1)


def _name() -> str:
    """The process, for people."""
    return f"rank {distributed.rank()} of {distributed.world_size()} on {socket.gethostname()} (process {os.getpid()})"
