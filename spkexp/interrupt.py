"""Signals to a run: finish the step, save, stop; and whoever sent one may learn how to go on."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from spkexp import distributed, exit_codes

log = logging.getLogger(__name__)

# Ctrl-C and Slurm reach a process twice, by itself and through the one that started it: that is one request.
ONE_REQUEST_SECONDS = 1.0


class Stopped(BaseException):
    """A run was asked to stop by a signal, and what there is to save is saved.

    No Exception, for it can be raised anywhere, and is nothing to recover from.
    handler: who handled the signal before this package did, if anybody.
    """

    def __init__(self, number: int, handler: Any = None) -> None:
        self.signal, self.handler = number, handler
        super().__init__(f"stopped by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """75 (EX_TEMPFAIL: start it again) after a cluster's warning, else 128 and the signal, as shells have it."""
        return exit_codes.of_signal(self.signal)

    def leave(self) -> NoReturn:
        """End the process, when nothing is left to do. submitit's handler of its warning requeues the job before."""
        if self.signal in exit_codes.warnings() and callable(self.handler):
            self.handler(self.signal, None)
        sys.exit(self.exit_code)


class StopRequest:
    """True once a signal asked to stop, while the block runs: the first only asks, the same once more stops at once.

    Inside `at_once`, where there is nothing to save, the first raises Stopped wherever the main thread is.

    SIGINT, SIGTERM, SIGHUP (a terminal that is closed, unless nohup has it ignored) and the `warnings`, which never
    hurry: what follows them is only the cluster's patience running out. A warning that comes after another signal
    counts, for it says that the job is to be started again. forward: is given every signal that counts, and then the
    repetitions, too. Outside the main thread, where Python allows no handlers, nothing is ever asked.
    """

    def __init__(self, forward: Callable[[int], None] | None = None) -> None:
        self.number: int | None = None
        self.forward = forward
        self._asks = True
        self._warnings = exit_codes.warnings()
        self._seen: dict[int, float] = {}
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *self._warnings}:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, except in `asked`, a signal does not wait for anybody to heed it."""
        self._asks = False
        try:
            yield
        finally:
            self._asks = True

    @contextmanager
    def asked(self) -> Iterator["StopRequest"]:
        """Inside, a signal only asks, `at_once` or not; one that nobody has heeded raises Stopped at the end."""
        before, self._asks = self._asks, True
        try:
            yield self
        finally:
            self._asks = before
        if self.number is not None:
            raise self.ending()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = now - self._seen.setdefault(number, now) > ONE_REQUEST_SECONDS and number not in self._warnings
        new = self.number is None or (number in self._warnings and self.number not in self._warnings)
        first = self.number is None
        if new:
            self.number = number
        if self.forward is not None:
            if new or again:
                self.forward(number)
        elif again:
            raise KeyboardInterrupt
        elif first and not self._asks:
            raise self.ending()
        elif new and self._asks and distributed.is_main():
            log.info("%s: stopping as soon as all is saved%s", signal.Signals(number).name, self._hint(number))

    def _hint(self, number: int) -> str:
        return "" if number in self._warnings else " (once more: stop at once)"

    def __call__(self) -> bool:
        return self.number is not None

    def received(self) -> set[int]:
        return set(self._seen)

    def stopped(self) -> Stopped:
        """The exception for the signal that some process received; a warning before others. All processes call it."""
        numbers = [number for number in distributed.gather(self.number) if number is not None]
        # Noted in those that did not receive it, too: it is not to be raised once more when it reaches them.
        self.number = min(numbers, key=lambda n: n not in self._warnings)
        return self.ending()

    def ending(self) -> Stopped:
        """The exception for what this process knows to have been received."""
        assert self.number is not None
        return Stopped(self.number, self._previous.get(self.number))
