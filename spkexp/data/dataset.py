"""From utterances to batches of waveforms: random crops for training, whole utterances for scoring."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spkexp.augment.speed import change_speed
from spkexp.counter import uniform
from spkexp.data import audio
from spkexp.data.manifest import Utterances
from spkexp.data.sampler import RandomSampler, parts_of_batch
from spkexp.errors import AudioError

# Streams of `counter.uniform`: what is drawn about an item.
CROP, SUBSTITUTE = 0, 1
MAX_SUBSTITUTES = 20

Key = tuple[int, int]  # epoch, item: all that a batch depends on besides the seed


class Bad(NamedTuple):
    """An utterance that cannot be used, and why."""

    id: str
    reason: str


class Batch(NamedTuple):
    """What the device gets."""

    waveform: Tensor  # (B, samples) float32 in [-1, 1]
    lengths: Tensor  # (B,) samples of each row; what lies behind is zero
    label: Tensor  # (B,) index of the speaker
    item: Tensor  # (B,) index of the utterance
    bad: list[Bad]  # found while reading this batch


@dataclass(frozen=True)
class Reading:
    """How audio files are read."""

    sample_rate: int  # Hz
    resample: bool
    mix_channels: bool


class Crops(Dataset[Batch]):
    """Random crops of `crop_seconds`; where each starts is a function of (seed, epoch, item).

    short "wrap" repeats an utterance that is shorter than the crop, "pad" follows it by zeros. A file that cannot be
    read gives way to another utterance, drawn from the item's own counter, and is listed in the batch's `bad`; where
    MAX_SUBSTITUTES of those cannot be read either, the batch is empty.
    """

    def __init__(
        self, utterances: Utterances, reading: Reading, crop_seconds: float, short: Literal["wrap", "pad"], seed: int
    ) -> None:
        self.utterances, self.reading, self.short, self.seed = utterances, reading, short, seed
        self.num_samples = round(crop_seconds * reading.sample_rate)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        epoch, items = keys[0][0], np.array([item for _, item in keys])
        position = uniform(self.seed, epoch, items, CROP)
        waveform = np.zeros((len(keys), self.num_samples), dtype=np.float32)
        lengths = np.full(len(keys), self.num_samples)
        used = items.copy()
        bad: list[Bad] = []
        for row in range(len(keys)):
            found = self._read(epoch, items[row], position[row], bad)
            if found is None:
                # An exception would come out of a worker process as its traceback: an empty batch tells instead.
                none = items[:0]
                return _batch(waveform[:0], lengths[:0], none, none, bad)
            used[row], crop = found
            if len(crop) < self.num_samples and self.short == "wrap":
                crop = np.resize(crop, self.num_samples)
            waveform[row, : len(crop)] = crop
            lengths[row] = len(crop)
        label = self.utterances.label[used]
        return _batch(waveform, lengths, label, used, bad)

    def _read(self, epoch: int, item: int, position: float, bad: list[Bad]) -> tuple[int, NDArray[np.float32]] | None:
        """(the item used, at most num_samples of it); None where no other that was drawn can be read either."""
        candidate = item
        for attempt in range(1 + MAX_SUBSTITUTES):
            try:
                return candidate, self._crop(candidate, position)
            except AudioError as error:
                bad.append(Bad(self.utterances.id[candidate], str(error)))
                draw = uniform(self.seed, epoch, np.array([item]), SUBSTITUTE + attempt)[0]
                candidate = int(draw * len(self.utterances))
        return None

    def _crop(self, item: int, position: float) -> NDArray[np.float32]:
        speed = self.utterances.speed_of(item)
        crop = audio.read_crop(
            self.utterances.path[item],
            round(self.num_samples * speed),
            position,
            segment=self.utterances.segment(item, self.reading.sample_rate),
            sample_rate=self.reading.sample_rate,
            resample=self.reading.resample,
            mix_channels=self.reading.mix_channels,
        )
        return change_speed(crop, speed)[: self.num_samples]

    def __len__(self) -> int:
        return len(self.utterances)


class WholeUtterances(Dataset[Batch]):
    """Whole utterances, padded with zeros to the longest of the batch. Unreadable ones are listed and left out."""

    def __init__(self, utterances: Utterances, reading: Reading) -> None:
        self.utterances, self.reading = utterances, reading

    def __getitems__(self, items: Sequence[int]) -> Batch:
        waves, used, bad = [], [], []
        for item in items:
            try:
                start, stop = self.utterances.segment(item, self.reading.sample_rate) or (0, None)
                wave = audio.read(
                    self.utterances.path[item],
                    start,
                    None if stop is None else stop - start,
                    sample_rate=self.reading.sample_rate,
                    resample=self.reading.resample,
                    mix_channels=self.reading.mix_channels,
                )
            except AudioError as error:
                bad.append(Bad(self.utterances.id[item], str(error)))
            else:
                waves.append(wave)
                used.append(item)
        lengths = np.array([len(wave) for wave in waves], dtype=np.int64)
        waveform = np.zeros((len(waves), lengths.max(initial=0)), dtype=np.float32)
        for row, wave in zip(waveform, waves, strict=True):
            row[: len(wave)] = wave
        label = self.utterances.label[used] if used else np.empty(0, dtype=np.int64)
        return _batch(waveform, lengths, label, np.array(used, dtype=np.int64), bad)

    def __len__(self) -> int:
        return len(self.utterances)


def _batch(
    waveform: NDArray[np.float32],
    lengths: NDArray[np.int64],
    label: NDArray[np.int64],
    item: NDArray[np.int64],
    bad: list[Bad],
) -> Batch:
    return Batch(
        torch.from_numpy(waveform), torch.from_numpy(lengths), torch.from_numpy(label), torch.from_numpy(item), bad
    )


class Parts:
    """The keys of every part of every batch from step `start` to `stop` that this process works through.

    The position in training is the step alone: epoch and batch are its quotient and remainder.
    """

    def __init__(
        self,
        sampler: RandomSampler,
        seed: int,
        batch_size: int,
        steps: range,
        steps_per_epoch: int,
        accumulate: int,
        world_size: int,
        rank: int,
    ) -> None:
        self.sampler, self.seed, self.batch_size = sampler, seed, batch_size
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.accumulate, self.world_size, self.rank = accumulate, world_size, rank

    def __iter__(self) -> Iterator[list[Key]]:
        current, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != current:
                current, order = epoch, self.sampler.epoch(self.seed, epoch)
            items = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            for part in parts_of_batch(items, self.accumulate, self.world_size, self.rank):
                yield [(epoch, item) for item in part.tolist()]

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate


def loader(dataset: Dataset[Batch], batches: Parts | list[list[int]], num_workers: int, pin: bool) -> DataLoader[Batch]:
    """Batches in the order of `batches`, read by `num_workers` processes (0: by this one)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_as_it_is,  # __getitems__ returns the whole batch
        pin_memory=pin,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_leave_signals_to_the_main_process if num_workers else None,
        # The workers draw nothing from torch's generators; this keeps them from touching the training's.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and Slurm signal the whole group: a worker that obeyed would take the step that is to be saved with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
