"""Bands of frequencies and chunks of time that are taken out of a waveform: a model must not rely on any of them.

As in SpeechBrain's recipes (Ravanelli et al. 2021), but each row of a batch has bands and chunks of its own.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.augment.augmentation import STREAMS, RowAugmentation
from spkexp.augment.filters import filtered, fir, num_taps
from spkexp.augment.ranges import checked_range
from spkexp.counter import Keys
from spkexp.types import CountRange, NonNegativeRange, Positive, PositiveInt, Probability

_COUNT = 0  # the stream of how many; those behind are of the bands or chunks themselves
# Points of the ideal response for each tap: band edges are met within a sixteenth of the slopes' width or better.
_GRID_PER_TAP = 16


class FrequencyDrop(RowAugmentation):
    """A few narrow bands, at random frequencies, are filtered out.

    One linear-phase filter a row for all its bands: gain 1/2 (-6 dB) at a band's edges, at most -50 dB in the inner
    half of the band, and within 0.02 dB of 1 from half a band's width beyond its edge on.

    Args:
        probability: that a row is changed.
        count: [low, high] number of bands, both included, each as likely; at most 62. They may overlap.
        centre_hz: [low, high] of a band's centre, Hz.
        width_hz: of a band, edge to edge, Hz; at most half the sample rate.
        sample_rate: of the waveform, Hz.
    """

    def __init__(
        self,
        probability: Probability,
        count: CountRange,
        centre_hz: NonNegativeRange,
        width_hz: Positive,
        sample_rate: PositiveInt,
    ) -> None:
        super().__init__(probability)
        self.count = _checked_count(count, limit=STREAMS - 2)
        self.centre_hz = checked_range("centre_hz", centre_hz)
        if self.centre_hz[1] > sample_rate / 2 or width_hz > sample_rate / 2:
            raise ValueError(
                f"centre_hz and width_hz must not exceed {sample_rate / 2:g} Hz, half of the sample rate; "
                f"got {list(centre_hz)} and {width_hz:g}"
            )
        self.width_hz, self.sample_rate = width_hz, sample_rate
        self.num_taps = num_taps(width_hz / 2 / sample_rate)

    def bands(self, key: Keys) -> NDArray[np.float64]:
        """(n, highest count, 2) lower and upper edge of each row's bands, Hz; those it does not have are empty."""
        most = self.count[1]
        centre = np.stack([self.uniform(key, _COUNT + 1 + i, *self.centre_hz) for i in range(most)], axis=1)
        dropped = np.arange(most) < _integer(self.uniform(key, _COUNT), *self.count)[:, None]
        half = np.where(dropped, self.width_hz / 2, 0.0)
        return np.stack([centre - half, centre + half], axis=2)

    def taps(self, key: Keys, device: torch.device) -> Tensor:
        """(n, number of taps) float32 filter of each row."""
        edges = torch.from_numpy(self.bands(key) / self.sample_rate).to(device, torch.float32, non_blocking=True)
        size = 1 << (_GRID_PER_TAP * self.num_taps - 1).bit_length()
        frequency = torch.fft.rfftfreq(size, device=device)[None, None]
        inside = (frequency >= edges[..., :1]) & (frequency < edges[..., 1:])
        return fir(1.0 - inside.any(dim=1).float(), self.num_taps)

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        if self.count[1] == 0:
            return waveform, lengths
        return filtered(waveform, self.taps(key, waveform.device)), lengths


class ChunkDrop(RowAugmentation):
    """A few chunks, each at a random place of the row, are silenced.

    Args:
        probability: that a row is changed.
        count: [low, high] number of chunks, both included, each as likely; at most 31. They may overlap.
        seconds: [low, high] length of a chunk; where the row is shorter than two such chunks, half the row instead.
        sample_rate: of the waveform, Hz.
    """

    def __init__(
        self,
        probability: Probability,
        count: CountRange,
        seconds: NonNegativeRange,
        sample_rate: PositiveInt,
    ) -> None:
        super().__init__(probability)
        self.count = _checked_count(count, limit=(STREAMS - 2) // 2)
        low, high = checked_range("seconds", seconds)
        self.samples = round(low * sample_rate), round(high * sample_rate)

    def chunks(self, lengths: NDArray[np.int64], key: Keys) -> NDArray[np.int64]:
        """(C, 3) row, first sample and number of samples of every chunk of rows of `lengths` samples; none is empty."""
        count = _integer(self.uniform(key, _COUNT), *self.count)
        found = [np.empty((0, 3), dtype=np.int64)]
        for i in range(self.count[1]):
            size = _integer(self.uniform(key, _COUNT + 1 + 2 * i), *self.samples)
            size = np.minimum(size, lengths // 2)
            start = _integer(self.uniform(key, _COUNT + 2 + 2 * i), 0, lengths - size)
            row = np.flatnonzero((count > i) & (size > 0))
            found.append(np.stack([row, start[row], size[row]], axis=1))
        return np.concatenate(found)

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        chunks = self.chunks(lengths.numpy(), key)
        if len(chunks) == 0:
            return waveform, lengths
        # Every chunk as a list of samples of one length; a shorter one repeats its last sample.
        row, start, size = torch.from_numpy(chunks).to(waveform.device, non_blocking=True).T[..., None]
        offset = torch.arange(int(chunks[:, 2].max()), device=waveform.device)
        where = row * waveform.shape[1] + start + torch.minimum(offset, size - 1)
        dropped = waveform.flatten().index_fill(0, where.flatten(), 0.0)
        return dropped.view(waveform.shape), lengths


def _checked_count(count: list[int], limit: int) -> tuple[int, int]:
    low, high = checked_range("count", count)
    if high > limit:
        raise ValueError(f"count: at most {limit} can be drawn for, got {high}")
    return low, high


def _integer(
    uniform: NDArray[np.float64], low: int | NDArray[np.int64], high: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Integers from `low` to `high`, both included, each as likely, by `uniform` in [0, 1)."""
    return low + np.floor(uniform * (high - low + 1)).astype(np.int64)
