"""Windows of many utterances as a dataset: each utterance is read in pieces, whose windows fill a batch at most."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from spkexp.data import audio
from spkexp.data.dataset import Bad, Reading
from spkexp.data.utterances import Utterances
from spkexp.errors import AudioError
from spkexp.scoring.sliding import window_count, window_starts


class WindowBatch(NamedTuple):
    """What the device gets of windows; as `spkexp.data.dataset.Batch`."""

    waveform: Tensor  # (B, samples) float32 in [-1, 1]
    lengths: Tensor  # (B,) samples of each row; what lies behind is zero
    item: Tensor  # (B,) index of the utterance
    start: Tensor  # (B,) the window's first sample in its file
    bad: list[Bad]  # found while reading this batch


class Piece(NamedTuple):
    """A stretch of an utterance, which is read at once and cut into windows."""

    item: int
    start: int  # samples
    stop: int | None  # one past the last sample; None: the end of the utterance
    windows: int  # that it has if the utterance is as long as the manifest says
    skip: int  # windows at its beginning that are another piece's


class UtteranceWindows(Dataset[Any]):
    """Windows of `window` seconds, `step` apart, of utterances; an item is one of `pieces`, a row is a window.

    Every utterance is one piece, except where its windows would fill more than a batch. What cannot be read is listed
    and left out.
    """

    def __init__(
        self, utterances: Utterances, reading: Reading, window: float, step: float, batch_seconds: float
    ) -> None:
        self.utterances, self.reading = utterances, reading
        self.width, self.step = round(window * reading.sample_rate), round(step * reading.sample_rate)
        if not 1 <= self.step <= self.width:
            raise ValueError(f"windows of {window} s, {step} s apart: expected more than 0 and at most the window")
        if utterances.speeds != (1.0,):
            raise ValueError("windows are cut from files as they are: embed the utterances without their speed copies")
        lengths = np.round(utterances.duration * reading.sample_rate).astype(np.int64)
        room = max(1, int(batch_seconds / window))
        self.pieces = [piece for item, length in enumerate(lengths.tolist()) for piece in self._cut(item, length, room)]

    def _cut(self, item: int, length: int, room: int) -> list[Piece]:
        """Pieces of at most `room` windows of an utterance of `length` samples."""
        windows = window_count(length, self.width, self.step)
        if windows <= room:
            return [Piece(item, 0, None, windows, 0)]
        rest = int(
            (length - self.width) % self.step > 0
        )  # one that ends with the utterance, at no multiple of the step
        steps = windows - rest
        at_once = max(1, room - 1)  # one less, for the last piece has the rest as well
        pieces = []
        for first in range(0, steps, at_once):
            count = min(at_once, steps - first)
            stop = (first + count - 1) * self.step + self.width
            pieces.append(Piece(item, first * self.step, stop, count, 0))
        # The file's own length decides where the last window is, not that of a manifest: the last piece begins with a
        # window that is there for certain, for it is the piece's before.
        start, count = max(0, pieces[-1].start - self.step), pieces[-1].windows + rest
        pieces[-1] = Piece(item, start, None, count, int(pieces[-1].start > 0))
        return pieces

    def __getitems__(self, numbers: Sequence[int]) -> WindowBatch:
        windows, items, begins, bad = list[NDArray[np.float32]](), list[int](), list[int](), list[Bad]()
        for piece in (self.pieces[number] for number in numbers):
            begin, wave = self._read(piece, bad)
            if wave is None:
                continue
            starts = window_starts(len(wave), self.width, self.step)[piece.skip :].tolist()
            windows += [wave[start : start + self.width] for start in starts]
            begins += [begin + start for start in starts]
            items += [piece.item] * len(starts)
        lengths = np.array([len(window) for window in windows], dtype=np.int64)
        waveform = np.zeros((len(windows), lengths.max(initial=0)), dtype=np.float32)
        for row, window in zip(waveform, windows, strict=True):
            row[: len(window)] = window
        item, start = (torch.tensor(values, dtype=torch.int64) for values in (items, begins))
        return WindowBatch(torch.from_numpy(waveform), torch.from_numpy(lengths), item, start, bad)

    def _read(self, piece: Piece, bad: list[Bad]) -> tuple[int, NDArray[np.float32] | None]:
        """(the piece's first sample in its file, its samples); None for what cannot be read, which goes to `bad`."""
        begin, end = self.utterances.segment(piece.item, self.reading.sample_rate) or (0, None)
        stop = end if piece.stop is None else begin + piece.stop
        start = begin + piece.start
        try:
            return start, audio.read(
                self.utterances.path[piece.item],
                start,
                None if stop is None else stop - start,
                part=self.utterances.part_of(piece.item),
                sample_rate=self.reading.sample_rate,
                resample=self.reading.resample,
                mix_channels=self.reading.mix_channels,
            )
        except AudioError as error:
            bad.append(Bad(self.utterances.id[piece.item], str(error)))
            return start, None

    def __len__(self) -> int:
        return len(self.pieces)
