"""Pitch: higher or lower, the duration as it was. Resampled, which moves both, then brought back by `stretch`.

Every row has a ratio of its own, so the resampling interpolates: a cubic spline through twice as many samples, the
spline's own frequency response undone beforehand (Unser, IEEE Signal Processing Magazine 1999).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.augment.augmentation import RowAugmentation, silence_behind
from spkexp.augment.fourier import fast_size
from spkexp.augment.ranges import checked_range
from spkexp.augment.tempo import LIMIT, stretch
from spkexp.counter import Keys
from spkexp.types import PositiveInt, Probability, Range

MARGIN = 64  # samples of silence between the end of a row and its beginning, which the Fourier transform joins
TRANSITION = 0.05  # of the band that is kept: the width of the low-pass filter's edge
_SEMITONES = 0  # stream


class Pitch(RowAugmentation):
    """Moves a row's pitch, and its formants with it: another voice, at the same tempo.

    Args:
        probability: that a row is changed.
        semitones: [low, high] of the shift, -12 to 12, fractions too.
        sample_rate: Hz.
    """

    def __init__(self, probability: Probability, semitones: Range, sample_rate: PositiveInt) -> None:
        super().__init__(probability)
        self.semitones = checked_range("semitones", semitones)
        octave = 12 * math.log2(LIMIT)
        if self.semitones[0] < -octave or self.semitones[1] > octave:
            raise ValueError(f"semitones: must lie in [{-octave:g}, {octave:g}], got {list(self.semitones)}")
        self.sample_rate = sample_rate

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        ratio = 2.0 ** (self.uniform(key, _SEMITONES, *self.semitones) / 12)
        faster = resample(waveform, ratio)
        # The interpolation rings a little behind a row's end.
        faster = silence_behind(faster, torch.from_numpy(np.ceil(lengths.numpy() / ratio)))
        return stretch(faster, 1 / ratio, waveform.shape[1], self.sample_rate), lengths


def resample(waveform: Tensor, ratio: NDArray[np.float64]) -> Tensor:
    """Row i of `waveform` (n, samples) at times 0, ratio[i], 2 ratio[i], …: (n, ceil(samples / min ratio)).

    A tone's frequency becomes `ratio` times as high; what would lie above half the sample rate is taken out.
    """
    samples, device = waveform.shape[1], waveform.device
    size = fast_size(samples + MARGIN)
    frequency = np.arange(size // 2 + 1) / size  # cycles a sample
    spectrum = torch.fft.rfft(waveform, n=size)
    undone = 2 / np.sinc(frequency / 2) ** 4  # the cubic B-spline over half samples; 2: there are twice as many
    undone[-1] = 0.0  # at half the sample rate itself a phase is unknown
    spectrum = spectrum * torch.from_numpy(undone).to(device, waveform.dtype, non_blocking=True)
    if (ratio > 1).any():
        kept = 0.5 / np.maximum(ratio, 1)[:, None]
        edge = np.clip((kept - frequency) / (TRANSITION * kept), 0, 1)
        edge = np.where(ratio[:, None] > 1, edge * edge * (3 - 2 * edge), 1)
        spectrum = spectrum * torch.from_numpy(edge).to(device, waveform.dtype, non_blocking=True)
    knots = torch.fft.irfft(spectrum, n=2 * size)
    knots = torch.nn.functional.pad(knots, (1, 2), mode="circular")

    width = math.ceil(samples / ratio.min())
    step = torch.from_numpy(2 * ratio).to(device, non_blocking=True)[:, None]
    # In float64: a float32 has no digits left for the fraction. Rows that are over before stay at their silent end.
    time = (torch.arange(width, device=device) * step).clamp(max=2 * (samples + MARGIN // 2))
    knot = time.long()
    t = (time - knot).to(waveform.dtype)
    s = 1 - t
    weights = (s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3)
    total = torch.zeros_like(t)
    for number, weight in enumerate(weights):  # knots -1, 0, 1, 2 from `knot`; `knots` begins with the one at -1
        total.addcmul_(knots.gather(1, knot + number), weight, value=1 / 6)
    return total
