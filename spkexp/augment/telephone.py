"""Speech as it comes out of a telephone: a narrow band at 8 kHz and the 8-bit companding of ITU-T G.711.

It imitates the band and G.711's quantisation, nothing else: no GSM or other vocoder, no packet loss, no echo.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from spkexp.augment.augmentation import RowAugmentation
from spkexp.augment.filters import fir, gains, num_taps
from spkexp.augment.fourier import fast_size
from spkexp.augment.ranges import checked_range
from spkexp.counter import Keys
from spkexp.types import NonNegativeRange, PositiveInt, Probability

TELEPHONE_RATE = 8000  # Hz
# From passed to attenuated by 60 dB; the band's edges (-6 dB) lie in the middle.
_TRANSITION_HZ = 200.0
_GRID = 1 << 14


class Telephone(RowAugmentation):
    """Band-pass, down to 8 kHz, G.711 there and back, up to the rate of the waveform again; not delayed.

    The sender's filter has the band; the receiver's is an ideal interpolation up to 4 kHz, so that quantisation noise
    fills 0 to 4 kHz. Full scale, 1.0, is that of 16-bit audio, 3.17 dBm0 (mu-law) or 3.14 dBm0 (A-law) for a sine.

    Args:
        probability: that a row is changed.
        codec: "mu_law" (North America, Japan), "a_law" (elsewhere) or "none" (the band alone).
        band_hz: [low, high] that pass, Hz, at most 4000: [300, 3400] is the classical telephone band; a low of 0 cuts
            nothing below.
        sample_rate: of the waveform, Hz, at least 8000.
    """

    def __init__(
        self,
        probability: Probability,
        codec: Literal["mu_law", "a_law", "none"],
        band_hz: NonNegativeRange,
        sample_rate: PositiveInt,
    ) -> None:
        super().__init__(probability)
        low, high = checked_range("band_hz", band_hz)
        if not low < high <= TELEPHONE_RATE / 2:
            raise ValueError(f"band_hz: must be [low, high] with low < high <= {TELEPHONE_RATE // 2}, got {band_hz}")
        if sample_rate < TELEPHONE_RATE:
            raise ValueError(f"a telephone works at {TELEPHONE_RATE} Hz, more than the audio's {sample_rate} Hz")
        self.codec = codec
        common = math.gcd(sample_rate, TELEPHONE_RATE)
        self.ratio = sample_rate // common, TELEPHONE_RATE // common
        frequency = torch.fft.rfftfreq(_GRID, dtype=torch.float64) * sample_rate
        ideal = ((frequency >= low) & (frequency <= high)).to(torch.float64)
        taps = fir(ideal[None], num_taps(_TRANSITION_HZ / sample_rate)).float()
        # No buffer: the workers that read the audio have this module, too, and nothing on an accelerator.
        self._band = taps  # (1, number of taps)

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        samples, band = waveform.shape[1], self._band.to(waveform.device, non_blocking=True)
        # Sizes in the ratio of the rates, so that dropping or adding frequencies changes the rate exactly.
        factor = fast_size(math.ceil((samples + band.shape[1] // 2) / (2 * self.ratio[0])))
        wide, narrow = (2 * factor * part for part in self.ratio)
        spectrum = torch.fft.rfft(waveform, n=wide) * gains(band, wide)
        call = torch.fft.irfft(spectrum[:, : narrow // 2 + 1], n=narrow) * (narrow / wide)
        if self.codec == "mu_law":
            call = mu_law(call)
        elif self.codec == "a_law":
            call = a_law(call)
        if wide != narrow:
            # Without 4 kHz itself, whose phase the telephone cannot carry; the missing frequencies are taken as zero.
            call = torch.fft.irfft(torch.fft.rfft(call)[:, :-1], n=wide) * (wide / narrow)
        return call[:, :samples], lengths


# G.711 quantises by segments that double in size, 16 equal steps each: a floating-point number with a mantissa of
# four bits. So the code of a float32 is its sign, exponent and first four bits; the value, the middle of its step.
_STEP_BITS = 23 - 4


def _middle_of_step(magnitude: Tensor) -> Tensor:
    """float32 magnitudes, 1 or more, moved to the middle of their sixteenth of a power of two."""
    bits = magnitude.view(torch.int32)
    return ((bits >> _STEP_BITS << _STEP_BITS) | (1 << (_STEP_BITS - 1))).view(torch.float32)


def mu_law(x: Tensor) -> Tensor:
    """`x`, float32 in [-1, 1], through mu-law coding and decoding: the values of ITU-T G.711, table 2, over 8192.

    In the table's units (14 bits), magnitudes from 0 to 8159 with 33 added have segments [32 * 2^s, 64 * 2^s); the
    first begins at 33.
    """
    magnitude = (x.abs() * 8192.0 + 33.0).clamp(max=8191.0)
    return ((_middle_of_step(magnitude) - 33.0) / 8192.0).copysign(x)


def a_law(x: Tensor) -> Tensor:
    """`x`, float32 in [-1, 1], through A-law coding and decoding: the values of ITU-T G.711, table 1, over 4096.

    In the table's units (13 bits), segments above 32 are [32 * 2^s, 64 * 2^s); below 32 the steps are as wide as those
    of the first, so that adding 32 makes them part of it. There is no zero: silence becomes half a step, 1/4096.
    """
    magnitude = (x.abs() * 4096.0).clamp(max=4095.0)
    shift = (magnitude < 32.0) * 32.0
    return ((_middle_of_step(magnitude + shift) - shift) / 4096.0).copysign(x)
