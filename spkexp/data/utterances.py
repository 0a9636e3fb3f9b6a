"""What training holds of a table of utterances: numpy columns that worker processes share without copying."""

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.data.manifest import SEGMENT_RATE

_ROWS_AT_ONCE = 16_384


class Strings:
    """A column of text as one buffer and offsets: 1.1 million paths are two arrays, not 1.1 million objects.

    What all texts begin with is kept once. `repeated` is the column several times over, as speed copies need it.
    """

    def __init__(self, values: pl.Series) -> None:
        # Of characters: commonpath would want whole folders, and ids are no paths.
        ends = [str(values.min()), str(values.max())] if len(values) else []
        self._prefix = os.path.commonprefix(ends)  # noqa: RUF071
        skip = len(self._prefix)
        sizes = values.str.len_bytes().cast(pl.Int64) - len(self._prefix.encode())
        self._ends = sizes.cum_sum().to_numpy()
        if len(values) and self._ends[-1] < 2**32:
            self._ends = self._ends.astype(np.uint32)
        self._buffer = np.empty(int(self._ends[-1]) if len(values) else 0, dtype=np.uint8)
        self._suffixes = [""]
        start = 0
        for first in range(0, len(values), _ROWS_AT_ONCE):  # what fits into the cache is joined ten times faster
            block = values.slice(first, _ROWS_AT_ONCE).str.slice(skip).str.join("").item().encode()
            self._buffer[start : start + len(block)] = np.frombuffer(block, dtype=np.uint8)
            start += len(block)

    def repeated(self, suffixes: Sequence[str]) -> "Strings":
        """The texts with the first suffix, then all with the second, and so on; they share their memory."""
        longer = copy.copy(self)
        longer._suffixes = list(suffixes)
        return longer

    def __len__(self) -> int:
        return len(self._ends) * len(self._suffixes)

    def to_series(self) -> pl.Series:
        return pl.Series([self[index] for index in range(len(self))], dtype=pl.String)

    def digest(self) -> bytes:
        """Changes with any of the texts and with their order."""
        digest = hashlib.sha256(repr((self._prefix, self._suffixes)).encode())
        digest.update(self._buffer.data)
        digest.update(self._ends.astype(np.int64).data)
        return digest.digest()

    def __getitem__(self, index: int) -> str:
        number, row = divmod(int(index), len(self._ends))
        start = self._ends[row - 1] if row else 0
        return f"{self._prefix}{self._buffer[start : self._ends[row]].tobytes().decode()}{self._suffixes[number]}"


@dataclass(frozen=True)
class Utterances:
    """Columns of a split, all of length N."""

    id: Strings
    path: Strings
    duration: NDArray[np.float64]  # s
    label: NDArray[np.int32]  # index into label_names
    label_names: list[str]
    start: NDArray[np.int64] | None  # first sample in the file, at SEGMENT_RATE, where rows are segments of files
    shard: NDArray[np.int32] | None  # (rows,) index of the file that holds the row, where some are parts of files
    part: NDArray[np.int64] | None  # (rows, 2) offset and bytes of the file in `path`, a tar shard; -1: it is a file
    speeds: tuple[float, ...]  # the rows stand there once for each, played so many times faster

    def __len__(self) -> int:
        return len(self.label)

    @property
    def rows(self) -> int:
        """Utterances without their speed copies: item i is a copy of row i % rows."""
        return len(self) // len(self.speeds)

    def digest(self) -> str:
        """Changes with any id or label, and with their order: what a position in training refers to."""
        label = self.label.astype(np.int64)
        return hashlib.sha256(self.id.digest() + label.tobytes()).hexdigest()[:16]

    def segment(self, item: int, sample_rate: int) -> tuple[int, int] | None:
        """(first sample, one past the last) of the utterance in its file, at `sample_rate` Hz; None: all of it."""
        if self.start is None:
            return None
        start = round(int(self.start[item % self.rows]) * sample_rate / SEGMENT_RATE)
        return start, start + round(self.duration[item] * self.speed_of(item) * sample_rate)

    def part_of(self, item: int) -> tuple[int, int] | None:
        """(offset, bytes) of the utterance's file in `path`; None where it is the whole of it."""
        if self.part is None:
            return None
        offset, size = self.part[item % self.rows].tolist()
        return (offset, size) if offset >= 0 else None

    def speed_of(self, item: int) -> float:
        """Factor by which the item plays its file faster; 1 as it is."""
        return self.speeds[item // self.rows]

    def with_speed_copies(self, speeds: Sequence[float], own_labels: bool) -> "Utterances":
        """These utterances, followed by a copy of all for each of `speeds` (1.1: a tenth faster; 1 adds nothing).

        A copy is called `id@0.9`. With `own_labels` its voice counts as another speaker, `id10012@0.9`.
        """
        factors = (1.0, *(speed for speed in dict.fromkeys(speeds) if speed != 1.0))
        if len(factors) == 1:
            return self
        suffixes = ["", *(f"@{speed:g}" for speed in factors[1:])]
        classes = len(self.label_names)
        shifts = range(0, classes * len(factors), classes) if own_labels else [0] * len(factors)
        return replace(
            self,
            id=self.id.repeated(suffixes),
            path=self.path.repeated([""] * len(factors)),
            duration=np.concatenate([self.duration / speed for speed in factors]),
            label=np.concatenate([self.label + np.int32(shift) for shift in shifts]),
            label_names=[name + suffix for suffix in (suffixes if own_labels else [""]) for name in self.label_names],
            speeds=factors,
        )

    @staticmethod
    def of(table: pl.DataFrame, label: str) -> "Utterances":
        """The table's rows, with the column `label` as what is to be learnt."""
        names = table[label].unique().sort()
        part = shard = None
        if {"offset", "bytes"} <= set(table.columns):
            shard = table["path"].rank("dense").cast(pl.Int32).to_numpy() - np.int32(1)
            part = np.stack([table[name].fill_null(-1).to_numpy() for name in ("offset", "bytes")], axis=1)
        return Utterances(
            id=Strings(table["id"]),
            path=Strings(table["path"]),
            duration=table["duration"].to_numpy(writable=True),
            label=table[label].cast(pl.Enum(names)).to_physical().cast(pl.Int32).to_numpy(writable=True),
            label_names=names.to_list(),
            start=table["start"].to_numpy(writable=True) if "start" in table.columns else None,
            shard=shard,
            part=part,
            speeds=(1.0,),
        )
