"""Ctrl-C and SIGTERM while training: finish the step, save, stop."""

import logging
import signal
from types import FrameType
from typing import Any

from spkexp import distributed

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop by a signal, and is saved."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class StopRequest:
    """True once SIGINT or SIGTERM came; while the block runs, the first only asks and the second stops at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        if distributed.is_main():
            log.info("%s: saving after this step (once more: stop at once)", signal.Signals(number).name)

    def __call__(self) -> bool:
        return self.number is not None

    def stopped(self) -> Stopped:
        """The exception for the signal that some process received."""
        numbers = [number for number in distributed.gather(self.number) if number is not None]
        return Stopped(numbers[0])
