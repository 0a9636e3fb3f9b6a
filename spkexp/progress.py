"""A progress bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from spkexp import distributed

log = logging.getLogger(__name__)
LINE_SECONDS = 30.0  # between lines of a log


class TrainingProgress:
    """Shows where training is: `update` redraws the bar, or now and then writes a line where there is no terminal."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        self._bar: Progress | None = None
        self._main = distributed.is_main()
        self._next_line = time.monotonic() + LINE_SECONDS
        self._first, self._total = first_step, total_steps
        if self._main and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.fields[text]}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=first_step, text="starting")

    def __enter__(self) -> "TrainingProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, text: str) -> None:
        """step: steps done; text: what the line says beside the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif self._main and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            log.info("step %d of %d  %s", step, self._total, text)
