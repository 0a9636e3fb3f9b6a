"""How a signal reaches every job of a sweep: the sweep passes it on, and a job in another process is ready for it."""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from spkexp import exit_codes
from spkexp.records import Record, Ticket, is_alive, records

POLL_SECONDS = 1.0


@contextmanager
def own_process(ticket: Ticket) -> Iterator[None]:
    """A job in another process than the sweep's: it stops by signals that it is sent, and when the sweep is gone."""
    if ticket.watched and ticket.host == socket.gethostname():
        if os.getpid() != os.getpgid(0):
            os.setpgid(0, 0)  # Ctrl-C reaches the sweep alone, which passes it on
        threading.Thread(target=_end_with, args=(ticket.pid,), daemon=True).start()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # Ray's workers are born with Ctrl-C blocked
    # Before training and after it nothing is to be saved; meanwhile training has a handler of its own.
    former = {number: signal.signal(number, _leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(exit_codes.of_signal(number))


def _end_with(pid: int) -> None:
    """Wait until the process ends, then stop this one, which saves."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not of Linux, an old kernel's or a sandbox's; or the process has ended
        while is_alive(pid):
            time.sleep(POLL_SECONDS)
    else:
        select.select([descriptor], [], [])
        os.close(descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


class Signals:
    """While the block runs, a signal to the sweep stops all jobs: `code` is then the exit code, else None.

    No further job starts, those that run are passed the signal and waited for; a second one is passed on as well,
    and they end at once. Of several signals the first has the exit code, but a cluster's warning after it counts more.
    """

    def __init__(self, folder: Path, ticket: Ticket) -> None:
        self.folder, self.ticket = folder, ticket
        self.code: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *exit_codes.warnings()}:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self.code is None
        if self.code is None or number in exit_codes.warnings():
            self.code = exit_codes.of_signal(number)
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
        if first or not running:  # none of this machine: what is waited for is elsewhere
            sys.exit(self.code)

    def _running(self) -> list[Record]:
        """Jobs of this start in other processes of this machine."""
        found = [record for record in records(self.folder) if record.start == self.ticket.start]
        return [record for record in found if record.is_here]
