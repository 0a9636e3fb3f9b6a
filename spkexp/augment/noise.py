"""Additive noise, music and babble at a drawn signal-to-noise ratio, as Kaldi's x-vector recipe (Snyder et al. 2018).

The ratio is that of the powers over the row's own samples: speech before the noise is added, to noise after its gain.
Nothing is clipped: samples may pass full scale, as float32 holds them and features scale with them.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp import counter
from spkexp.augment.augmentation import (
    STREAMS,
    Material,
    RowAugmentation,
    column,
    described,
    power,
    present,
    silence_behind,
)
from spkexp.augment.fourier import fast_size
from spkexp.augment.ranges import checked_range
from spkexp.counter import Keys, derived_keys
from spkexp.types import CountRange, Positive, PositiveInt, Probability, Range


@runtime_checkable
class Source(Protocol):
    """Where noise comes from: recordings (spkexp.data.recordings.Recordings) or a generator (ColouredNoise)."""

    def crop(self, key: Keys, samples: int, bad: list[tuple[str, str]]) -> NDArray[np.float32]:
        """(n, samples) a stretch of noise for each of `key`, a function of that key alone; none is silent.

        What could not be used on the way goes to `bad`: (file, why).
        """
        ...


class Kind:
    """One kind of noise: where it comes from, how often it is drawn, and how loud."""

    def __init__(self, weight: Positive, snr_db: Range, count: CountRange, source: Source) -> None:
        """weight: relative to the other kinds. snr_db: [low, high], drawn uniformly.

        count: [low, high] of the stretches that are summed, each at the same power: [1, 1] for noise and music, [3, 7]
        for a babble of voices. Raises ValueError for a range that is reversed, a count below 1, or no source of noise.
        """
        self.weight = weight
        self.snr_db = checked_range("snr_db", snr_db)
        self.count = checked_range("count", count)
        if self.count[0] < 1 or any(limit != int(limit) for limit in self.count):
            raise ValueError(f"count: must be whole numbers of at least 1, got {list(count)}")
        if not isinstance(source, Source):
            raise ValueError(f"source: must be {described(Source)}, but {type(source).__name__} is none")
        self.source = source


class Noise(RowAugmentation):
    """Adds noise of one of `kinds` to a row. A silent row stays silent, for no ratio is defined."""

    KIND, SNR, COUNT, CROP = range(4)
    num_material = 1

    def __init__(self, probability: Probability, kinds: Mapping[str, Kind | None]) -> None:
        """kinds: by a name of your choice; which one is drawn by their weights. None leaves one out.

        Raises ValueError if there is none.
        """
        super().__init__(probability)
        self._kinds = list(present("kinds", kinds, Kind).values())
        if not self._kinds:
            raise ValueError("kinds: give at least one kind of noise")
        weights = np.cumsum([kind.weight for kind in self._kinds])
        self._bounds = weights[:-1] / weights[-1]
        self._snr_db = np.array([kind.snr_db for kind in self._kinds])
        self._count = np.array([kind.count for kind in self._kinds])

    def fetch(self, key: Keys, samples: int, material: Material) -> list[Tensor]:
        """One tensor (n, samples) float32: the noise of each row, at any level."""
        kind = self._kind(key)
        low, high = self._count[kind].T
        count = np.floor(self.uniform(key, self.COUNT) * (high - low + 1) + low)
        crops = derived_keys(key, STREAMS * (1 + self.index) + self.CROP)
        noise = np.zeros((len(key), samples), dtype=np.float32)
        for index, one in enumerate(self._kinds):
            for number in range(int(one.count[1])):
                if len(rows := np.flatnonzero((kind == index) & (count > number))):
                    crop = one.source.crop(derived_keys(crops[rows], number), samples, material.bad)
                    mean_square = np.einsum("ij,ij->i", crop, crop) / samples
                    crop *= (1 / np.sqrt(mean_square))[:, None]
                    noise[rows] = noise[rows] + crop if number else crop
        return [torch.from_numpy(noise)]

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        noise = silence_behind(material[0], lengths)
        low, high = self._snr_db[self._kind(key)].T
        snr_db = low + (high - low) * self.uniform(key, self.SNR)
        noise_power = power(noise, lengths)
        # A stretch that is silent where the row has samples has no gain that could help it.
        ratio = torch.where(noise_power > 0, power(waveform, lengths) / noise_power, 0.0)
        return torch.addcmul(waveform, noise, ratio.sqrt() * column(10 ** (-snr_db / 20), waveform)), lengths

    def _kind(self, key: Keys) -> NDArray[np.int64]:
        """(n,) index of each row's kind."""
        return np.searchsorted(self._bounds, self.uniform(key, self.KIND), side="right")


class ColouredNoise:
    """Noise whose power falls as 1 / f^exponent from `FLOOR_HZ` up: 0 white, 1 pink, 2 brown. No recording needed.

    Each frequency has exactly its power and one of four phases, by two random signs; the sum of thousands of them is
    Gaussian, and takes a tenth of the time that as many Gaussian numbers do.
    """

    FLOOR_HZ = 20.0  # below, where nothing is heard, most of brown noise would lie

    def __init__(self, exponent: Range, sample_rate: PositiveInt) -> None:
        """exponent: [low, high], drawn uniformly. sample_rate: Hz. Raises ValueError for a reversed range."""
        self._exponent = checked_range("exponent", exponent)
        self._sample_rate = sample_rate

    def crop(self, key: Keys, samples: int, bad: list[tuple[str, str]]) -> NDArray[np.float32]:
        """(n, samples), at any level; nothing is ever `bad`."""
        size = fast_size(max(samples, 4096))  # the signs of its spectrum are whole bytes, and it has bass
        half = size // 2
        frequency = np.arange(1, half + 1, dtype=np.float32) * (self._sample_rate / size)
        log_frequency = np.log(frequency / self.FLOOR_HZ)
        low, high = self._exponent
        exponent = low + (high - low) * counter.uniform(key, 0)
        spectrum = np.zeros((len(key), half + 1), dtype=np.complex64)
        for row, one in enumerate(key):
            signs = np.unpackbits(np.frombuffer(counter.generator(int(one)).bytes(size // 8), dtype=np.uint8))
            magnitude = np.exp(np.float32(-exponent[row] / 2) * log_frequency)
            magnitude[frequency < self.FLOOR_HZ] = 0
            parts = (2 * signs.astype(np.float32) - 1).reshape(half, 2) * magnitude[:, None]
            spectrum[row, 1:] = parts.view(np.complex64)[:, 0]
        # One transform for all: torch plans each anew, which takes longer than the transform of a row.
        return torch.fft.irfft(torch.from_numpy(spectrum), size)[:, :samples].numpy()
