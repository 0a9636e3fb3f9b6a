"""Batches go on where a reading process is killed: for real, with DataLoader's processes."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from spkexp.data.dataset import Batch, loader
from spkexp.data.supply import FORGET_AFTER, Supply
from spkexp.errors import UserError


class Numbers(Dataset[Batch]):
    """Batches that hold their own place, and the process that made them. In `deadly` a reader dies, once for each."""

    def __init__(self, deadly: Sequence[int], folder: str) -> None:
        self.deadly, self.folder = deadly, folder

    def __getitems__(self, items: Sequence[int]) -> Batch:
        for item in items:
            scar = f"{self.folder}/{item}"
            if item in self.deadly and not os.path.exists(scar):
                open(scar, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        none = torch.empty(0)
        return Batch(none, none, none, torch.tensor(items), torch.tensor([os.getpid()]), [], [])


def batches(deadly: Sequence[int], folder: str, count: int) -> Supply:
    def start(given: int) -> Iterator[Batch]:
        rest = [[number] for number in range(given, count)]
        return iter(loader(Numbers(deadly, folder), rest, 2, pin=False))

    return Supply(start)


def test_a_killed_reader_loses_and_doubles_nothing(tmp_path: object, caplog: pytest.LogCaptureFixture) -> None:
    supply = batches([5], str(tmp_path), 12)
    seen, readers = [], set()
    for batch in supply:
        seen += batch.item.tolist()
        readers |= set(batch.key.tolist())
    assert seen == list(range(12))
    assert len(readers) == 4  # two, and two more in their place
    (record,) = caplog.records
    assert "a reading process was killed, most often for lack of memory" in record.message
    assert "(1 of 3)" in record.message
    _all_end(readers)


def test_readers_that_die_again_and_again_end_the_run(tmp_path: object) -> None:
    supply = batches(range(2, 30), str(tmp_path), 30)
    with pytest.raises(UserError, match=r"data: reading processes were killed 4 times.*data\.num_workers"):
        list(supply)


class Mortal:
    """Batches `given`, `given` + 1, … of a reader that dies before each of `deadly`, once for each mention.

    starting: of those that follow the first death, how many die as they are started.
    """

    def __init__(self, deadly: Sequence[int], starting: int) -> None:
        self.deadly, self.starting = list(deadly), starting

    def __call__(self, given: int) -> Iterator[Batch]:
        if given and self.starting:
            self.starting -= 1
            raise DEATH
        return self.batches(given)

    def batches(self, given: int) -> Iterator[Batch]:
        none = torch.empty(0)
        while True:
            if given in self.deadly:
                self.deadly.remove(given)
                raise DEATH
            yield Batch(none, none, none, torch.tensor([given]), none, [], [])
            given += 1


DEATH = RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")


def test_deaths_of_long_ago_are_forgotten() -> None:
    deadly = range(100, 100 + 8 * FORGET_AFTER, FORGET_AFTER)  # more than MAX_RESTARTS
    supply = Supply(Mortal(deadly, starting=0))
    assert [next(supply).item.item() for _ in range(9 * FORGET_AFTER)] == list(range(9 * FORGET_AFTER))


def test_deaths_that_are_a_little_nearer_are_not() -> None:
    deadly = range(100, 100 + 4 * (FORGET_AFTER - 1), FORGET_AFTER - 1)
    supply = Supply(Mortal(deadly, starting=0))
    with pytest.raises(UserError, match="killed 4 times"):
        deque(islice(supply, 5 * FORGET_AFTER))


def test_readers_that_die_as_they_are_started_are_started_again() -> None:
    supply = Supply(Mortal([7], starting=2))
    assert [next(supply).item.item() for _ in range(10)] == list(range(10))


def test_readers_that_never_start_end_the_run() -> None:
    supply = Supply(Mortal([7], starting=9))
    with pytest.raises(UserError, match="killed 4 times"):
        deque(islice(supply, 10))


def test_another_error_while_starting_passes() -> None:
    def start(given: int) -> Iterator[Batch]:
        raise FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.")

    with pytest.raises(FileNotFoundError, match="Caught"):
        Supply(start)


def test_other_errors_pass(tmp_path: object) -> None:
    def start(given: int) -> Iterator[Batch]:
        yield Batch(*[torch.from_numpy(np.zeros(1))] * 5, [], [])
        raise RuntimeError("something else")

    supply = Supply(start)
    next(supply)
    with pytest.raises(RuntimeError, match="something else"):
        next(supply)


def _all_end(pids: set[int]) -> None:
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
