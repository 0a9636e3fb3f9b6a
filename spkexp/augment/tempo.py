"""Tempo: longer or shorter, the pitch as it was. WSOLA: Verhelst and Roelands, ICASSP 1993.

The output is made of segments of the input, each cross-faded into the next. A segment is taken from where the tempo
asks for it, moved by as much as makes it continue its predecessor best: the normalised cross-correlation of the
predecessor's continuation with the input (their eq. 8). Transients stay sharp, for inside a segment nothing changes.
As in sox's `tempo` the cross-fade is shorter than the segment, so that there are few segments to look for.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.augment.augmentation import RowAugmentation
from spkexp.augment.fourier import fast_size
from spkexp.augment.ranges import checked_range
from spkexp.counter import Keys
from spkexp.types import PositiveInt, Probability, Range

SEGMENT = 0.05  # seconds from one segment to the next
OVERLAP = 0.01  # seconds of a cross-fade, which are compared
SEARCH = 0.0125  # seconds in which a segment's start is looked for: a period of the lowest voices, 80 Hz
LIMIT = 2.0  # the search no longer finds what fits where a segment's start moves by more than a segment
_FACTOR = 0  # stream


class Tempo(RowAugmentation):
    """Plays a row at a tempo of its own: at 1.1 it lasts 1 / 1.1 as long, at .9 it is cut at the batch's end.

    Args:
        probability: that a row is changed.
        factors: [low, high] of the tempo, 0.5 to 2.
        sample_rate: Hz.
    """

    def __init__(self, probability: Probability, factors: Range, sample_rate: PositiveInt) -> None:
        super().__init__(probability)
        self.factors = checked_range("factors", factors)
        if self.factors[0] < 1 / LIMIT or self.factors[1] > LIMIT:
            raise ValueError(f"factors: must lie in [{1 / LIMIT:g}, {LIMIT:g}], got {list(self.factors)}")
        self.sample_rate = sample_rate

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.uniform(key, _FACTOR, *self.factors)
        samples = waveform.shape[1]
        new = np.clip(np.rint(lengths.numpy() / factor), 1, samples).astype(np.int64)
        return stretch(waveform, factor, samples, self.sample_rate), torch.from_numpy(new).to(lengths.dtype)


def stretch(waveform: Tensor, factor: NDArray[np.float64], width: int, sample_rate: int) -> Tensor:
    """The first `width` samples of `waveform` (n, samples) played `factor` (n,) times as fast: (n, width).

    Behind a row's own end lies silence, as in `waveform`.
    """
    segment, overlap, search = (max(1, round(seconds * sample_rate)) for seconds in (SEGMENT, OVERLAP, SEARCH))
    count = math.ceil(width / segment)
    # Where the tempo asks for each segment: the middle of its search. A start behind the end finds silence.
    asked = np.minimum(np.rint(np.arange(count) * segment * factor[:, None]), waveform.shape[1]).astype(np.int64)
    starts = torch.from_numpy(asked).to(waveform.device, non_blocking=True)
    padded = torch.nn.functional.pad(waveform, (search // 2, 2 * (search + segment + overlap)))
    starts = _best_starts(padded, starts, segment, overlap, search)

    output = _pieces(padded, starts, segment)
    if count > 1:
        fade = (torch.arange(overlap, device=padded.device, dtype=padded.dtype) + 0.5) / overlap
        continued = _pieces(padded, starts[:, :-1] + segment, overlap)
        # Both sides are alike, so their amplitudes add, not their energies.
        output[:, 1:, :overlap] = continued + fade * (output[:, 1:, :overlap] - continued)
    return output.flatten(1)[:, :width]


def _best_starts(padded: Tensor, asked: Tensor, segment: int, overlap: int, search: int) -> Tensor:
    """(n, segments) where segments start in `padded`: in [asked, asked + search), best continuing the one before."""
    region = search + overlap - 1
    size = fast_size(region)  # a circular correlation this long is the plain one for every shift looked at
    weight = _inverse_norm(padded, overlap)
    # Of starts that fit alike, as in a steady tone, the one in the middle: rounding shall not decide.
    shift = torch.arange(search, device=padded.device)
    nearness = 1 - 0.01 * (shift - search // 2).abs() / search
    ahead, span = torch.arange(overlap, device=padded.device), torch.arange(region, device=padded.device)

    start = asked[:, :1] + search // 2
    starts = [start]
    for number in range(1, asked.shape[1]):
        first = asked[:, number : number + 1]
        wanted = torch.fft.rfft(padded.gather(1, start + segment + ahead), n=size)
        there = torch.fft.rfft(padded.gather(1, first + span), n=size)
        alike = torch.fft.irfft(there * wanted.conj(), n=size)[:, :search]
        alike = alike * weight.gather(1, first + shift) * nearness
        start = first + alike.argmax(dim=1, keepdim=True)
        starts.append(start)
    return torch.cat(starts, dim=1)


def _inverse_norm(padded: Tensor, overlap: int) -> Tensor:
    """1 / |padded[i : i + overlap]| for each i, at most as for an amplitude of 1e-4 (-80 dB)."""
    # Whole numbers: a running sum of floats would be inexact, and on CUDA not the same each time.
    total = (padded.square() * 2.0**36).long().cumsum(dim=1)
    energy = (total[:, overlap:] - total[:, :-overlap]) * 2.0**-36
    energy = torch.nn.functional.pad(energy, (1, 0))  # the first sum has no predecessor; it is of the padding
    return energy.clamp(min=1e-8 * overlap).rsqrt()


def _pieces(padded: Tensor, starts: Tensor, size: int) -> Tensor:
    """(n, segments, size): what begins at `starts` (n, segments)."""
    ahead = torch.arange(size, device=padded.device)
    return padded.gather(1, (starts[:, :, None] + ahead).flatten(1)).unflatten(1, (-1, size))
