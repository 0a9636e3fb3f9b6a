"""Linear-phase FIR filters by the window method, applied to a whole batch by FFT and without delay."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spkexp.augment.fourier import fast_size

# What a filter leaves where it passes nothing, dB: far below the quantisation of a telephone, and of 8-bit audio.
ATTENUATION_DB = 60.0
# Kaiser 1974 (Oppenheim and Schafer, eq. 7.75): the window's shape for more than 50 dB.
_BETA = 0.1102 * (ATTENUATION_DB - 8.7)
_BLOCK_PER_TAP = 8  # length of a block in taps


def num_taps(transition: float) -> int:
    """Taps, an odd number, of a filter that passes from 0 to ATTENUATION_DB within `transition` cycles per sample.

    Kaiser's estimate (Oppenheim and Schafer, eq. 7.76): M = (A - 8) / (2.285 * 2 pi * transition).
    """
    half = math.ceil((ATTENUATION_DB - 8) / (2.285 * 2 * math.pi * transition) / 2)
    return 2 * half + 1


def fir(ideal: Tensor, taps: int) -> Tensor:
    """Filters (n, taps), `taps` odd, whose gains come near `ideal` (n, K // 2 + 1).

    ideal: gains at the frequencies k / K in cycles per sample, K even and larger than `taps`. Its steps become slopes
    of the width for which `num_taps` gave `taps`, with the step's frequency (-6 dB) in the middle.
    """
    impulse = torch.fft.irfft(ideal).roll(taps // 2, dims=1)[:, :taps]
    return impulse * torch.kaiser_window(taps, periodic=False, beta=_BETA, dtype=impulse.dtype, device=impulse.device)


def gains(taps: Tensor, size: int) -> Tensor:
    """(n, size // 2 + 1) real gains of the symmetric filters `taps` (n, odd number) that are centred on sample 0."""
    half = taps.shape[1] // 2
    return torch.fft.rfft(F.pad(taps, (0, size - taps.shape[1])).roll(-half, dims=1)).real


def filtered(waveform: Tensor, taps: Tensor) -> Tensor:
    """`waveform` (n, samples) through the symmetric filters `taps` (n or 1, odd number), not delayed.

    By overlap-save, in blocks that stay in a processor's cache: a fifth of the time of one FFT of whole rows.
    """
    samples, length = waveform.shape[1], taps.shape[1]
    size = min(1 << (_BLOCK_PER_TAP * length - 1).bit_length(), fast_size(samples + length - 1))
    step = size - length + 1  # samples of a block that its circular convolution gets right: all but the first
    blocks = math.ceil(samples / step)
    padded = F.pad(waveform, (length // 2, blocks * step - samples + length // 2))
    spectrum = torch.fft.rfft(padded.unfold(1, size, step))  # (n, blocks, size // 2 + 1)
    spectrum *= torch.fft.rfft(taps, n=size)[:, None]
    return torch.fft.irfft(spectrum, n=size)[..., length - 1 :].flatten(1)[:, :samples]
