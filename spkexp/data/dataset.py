"""From utterances to batches of waveforms: random crops for training, whole utterances for scoring."""

import gc
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spkexp.augment.augmentation import Augmentation, Material
from spkexp.augment.speed import change_speed
from spkexp.counter import Keys, item_keys, uniform
from spkexp.data import audio
from spkexp.data.sampler import Items, Sampler, parts_of_batch
from spkexp.data.utterances import Utterances
from spkexp.errors import AudioError
from spkexp.lifeline import die_with

# Streams of `counter.uniform`: what is drawn about an item. Augmentations have those from 64 on.
CROP, SPEED, SUBSTITUTE = 0, 1, 2
MAX_SUBSTITUTES = 20

Key = tuple[int, int, int]  # epoch, item, draw: all that an item of a batch depends on besides the seed


class Bad(NamedTuple):
    """An utterance, or a recording for an augmentation, that cannot be used, and why."""

    id: str  # of a recording: its file
    reason: str
    of_augmentation: bool = False


class Batch(NamedTuple):
    """What the device gets."""

    waveform: Tensor  # (B, samples) float32 in [-1, 1]
    lengths: Tensor  # (B,) samples of each row; what lies behind is zero
    label: Tensor  # (B,) index of the speaker
    item: Tensor  # (B,) index of the utterance
    key: Tensor  # (B,) the bits of `counter.Keys`, from which all random choices about a row derive
    material: list[Tensor]  # what the augmentations need from disk
    bad: list[Bad]  # found while reading this batch


@dataclass(frozen=True)
class Reading:
    """How audio files are read."""

    sample_rate: int  # Hz
    resample: bool
    mix_channels: bool


class Crops(Dataset[Batch]):
    """Random crops of `crop_seconds`, or whole utterances; drawn by (seed, epoch, item, draw) alone.

    short "wrap" repeats an utterance that is shorter than the crop, "pad" follows it by zeros. With `one_copy` an item
    is an utterance, of which each epoch takes one of the speed copies. A file that cannot be read gives way to another
    utterance, drawn from the item's own counter, and is listed in the batch's `bad`; where MAX_SUBSTITUTES of those
    cannot be read either, the batch is empty.
    """

    def __init__(
        self,
        utterances: Utterances,
        reading: Reading,
        crop_seconds: float | None,
        short: Literal["wrap", "pad"],
        seed: int,
        one_copy: bool,
        augmentation: Augmentation | None,
    ) -> None:
        self.utterances, self.reading, self.short, self.seed = utterances, reading, short, seed
        self.one_copy, self.augmentation = one_copy, augmentation
        self.num_samples = None if crop_seconds is None else round(crop_seconds * reading.sample_rate)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        epoch, drawn = keys[0][0], np.array(keys, dtype=np.int64)
        key = item_keys(self.seed, epoch, drawn[:, 1], drawn[:, 2])
        items = drawn[:, 1]
        if self.one_copy:
            items = items + self.utterances.rows * self._drawn_copies(key)
        bad: list[Bad] = []
        waves: list[NDArray[np.float32]] = []
        used = []
        for item, own in zip(items.tolist(), key, strict=True):
            found = self._read(item, own, bad)
            if found is None:
                return _no_batch(bad)
            used.append(found[0])
            waves.append(found[1])
        waveform, lengths = _padded(waves, self.num_samples)
        material = Material()
        if self.augmentation is not None:
            try:
                self.augmentation.read(key, waveform.shape[1], material)
            except AudioError as error:  # none of the recordings of an augmentation can be used
                return _no_batch([*bad, Bad("augment", str(error), True)])
            bad += [Bad(file, reason, True) for file, reason in material.bad]
        return _batch(waveform, lengths, self.utterances, used, key, material.tensors, bad)

    def _drawn_copies(self, key: Keys) -> Items:
        return (uniform(key, SPEED) * len(self.utterances.speeds)).astype(np.int64)

    def _read(self, item: int, key: np.uint64, bad: list[Bad]) -> tuple[int, NDArray[np.float32]] | None:
        """(the item used, its samples); None where no other that was drawn can be read either."""
        own = np.array([key])
        candidate = item
        for attempt in range(1 + MAX_SUBSTITUTES):
            try:
                return candidate, self._wave(candidate, float(uniform(own, CROP)[0]))
            except AudioError as error:
                # A file counts once, whichever of its speed copies met it.
                bad.append(Bad(self.utterances.id[candidate % self.utterances.rows], str(error)))
                candidate = int(uniform(own, SUBSTITUTE + attempt)[0] * len(self.utterances))
        return None

    def _wave(self, item: int, position: float) -> NDArray[np.float32]:
        if self.num_samples is None:
            return _whole(self.utterances, item, self.reading)
        speed = self.utterances.speed_of(item)
        crop = audio.read_crop(
            self.utterances.path[item],
            round(self.num_samples * speed),
            position,
            segment=self.utterances.segment(item, self.reading.sample_rate),
            part=self.utterances.part_of(item),
            sample_rate=self.reading.sample_rate,
            resample=self.reading.resample,
            mix_channels=self.reading.mix_channels,
        )
        crop = change_speed(crop, speed)[: self.num_samples]
        return np.resize(crop, self.num_samples) if self.short == "wrap" and len(crop) < self.num_samples else crop

    def __len__(self) -> int:
        return len(self.utterances)


