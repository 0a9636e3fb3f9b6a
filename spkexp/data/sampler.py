"""Which utterances make up each step: a pure function of (seed, epoch), the same for any number of processes.

A sampler has `steps_per_epoch` and gives the batches of any epoch at once, so going on from a step needs no replay.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.errors import UserError
from spkexp.types import NonNegative, Positive, PositiveInt

Items = NDArray[np.int64]


class Sampler(ABC):
    """Base of all.

    repeats: whether an utterance may come twice an epoch, and is then cropped anew each time.
    groups_labels: whether it sees to it that a batch has several utterances of a speaker.
    """

    repeats = False
    groups_labels = False
    steps_per_epoch: int
    utterances_per_epoch: int

    @abstractmethod
    def epoch(self, seed: int, epoch: int) -> Sequence[Items]:
        """The batches of an epoch, `steps_per_epoch` arrays of indices."""


class _EqualBatches(Sampler):
    """Batches of `batch_size` from an order of the utterances; what is left over differs from epoch to epoch."""

    def __init__(self, batch_size: int, num_draws: int) -> None:
        if num_draws < batch_size:
            raise UserError(
                f"trainer.batch_size: {batch_size} is more than the {num_draws} training utterances; "
                f"choose at most {num_draws}"
            )
        self.batch_size = batch_size
        self.steps_per_epoch = num_draws // batch_size
        self.utterances_per_epoch = self.steps_per_epoch * batch_size

    def epoch(self, seed: int, epoch: int) -> Sequence[Items]:
        return np.split(self.order(seed, epoch)[: self.utterances_per_epoch], self.steps_per_epoch)

    @abstractmethod
    def order(self, seed: int, epoch: int) -> Items:
        """(at least utterances_per_epoch,) the epoch's utterances one after another."""


class RandomSampler(_EqualBatches):
    """Every utterance once an epoch, shuffled anew each epoch."""

    def __init__(self, num_items: PositiveInt, batch_size: PositiveInt) -> None:
        super().__init__(batch_size, num_items)
        self.num_items = num_items

    def order(self, seed: int, epoch: int) -> Items:
        return generator(seed, epoch).permutation(self.num_items)


class WeightedSampler(_EqualBatches):
    """Utterances drawn with replacement, with weights by their class: as many an epoch as there are.

    An utterance of a class with n of them has the weight n ** -balance: with balance 1 all classes come equally often,
    with 0 all utterances.
    """

    repeats = True

    def __init__(self, label: NDArray[np.int32], batch_size: PositiveInt, balance: NonNegative) -> None:
        """label: (N,) class of each utterance."""
        super().__init__(batch_size, len(label))
        weights = np.bincount(label)[label].astype(np.float64) ** -balance
        self._bounds = np.cumsum(weights / weights.sum())

    def order(self, seed: int, epoch: int) -> Items:
        drawn = generator(seed, epoch).random(len(self._bounds))
        return np.searchsorted(self._bounds, drawn, side="right").clip(max=len(self._bounds) - 1)


