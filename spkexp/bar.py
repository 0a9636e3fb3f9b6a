"""A progress bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
LINE_SECONDS = 30.0  # between lines of a log


class Bar:
    """Shows how far work is: `update` redraws the bar, or now and then writes a line where there is no terminal.

    what: what is counted, as in "step 20 of 100"; first: how much was done before; shown: False keeps silent. Inside
    another bar, as of a validation in a training, there are only lines: two bars would draw over one another.
    """

    _drawn = False  # whether there is a bar on the terminal

    def __init__(self, what: str, total: int, first: int = 0, *, shown: bool = True) -> None:
        self._bar: Progress | None = None
        self._what, self._total, self._shown = what, total, shown
        self._next_line = time.monotonic() + LINE_SECONDS
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.fields[text]}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, completed=first, text="starting")

    def __enter__(self) -> "Bar":
        if self._bar and Bar._drawn:
            self._bar = None
        if self._bar:
            self._bar.start()
            Bar._drawn = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            Bar._drawn = False

    def update(self, done: int, text: str) -> None:
        """done: of the total, with what was done before; text: what the line says beside the bar."""
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
        elif self._shown and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            log.info("%s %d of %d  %s", self._what, done, self._total, text)
