"""A process that makes no progress says where it stands, and ends, so that its launcher can end or restart the run."""

import faulthandler
import io
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from spkexp import distributed

# After the process that hangs, those that wait for it have their say; the last word has a clock that needs no Python.
_WAITING_SECONDS, _STUCK_SECONDS = 20.0, 40.0
# Files in whose functions a process waits for the others. Backward is where gradients are exchanged.
_MEETINGS = ("torch/distributed/", "spkexp/distributed.py", "torch/autograd/graph.py")


class Watchdog:
    """While the block runs, `beat` must be called at least every `timeout_minutes`; else the process ends with code 1.

    Before that it writes the stacks of all its threads to stderr and to folder/stacks/rank-N.txt: rank, host, process,
    how long it is, after what, and whether the main thread waits in an exchange with the others, who will be told
    apart from the one that they wait for. The others' collectives must wait longer: `distributed.PATIENCE` does.

    A thread watches. Where it cannot run, for the main thread keeps the interpreter to itself in some library, a
    clock of the interpreter's own writes the stacks to stderr 40 s later and ends the process.
    """

    def __init__(self, timeout_minutes: float, folder: Path) -> None:
        self.seconds, self.file = 60 * timeout_minutes, folder / "stacks" / f"rank-{distributed.rank()}.txt"
        self._last, self._where = time.monotonic(), "the start"
        self._pauses = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat("the start")
        self._set_clock()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, where: str) -> None:
        """There is progress: `where` has been reached."""
        self._where, self._last = where, time.monotonic()

    @contextmanager
    def pause(self, where: str) -> Iterator[None]:
        """Not watched while the block runs, which takes as long as it takes."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self.beat(where)
            self._set_clock()

    def _watch(self) -> None:
        interval = min(1.0, self.seconds / 10)
        while not self._over.wait(interval):
            if self._pauses:
                faulthandler.cancel_dump_traceback_later()
                continue
            self._set_clock()
            silent = time.monotonic() - self._last
            if silent > self.seconds:
                waiting = self._waits()
                if not waiting or silent > self.seconds + _WAITING_SECONDS:
                    self._end(silent, waiting)

    def _set_clock(self) -> None:
        """Set again and again, it goes off only where the thread does not get to run."""
        faulthandler.dump_traceback_later(self.seconds + _STUCK_SECONDS, exit=True, file=2)

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
            f"spkexp: rank {distributed.rank()} of {distributed.world_size()} on {socket.gethostname()} (process "
            f"{os.getpid()}) has made no progress for {silent:.0f} s since {self._where}; {standing}",
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
