"""What is embedded so far, in files beside the output: a kill at any moment costs seconds, and memory stays small."""

import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spkexp.data.dataset import Bad
from spkexp.data.files import writing
from spkexp.whole_file import replacing, write_json

log = logging.getLogger(__name__)

REMEDY = "make room or mend that, and the same command goes on"
PART_SECONDS = 15.0  # what a kill costs at most, and a batch
PART_BYTES = 64e6  # of embeddings that are held in memory


class Merged(NamedTuple):
    """All N embeddings, in the order of their items, and of time."""

    embeddings: NDArray[np.float32]  # (N, D), on disk, not in memory
    item: NDArray[np.int64]  # (N,)
    start: NDArray[np.int64]  # (N,) first sample of the window in its file; 0 where items are embedded whole
    stop: NDArray[np.int64]  # (N,) one past its last
    bad: list[Bad]  # items that could not be read: none of their embeddings is here


class Partial:
    """A folder of parts; each is written in one go and holds the embeddings of whole batches."""

    def __init__(self, folder: Path, embedding_size: int, rank: int) -> None:
        self._folder, self._size, self._rank = folder / "parts", embedding_size, rank
        self._rows = folder / "embeddings"
        self._number = 0
        self._clear()

    def _clear(self) -> None:
        self._batches: list[int] = []
        self._places: list[NDArray[np.int64]] = []
        self._found: list[NDArray[np.float32]] = []
        self._bad: list[Bad] = []
        self._began = time.monotonic()

    def done(self) -> set[int]:
        """The numbers of the batches that are in parts."""
        done: set[int] = set()
        for file in self._files():
            self._number = max(self._number, int(file.stem.partition("-")[2]) + 1)
            if (part := _load(file)) is not None:
                done.update(part.batches)
        return done

    def add(self, batch: int, places: NDArray[np.int64], rows: NDArray[np.float32], bad: list[Bad]) -> None:
        """What a batch gave. places: (n, 3) item, start and stop of each of `rows`, (n, D)."""
        self._batches.append(batch)
        self._places.append(places)
        self._found.append(rows)
        self._bad += bad
        held = sum(found.nbytes for found in self._found)
        if held > PART_BYTES or time.monotonic() - self._began > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held in memory. Raises UserError."""
        if self._batches:
            file = self._folder / f"{self._rank:04d}-{self._number:08d}.npz"
            with writing(file, REMEDY), replacing(file) as temporary, temporary.open("wb") as stream:
                np.savez(
                    stream,
                    batches=np.array(self._batches, dtype=np.int64),
                    places=np.concatenate([np.empty((0, 3), dtype=np.int64), *self._places]),
                    rows=np.concatenate([np.empty((0, self._size), dtype=np.float32), *self._found]),
                    bad=np.array(json.dumps([[entry.id, entry.reason] for entry in self._bad])),
                )
                stream.flush()
                os.fsync(stream.fileno())
            self._number += 1
        self._clear()

    def merged(self, ids: Iterable[str]) -> Merged:
        """Everything that is in parts. ids: of the items, to leave out what `bad` says. Raises UserError."""
        parts = [part for file in self._files() if (part := _load(file)) is not None]
        found = {entry.id: entry for part in parts for entry in part.bad}
        places = np.concatenate([np.empty((0, 3), dtype=np.int64), *(part.places for part in parts)])
        unreadable = np.array([name in found for name in ids], dtype=bool)
        order = np.lexsort((places[:, 1], places[:, 0]))
        order = order[~unreadable[places[order, 0]]]
        target = np.full(len(places), -1)
        target[order] = np.arange(len(order))
        rows = np.empty((0, self._size), dtype=np.float32)
        if len(order):
            with writing(self._rows, REMEDY):
                # Written, not only mapped: on a full disk a mapped file ends the process.
                with self._rows.open("wb") as stream:
                    os.posix_fallocate(stream.fileno(), 0, len(order) * self._size * rows.itemsize)
                rows = np.memmap(self._rows, dtype=np.float32, mode="r+", shape=(len(order), self._size))
            first = 0
            for part in parts:
                with np.load(part.file, allow_pickle=False) as arrays:
                    some = arrays["rows"]
                to = target[first : first + len(some)]
                rows[to[to >= 0]] = some[to >= 0]
                first += len(some)
        places = places[order]
        return Merged(rows, places[:, 0], places[:, 1], places[:, 2], sorted(found.values()))

    def _files(self) -> Iterator[Path]:
        yield from sorted(self._folder.glob("[0-9]*.npz"))


class _Part(NamedTuple):
    """A file of embeddings without them."""

    file: Path
    batches: list[int]
    places: NDArray[np.int64]
    bad: list[Bad]


def _load(file: Path) -> _Part | None:
    """A part; None for one that a crash of the machine left damaged, which is removed."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if (damaged := arrays.zip.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
            bad = [Bad(name, reason) for name, reason in json.loads(str(arrays["bad"]))]
            return _Part(file, arrays["batches"].tolist(), arrays["places"], bad)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s: cannot be read (%s); its batches are embedded again", file, error)
        with writing(file, REMEDY):
            file.unlink()
        return None


def settle(folder: Path, identity: dict[str, Any]) -> None:
    """Keep the parts in `folder` if they were made for the same `identity`, else remove them and say what changed."""
    file, parts = folder / "identity.json", folder / "parts"
    with writing(folder, REMEDY):
        parts.mkdir(parents=True, exist_ok=True)
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
        except (FileNotFoundError, ValueError, TypeError):
            changed = ["what it is of"]
        if changed:
            if any(parts.iterdir()):
                log.warning("%s: is of another %s; starting anew", folder, ", ".join(changed))
            shutil.rmtree(parts)
            parts.mkdir()
            write_json(file, identity)
