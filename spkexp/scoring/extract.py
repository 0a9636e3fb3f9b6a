"""Embeddings of utterances, whole or as the mean over windows, by all processes together."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from spkexp import distributed
from spkexp.bar import Bar
from spkexp.data.dataset import Bad, Batch, Reading, WholeUtterances, loader
from spkexp.data.utterances import Utterances
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.pieces import UtteranceWindows
from spkexp.scoring.sliding import inference


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
    source, batches = batches_of(utterances, reading, batch_seconds, window, window_step)
    total = np.zeros((len(utterances), model.embedding_size), dtype=np.float32)
    count = np.zeros(len(utterances), dtype=np.int64)
    bad: list[Bad] = []

    def take(number: int, batch: Batch, rows: NDArray[np.float32]) -> None:
        bad.extend(batch.bad)
        _add(total, count, batch.item.numpy(), rows if window is None else _of_length_one(rows))

    bar = Bar("batch", -(-len(batches) // distributed.world_size()), shown=distributed.is_main())
    text = f"embedding {len(utterances):,} utterances"
    run_batches(model, source, batches, num_workers, take, should_stop, precision=precision, bar=bar, text=text)
    return _of_all_processes(utterances, total, count, bad)


def batches_of(
    utterances: Utterances,
    reading: Reading,
    batch_seconds: float,
    window: float | None = None,
    window_step: float | None = None,
) -> tuple[Dataset[Batch], list[list[int]]]:
    """(what reads the utterances, or their windows, its items in batches of like length); as `embed` says."""
    if window is None:
        return WholeUtterances(utterances, reading), batches_by_length(utterances.duration, batch_seconds)
    source = UtteranceWindows(utterances, reading, window, window_step or window / 2, batch_seconds)
    seconds = np.minimum(utterances.duration[[piece.item for piece in source.pieces]], window)
    return source, batches_by_length(seconds, batch_seconds, [piece.windows for piece in source.pieces])


def run_batches(
    model: SpeakerModel,
    source: Dataset[Batch],
    batches: list[list[int]],
    num_workers: int,
    take: Callable[[int, Any, NDArray[np.float32]], None],
    should_stop: Callable[[], bool] = never,
    *,
    precision: Literal["fp32", "bf16"],
    bar: Bar,
    text: str,
    first: int = 0,
) -> None:
    """Give `take` the number of each of this process's share of `batches`, the batch and its embeddings (B, D).

    In order, and each while the next one is being computed. bar and text: what shows how far this is, from `first` on.
    Raises Interrupted once `should_stop()` is true in any process; what was computed by then is still taken.
    """
    device = next(model.parameters()).device
    mine = range(distributed.rank(), len(batches), distributed.world_size())
    found = iter(loader(source, [batches[number] for number in mine], num_workers, pin=device.type == "cuda"))
    ready: tuple[int, Batch, Tensor] | None = None

    def take_ready() -> None:
        if ready is not None:
            take(ready[0], ready[1], ready[2].cpu().numpy())

    with inference(model, precision), bar:
        for done in range(-(-len(batches) // distributed.world_size())):
            # Every process comes by here equally often, so that they agree on when to stop.
            if distributed.any_of(should_stop())[0]:
                take_ready()
                raise Interrupted
            bar.update(first + done, text)
            batch = next(found, None)
            if batch is None:
                continue
            rows = torch.empty(0, model.embedding_size)
            if len(batch.item):
                rows = model(batch.waveform.to(device, non_blocking=True), batch.lengths).float()
            take_ready()
            ready = mine[done], batch, rows
        take_ready()


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
