"""Batches that go on when a process that reads them is killed."""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from types import TracebackType

from spkexp.data.dataset import Batch
from spkexp.errors import UserError

log = logging.getLogger(__name__)
MAX_RESTARTS = 3
# After so many batches without a death, those before it were another story: a run can last for weeks.
FORGET_AFTER = 1000
_DEATHS = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)  # among them; see `_is_of_a_dead_reader`


class Supply(Iterator[Batch]):
    """The batches of `start(0)`; where a reading process dies, those of `start(given)` from there on.

    start: the batches from one on, read by processes of their own or by this one. As what a batch holds depends on its
    place alone, nothing is lost or doubled. Raises UserError when they died more than MAX_RESTARTS times with less than
    FORGET_AFTER batches from one death to the next.

    As a context manager it ends the readers. They do not heed SIGTERM, by which Python would end them at its exit, and
    would wait for it for ever.
    """

    def __init__(self, start: Callable[[int], Iterator[Batch]]) -> None:
        self._start, self._given, self._restarts, self._died_at = start, 0, 0, 0
        self._source = self._started()

    def _started(self) -> Iterator[Batch]:
        while True:
            try:
                source = self._start(self._given)
                break
            except _DEATHS as error:  # a reader that dies at once
                self._bury(error)
        # torch's handler raises wherever the main thread happens to be, in the middle of an optimizer's step, say.
        # Without it a death is found where a batch is waited for, which is where it matters.
        if signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return source

    def __enter__(self) -> "Supply":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end_readers()

    def __next__(self) -> Batch:
        while True:
            try:
                batch = next(self._source)
            except _DEATHS as error:
                self._bury(error)
                self._source = self._started()
            else:
                self._given += 1
                return batch

    def _bury(self, error: Exception) -> None:
        """Note a dead reader and end the others. Raises `error` where it says something else, and UserError."""
        if not _is_of_a_dead_reader(error):
            raise error
        if self._given - self._died_at >= FORGET_AFTER:
            self._restarts = 0
        self._died_at = self._given
        self._restarts += 1
        cause = "most often for lack of memory: fewer of them (data.num_workers) or smaller batches need less"
        if self._restarts > MAX_RESTARTS:
            raise UserError(f"data: reading processes were killed {self._restarts} times, {cause}") from error
        log.warning(
            "data: a reading process was killed, %s; all are started again at the same place (%d of %d)",
            cause, self._restarts, MAX_RESTARTS,
        )  # fmt: skip
        _end_readers()  # those that are left may wait for a lock that the dead one held


def _end_readers() -> None:
    for reader in multiprocessing.active_children():
        reader.kill()


def _is_of_a_dead_reader(error: Exception) -> bool:
    """DataLoader finds a reader dead, or what it sent cannot be fetched from it any more.

    What a reader itself raises comes as "Caught … in DataLoader worker process".
    """
    text = str(error)
    return text.startswith("DataLoader worker") if isinstance(error, RuntimeError) else not text.startswith("Caught ")
