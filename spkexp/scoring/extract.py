"""Embeddings of utterances, whole or as the mean over windows, by all processes together."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from spkexp import distributed
from spkexp.bar import Bar
from spkexp.data import audio
from spkexp.data.dataset import Bad, Batch, Reading, WholeUtterances, loader
from spkexp.data.utterances import Utterances
from spkexp.errors import AudioError
from spkexp.models.speaker import SpeakerModel


class Interrupted(Exception):
    """The caller asked to stop in the middle."""


def never() -> bool:
    """For what is not to be stopped."""
    return False


def embed(
    model: SpeakerModel,
    utterances: Utterances,
    reading: Reading,
    batch_seconds: float,
    num_workers: int,
    should_stop: Callable[[], bool] = never,
    *,
    window: float | None = None,
    window_step: float | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[NDArray[np.float32], list[Bad]]:
    """(N, embedding_size) float32 and the utterances that could not be read, whose rows are NaN.

    window None: each utterance is embedded whole, however long it is, as the model gives it. Otherwise its row is the
    mean of the embeddings, each of length one, of windows of `window` seconds, `window_step` apart (None: half a
    window); the last one ends with the utterance. One that is shorter than a window is one window. The row's own length
    then tells how much the windows agree: 1 where all have one direction.

    Batches hold utterances, or windows, of like length, at most `batch_seconds` of audio with the padding counted (one
    at least); the processes take them in turn and all of them return everything. precision: bf16 has torch choose what
    is computed in bfloat16 (autocast), the features never are.

    Raises Interrupted once `should_stop()` is true in any process, and ValueError for windows that leave gaps, and for
    windows of speed copies.
    """
    device = next(model.parameters()).device
    source: Dataset[Batch]
    if window is None:
        source, batches = WholeUtterances(utterances, reading), batches_by_length(utterances.duration, batch_seconds)
    else:
        source = Windows(utterances, reading, window, window_step or window / 2, batch_seconds)
        seconds = np.minimum(utterances.duration[[piece.item for piece in source.pieces]], window)
        batches = batches_by_length(seconds, batch_seconds, [piece.windows for piece in source.pieces])
    mine = batches[distributed.rank() :: distributed.world_size()]
    rounds = -(-len(batches) // distributed.world_size())
    was_training = model.training
    model.eval()
    total = np.zeros((len(utterances), model.embedding_size), dtype=np.float32)
    count = np.zeros(len(utterances), dtype=np.int64)
    bad: list[Bad] = []
    found = iter(loader(source, mine, num_workers, pin=device.type == "cuda"))
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
        Bar("batch", rounds, shown=distributed.is_main()) as bar,
    ):
        for done in range(rounds):
            # Every process comes by here equally often, so that they agree on when to stop.
            if distributed.any_of(should_stop())[0]:
                model.train(was_training)
                raise Interrupted
            bar.update(done, f"embedding {len(utterances):,} utterances")
            batch = next(found, None)
            if batch is None:
                continue
            bad += batch.bad
            if len(batch.item):
                rows = model(batch.waveform.to(device, non_blocking=True), batch.lengths).float().cpu().numpy()
                _add(total, count, batch.item.numpy(), rows if window is None else _of_length_one(rows))
    model.train(was_training)
    return _of_all_processes(utterances, total, count, bad)


def _of_length_one(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _add(
    total: NDArray[np.float32], count: NDArray[np.int64], item: NDArray[np.int64], rows: NDArray[np.float32]
) -> None:
    """Add each of `rows` to its item's row of `total`; those of an item lie side by side."""
    starts = np.flatnonzero(np.diff(item, prepend=-1))
    total[item[starts]] += np.add.reduceat(rows, starts, axis=0, dtype=np.float64).astype(np.float32)
    count[item[starts]] += np.diff(starts, append=len(item))