class WholeUtterances(Dataset[Batch]):
    """Whole utterances, padded with zeros to the longest of the batch. Unreadable ones are listed and left out."""

    def __init__(self, utterances: Utterances, reading: Reading) -> None:
        self.utterances, self.reading = utterances, reading

    def __getitems__(self, items: Sequence[int]) -> Batch:
        waves, used, bad = [], [], list[Bad]()
        for item in items:
            try:
                waves.append(_whole(self.utterances, item, self.reading))
            except AudioError as error:
                bad.append(Bad(self.utterances.id[item], str(error)))
            else:
                used.append(item)
        waveform, lengths = _padded(waves, None)
        return _batch(waveform, lengths, self.utterances, used, np.zeros(len(used), dtype=np.uint64), [], bad)

    def __len__(self) -> int:
        return len(self.utterances)


def _whole(utterances: Utterances, item: int, reading: Reading) -> NDArray[np.float32]:
    start, stop = utterances.segment(item, reading.sample_rate) or (0, None)
    wave = audio.read(
        utterances.path[item],
        start,
        None if stop is None else stop - start,
        part=utterances.part_of(item),
        sample_rate=reading.sample_rate,
        resample=reading.resample,
        mix_channels=reading.mix_channels,
    )
    return change_speed(wave, utterances.speed_of(item))


def _padded(waves: Sequence[NDArray[np.float32]], width: int | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(B, width) waves with zeros behind them, and their lengths (B,); width None: that of the longest."""
    lengths = np.array([len(wave) for wave in waves], dtype=np.int64)
    waveform = np.zeros((len(waves), lengths.max(initial=0) if width is None else width), dtype=np.float32)
    for row, wave in zip(waveform, waves, strict=True):
        row[: len(wave)] = wave
    return waveform, lengths


def _batch(
    waveform: NDArray[np.float32],
    lengths: NDArray[np.int64],
    utterances: Utterances,
    items: list[int],
    key: Keys,
    material: list[Tensor],
    bad: list[Bad],
) -> Batch:
    item = np.array(items, dtype=np.int64)
    return Batch(
        torch.from_numpy(waveform),
        torch.from_numpy(lengths),
        torch.from_numpy(utterances.label[item].astype(np.int64)),
        torch.from_numpy(item),
        torch.from_numpy(key.view(np.int64)),
        material,
        bad,
    )


def _no_batch(bad: list[Bad]) -> Batch:
    """An exception would come out of a worker process as its traceback: an empty batch tells instead."""
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty(0, 0), none, none, none, none, [], bad)


class Parts:
    """The keys of every part of every batch from step `start` to `stop` that this process works through.

    The position in training is the step alone: epoch and batch are its quotient and remainder.
    """

    def __init__(self, sampler: Sampler, seed: int, steps: range, accumulate: int, world_size: int, rank: int) -> None:
        self.sampler, self.seed, self.steps = sampler, seed, steps
        self.accumulate, self.world_size, self.rank = accumulate, world_size, rank

    def __iter__(self) -> Iterator[list[Key]]:
        current, batches = -1, None
        for step in self.steps:
            epoch, batch = divmod(step, self.sampler.steps_per_epoch)
            if batches is None or epoch != current:
                current, batches = epoch, self.sampler.epoch(self.seed, epoch)
            items = batches[batch]
            # Where an utterance may come again in an epoch, the step and the place in it tell its crops apart.
            draws = (batch << 20) + np.arange(len(items)) if self.sampler.repeats else np.zeros_like(items)
            keyed = np.stack([np.full_like(items, epoch), items, draws], axis=1)
            for rows in parts_of_batch(np.arange(len(items)), self.accumulate, self.world_size, self.rank):
                yield [(epoch, item, draw) for epoch, item, draw in keyed[rows].tolist()]

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate


def loader(dataset: Dataset[Batch], batches: Parts | list[list[int]], num_workers: int, pin: bool) -> DataLoader[Batch]:
    """Batches in the order of `batches`, read by `num_workers` processes (0: by this one)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        # They share the tables and the recordings in memory, which other ways of starting would copy for each.
        multiprocessing_context="fork" if num_workers else None,
        collate_fn=_as_it_is,  # __getitems__ returns the whole batch
        pin_memory=pin,
        prefetch_factor=2 if num_workers else None,  # a batch of 512 crops has 65 MB
        worker_init_fn=_start_worker if num_workers else None,
        # The workers draw nothing from torch's generators; this keeps them from touching the training's.
        generator=torch.Generator(),
    )


def _start_worker(worker: int) -> None:
    # Collecting garbage would write to every object that the worker shares with the main process, and so copy it.
    gc.freeze()
    # Ctrl-C and Slurm signal the whole group: a worker that obeyed would take the step that is to be saved with it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    die_with(os.getppid())


def _as_it_is(batch: Any) -> Any:
    return batch