class SpeakerSampler(_EqualBatches):
    """Batches of P speakers with K utterances each, as metric losses want them; trainer.batch_size is P x K.

    Speakers come in turns, each once before any comes again, but for those left over where P does not divide their
    number. Of a speaker's utterances K are drawn without replacement, where there are so many.
    """

    repeats = True
    groups_labels = True

    def __init__(
        self,
        label: NDArray[np.int32],
        batch_size: PositiveInt,
        crop_seconds: Positive | None,
        utterances_per_speaker: PositiveInt,
        epoch_hours: Positive | None,
    ) -> None:
        """label: (N,) speaker of each utterance. epoch_hours: audio in an epoch; None: as many crops as utterances."""
        if batch_size % utterances_per_speaker:
            raise UserError(
                f"trainer.batch_size: {batch_size} is no multiple of "
                f"data.sampler.utterances_per_speaker={utterances_per_speaker}"
            )
        if epoch_hours is not None and crop_seconds is None:
            raise UserError("data.sampler.epoch_hours: counts crops, so it needs data.crop_seconds")
        draws = len(label) if epoch_hours is None or crop_seconds is None else round(epoch_hours * 3600 / crop_seconds)
        if epoch_hours is not None and draws < batch_size:
            raise UserError(
                f"data.sampler.epoch_hours: {epoch_hours:g} h are {draws} crops of data.crop_seconds={crop_seconds:g}, "
                f"too few for one batch of trainer.batch_size={batch_size}; choose a larger one"
            )
        super().__init__(batch_size, draws)
        self.per_speaker, self.speakers_per_batch = utterances_per_speaker, batch_size // utterances_per_speaker
        self._order = np.argsort(label, kind="stable")
        present, self._sizes = np.unique(label, return_counts=True)
        self._starts = np.cumsum(self._sizes) - self._sizes
        if self.speakers_per_batch > len(present):
            raise UserError(
                f"data.sampler: a batch of {batch_size} with {utterances_per_speaker} utterances a speaker needs "
                f"{self.speakers_per_batch} speakers, and there are {len(present)}; choose a smaller "
                "trainer.batch_size or a larger data.sampler.utterances_per_speaker"
            )

    def order(self, seed: int, epoch: int) -> Items:
        rng = generator(seed, epoch)
        turns = len(self._sizes) // self.speakers_per_batch  # batches until all speakers had theirs
        speakers = np.concatenate(
            [
                rng.permutation(len(self._sizes))[: turns * self.speakers_per_batch]
                for _ in range(-(-self.steps_per_epoch // turns))
            ]
        )[: self.steps_per_epoch * self.speakers_per_batch]
        size = self._sizes[speakers]
        # Where a speaker has fewer than K, numbers past the last one begin again with the first.
        picks = self._distinct(rng, size) % size[:, None]
        return self._order[self._starts[speakers][:, None] + picks].reshape(-1)

    def _distinct(self, rng: np.random.Generator, size: Items) -> Items:
        """(len(size), K) different numbers in [0, max(size, K)) a row, by Floyd's algorithm (Bentley 1987)."""
        count = self.per_speaker
        picks = np.empty((len(size), count), dtype=np.int64)
        for j in range(count):
            top = np.maximum(size - count, 0) + j
            drawn = (rng.random(len(size)) * (top + 1)).astype(np.int64)
            taken = (picks[:, :j] == drawn[:, None]).any(axis=1)
            picks[:, j] = np.where(taken, top, drawn)
        return picks


class BucketSampler(Sampler):
    """Whole utterances in batches of like length: at most `batch_seconds` of audio with the padding counted.

    The utterances are cut by length into `buckets` of equal number; a bucket's longest utterance says how many of its
    kind make a batch, at most `batch_size` and a multiple of `multiple_of`. In a bucket the order is random, and what
    it leaves over differs from epoch to epoch. Of few utterances there are fewer buckets, so that each fills a batch.
    """

    def __init__(
        self,
        duration: NDArray[np.float64],
        batch_size: PositiveInt,
        crop_seconds: Positive | None,
        batch_seconds: Positive,
        buckets: PositiveInt,
        multiple_of: PositiveInt,
    ) -> None:
        """duration: (N,) seconds. multiple_of: what processes x trainer.accumulate must divide."""
        if crop_seconds is not None:
            raise UserError(
                "data/sampler=bucketed: puts whole utterances of like length together, and crops are all of "
                f"{crop_seconds:g} s; set data.crop_seconds=null"
            )
        if len(duration) < multiple_of:
            raise UserError(
                f"data.sampler.multiple_of: {len(duration)} training utterances do not fill one batch of {multiple_of}"
                f"; choose at most {len(duration)}"
            )
        # No bucket is smaller than the smallest batch: it would never be trained on.
        buckets = min(buckets, len(duration) // multiple_of)
        self._buckets = np.array_split(np.argsort(duration, kind="stable"), buckets)
        self._sizes = []
        for part in self._buckets:
            longest = duration[part[-1]]
            size = min(batch_size, int(batch_seconds / longest), len(part)) // multiple_of * multiple_of
            if size == 0:
                raise UserError(
                    f"data.sampler.batch_seconds: {batch_seconds:g} s cannot hold "
                    f"data.sampler.multiple_of={multiple_of} utterances as long as {duration.max():.1f} s (with "
                    f"at most trainer.batch_size={batch_size}); raise it, or leave out the longest by "
                    'data.filter="duration < SECONDS"'
                )
            self._sizes.append(size)
        self._counts = [len(part) // size for part, size in zip(self._buckets, self._sizes, strict=True)]
        self.steps_per_epoch = sum(self._counts)
        self.utterances_per_epoch = sum(n * size for n, size in zip(self._counts, self._sizes, strict=True))

    def epoch(self, seed: int, epoch: int) -> Sequence[Items]:
        rng = generator(seed, epoch)
        batches: list[Items] = []
        for part, size, count in zip(self._buckets, self._sizes, self._counts, strict=True):
            batches += list(rng.permutation(part)[: size * count].reshape(count, size))
        return [batches[index] for index in rng.permutation(len(batches))]


class ShardSampler(_EqualBatches):
    """Every utterance once an epoch, in an order that reads few shards at a time.

    Shards are shuffled and taken `open_shards` at a time; the utterances of those are shuffled together. A network
    file system then sees large files read once, each within a short time.
    """

    def __init__(self, shard: NDArray[np.int32] | None, batch_size: PositiveInt, open_shards: PositiveInt) -> None:
        """shard: (N,) index of the shard that holds each utterance; None: they are files of their own."""
        if shard is None:
            raise UserError(
                "data.sampler: ShardSampler needs utterances in shards; pack them by python -m spkexp.prepare "
                "pack_mb=512, or use data/sampler=random"
            )
        super().__init__(batch_size, len(shard))
        self._shard, self.open_shards = shard, open_shards

    def order(self, seed: int, epoch: int) -> Items:
        rng = generator(seed, epoch)
        window = rng.permutation(int(self._shard.max()) + 1) // self.open_shards
        return np.lexsort((rng.random(len(self._shard)), window[self._shard]))


def parts_of_batch(batch: Items, accumulate: int, world_size: int, rank: int) -> list[Items]:
    """The parts of a global batch that process `rank` works through, in order: `accumulate` of equal size.

    Over all processes the parts are the batch in its order, so that a step means the same whatever their number.
    len(batch) must be divisible by accumulate * world_size.
    """
    parts = np.split(batch, accumulate * world_size)
    return [parts[index * world_size + rank] for index in range(accumulate)]