def _of_all_processes(
    utterances: Utterances, total: NDArray[np.float32], count: NDArray[np.int64], bad: list[Bad]
) -> tuple[NDArray[np.float32], list[Bad]]:
    """The means of what all processes have added up, the same in each of them."""
    if distributed.world_size() > 1:
        own = np.flatnonzero(count)
        parts = distributed.gather((own, total[own], count[own], bad))
        total, count = np.zeros_like(total), np.zeros_like(count)
        for items, rows, counts, _ in parts:
            total[items] += rows
            count[items] += counts
        bad = [entry for *_, part in parts for entry in part]
    first = {
        entry.id: entry for entry in sorted(bad, reverse=True)
    }  # of one utterance several pieces can be unreadable
    if first:
        unreadable = [item for item in range(len(utterances)) if utterances.id[item] in first]
        count[unreadable] = 0
    total[count == 0] = np.nan
    total /= np.maximum(count, 1)[:, None]
    return total, sorted(first.values())


def batches_by_length(
    duration: NDArray[np.float64], batch_seconds: float, rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Items sorted by length, cut so that (longest × rows) of a batch stays within `batch_seconds` (one item at least).

    rows: (N,) how many rows of that length an item adds to a batch; None: one each.
    """
    sizes = [1] * len(duration) if rows is None else rows
    batches: list[list[int]] = []
    filled = 0
    for item in np.argsort(duration, kind="stable").tolist():
        if batches and duration[item] * (filled + sizes[item]) <= batch_seconds:
            batches[-1].append(item)
            filled += sizes[item]
        else:
            batches.append([item])
            filled = sizes[item]
    return batches


class Piece(NamedTuple):
    """A stretch of an utterance, which is read at once and cut into windows."""

    item: int
    start: int  # samples
    stop: int | None  # one past the last sample; None: the end of the utterance
    windows: int  # that it has if the utterance is as long as the manifest says
    skip: int  # windows at its beginning that are another piece's


class Windows(Dataset[Batch]):
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
        steps = max(0, length - self.width) // self.step + 1  # windows that begin at a multiple of the step
        rest = int(length > (steps - 1) * self.step + self.width)
        if steps + rest <= room:
            return [Piece(item, 0, None, steps + rest, 0)]
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

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        windows, items, bad = list[NDArray[np.float32]](), list[int](), list[Bad]()
        for piece in (self.pieces[number] for number in numbers):
            try:
                found = windows_of(self._read(piece), self.width, self.step)[piece.skip :]
            except AudioError as error:
                bad.append(Bad(self.utterances.id[piece.item], str(error)))
            else:
                windows += found
                items += [piece.item] * len(found)
        lengths = np.array([len(window) for window in windows], dtype=np.int64)
        waveform = np.zeros((len(windows), lengths.max(initial=0)), dtype=np.float32)
        for row, window in zip(waveform, windows, strict=True):
            row[: len(window)] = window
        none = torch.empty(0, dtype=torch.int64)
        item = torch.tensor(items, dtype=torch.int64)
        return Batch(torch.from_numpy(waveform), torch.from_numpy(lengths), none, item, none, [], bad)

    def _read(self, piece: Piece) -> NDArray[np.float32]:
        begin, end = self.utterances.segment(piece.item, self.reading.sample_rate) or (0, None)
        stop = end if piece.stop is None else begin + piece.stop
        start = begin + piece.start
        return audio.read(
            self.utterances.path[piece.item],
            start,
            None if stop is None else stop - start,
            part=self.utterances.part_of(piece.item),
            sample_rate=self.reading.sample_rate,
            resample=self.reading.resample,
            mix_channels=self.reading.mix_channels,
        )

    def __len__(self) -> int:
        return len(self.pieces)


def windows_of(wave: NDArray[np.float32], width: int, step: int) -> list[NDArray[np.float32]]:
    """Stretches of `width` samples from the start on, `step` apart, and one that ends with `wave` where those leave a
    rest; `wave` itself where it is no longer than one."""
    if len(wave) <= width:
        return [wave]
    starts = list(range(0, len(wave) - width + 1, step))
    if starts[-1] + width < len(wave):
        starts.append(len(wave) - width)
    return [wave[start : start + width] for start in starts]
