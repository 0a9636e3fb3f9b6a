"""Work in other processes, with results in order, that ends at once on Ctrl-C and with its parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from spkexp.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def in_processes(work: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """`work` of each task, in order, by so many processes; a few tasks ahead of what is taken, and no more.

    `work` can be pickled. What it raises is raised here, and what has not begun is not done. Raises UserError where
    a process is killed, say for want of memory. One worker is this process itself.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    # Not fork: this process has threads (FFmpeg's, torch's), whose locks a child would inherit as they are.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), _begin)
    rest = iter(tasks)
    try:
        ahead: deque[Future[R]] = deque(pool.submit(work, task) for task in islice(rest, 3 * workers))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(work, task) for task in islice(rest, 1))
            yield result
    except BrokenProcessPool:
        raise UserError(
            "a working process was killed, perhaps for want of memory; run the same command again with fewer workers=N"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and its children would wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
