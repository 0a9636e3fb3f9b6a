"""What encoders of raw waveforms begin with: a learned filterbank and instance normalisation.

Ravanelli, Bengio: Speaker recognition from raw waveform with SincNet, SLT 2018, with the odd filters of Pariente,
Cornell, Deleforge, Vincent: Filterbank design for end-to-end speech separation, ICASSP 2020 (asteroid's ParamSincFB).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import frame_mask, zero_padding
from spkexp.ops.precision import without_autocast
from spkexp.types import Positive, PositiveInt

# Hz, as in the authors' code of both papers: the lowest edge and the narrowest band that can be learned, and the lowest
# edge before these are added, at the start.
_MIN_LOW_HZ = 50.0
_MIN_BAND_HZ = 50.0
_FIRST_LOW_HZ = 30.0


class SincFilterbank(nn.Module):
    """Band-pass filters whose edges are learned: (B, 1, samples) -> (B, num_filters, T), in float32 or float64.

    Each band has an even filter (Ravanelli and Bengio, eq. 4), the difference of two low-pass filters under a
    Hamming window, g[n] = 2 f2 sinc(2π f2 n) - 2 f1 sinc(2π f1 n), and an odd one, with cosines for the sines: its
    Hilbert transform. Both are divided by 2 (f2 - f1). The even filters come first. No padding.

    Args:
        num_filters: even; half of them are even filters, half odd.
        kernel_size: samples of a filter, odd.
        stride: samples from one frame to the next.
        sample_rate: of the waveform, Hz; bands end at half of it.

    The filters begin as bands of equal width on the mel scale, as a log-mel filterbank has them.
    """

    window: Tensor
    time: Tensor

    def __init__(
        self,
        num_filters: PositiveInt,
        kernel_size: PositiveInt,
        stride: PositiveInt,
        sample_rate: PositiveInt,
    ) -> None:
        super().__init__()
        if num_filters % 2:
            raise ValueError(f"num_filters={num_filters}: an even number gives each band an even and an odd filter")
        if kernel_size % 2 == 0 or kernel_size < 3:
            raise ValueError(f"kernel_size={kernel_size}: an odd number of 3 or more gives a filter its centre")
        self.kernel_size = kernel_size
        self.stride = stride
        self.nyquist = sample_rate / 2
        edges = mel_edges(num_filters // 2, _FIRST_LOW_HZ, self.nyquist - (_MIN_LOW_HZ + _MIN_BAND_HZ))
        self.low_hz = nn.Parameter(edges[:-1, None])
        self.band_hz = nn.Parameter(edges.diff()[:, None])
        # The half of a filter before its centre; the other half mirrors it. Time as an angle: radian a Hz.
        half = kernel_size // 2
        window = torch.hamming_window(kernel_size, periodic=False, dtype=torch.float64)[:half]
        self.register_buffer("window", window.float(), persistent=False)
        time = 2 * math.pi / sample_rate * torch.arange(-half, 0, dtype=torch.float64)
        self.register_buffer("time", time.float(), persistent=False)

    def bands(self) -> tuple[Tensor, Tensor]:
        """Lower and upper edges, (num_filters / 2, 1) each, Hz."""
        # Were the lower edge let past the Nyquist frequency, a band would have no width to divide by.
        low = (_MIN_LOW_HZ + self.low_hz.abs()).clamp(max=self.nyquist - _MIN_BAND_HZ)
        return low, (low + _MIN_BAND_HZ + self.band_hz.abs()).clamp(max=self.nyquist)

    def filters(self) -> Tensor:
        """Impulse responses (num_filters, 1, kernel_size), the even ones first."""
        low, high = self.bands()
        scale = self.window / (self.time * (high - low))
        even = (torch.sin(high * self.time) - torch.sin(low * self.time)) * scale
        odd = (torch.cos(low * self.time) - torch.cos(high * self.time)) * scale
        centre = torch.ones_like(low)
        even = torch.cat([even, centre, even.flip(1)], dim=1)
        odd = torch.cat([odd, torch.zeros_like(low), -odd.flip(1)], dim=1)
        return torch.cat([even, odd]).unsqueeze(1)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform (B, 1, samples) -> (B, num_filters, 1 + (samples - kernel_size) // stride)."""
        # As a product of matrices, not F.conv1d, it takes the same time and its sums do not depend on the rest of the
        # batch, nor are they rounded to TF32: a logarithm that follows makes much of a magnitude near zero.
        with without_autocast(waveform.device):
            if torch.compiler.is_exporting():  # a product with a view would tie the graph to certain lengths
                return F.conv1d(waveform, self.filters(), stride=self.stride)
            frames = waveform.squeeze(1).unfold(1, self.kernel_size, self.stride)  # (B, T, kernel_size)
            return (frames @ self.filters().squeeze(1).T).transpose(1, 2)


class InstanceNorm(nn.InstanceNorm1d):
    """Each channel of each utterance to mean 0 and variance 1 over its valid frames, then a learned scale and shift.

    The variance is biased; `eps` is added to it. Statistics are at least float32; those of padded rows are summed in
    float64, so that they round alike whatever the amount of padding.
    """

    def __init__(self, channels: PositiveInt, eps: Positive) -> None:
        super().__init__(channels, eps, affine=True)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, C, T) and lengths (B,) or None (all T) -> (B, C, T)."""
        if lengths is None:
            return super().forward(x)
        mask = frame_mask(lengths, x.shape[2])
        count = lengths[:, None, None]
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean = x.masked_fill(~mask, 0.0).sum(dim=2, keepdim=True, dtype=torch.float64) / count
        centred = (x - mean.to(dtype)).masked_fill(~mask, 0.0)
        variance = centred.square().sum(dim=2, keepdim=True, dtype=torch.float64) / count
        scale = self.weight[:, None] * (variance + self.eps).rsqrt().to(dtype)
        return torch.addcmul(self.bias[:, None], centred, scale).to(x.dtype)


def extend_to(x: Tensor, lengths: Tensor | None, least: int) -> tuple[Tensor, Tensor | None]:
    """Waveforms (B, C, samples) and lengths of which none is below `least`: silence follows what is shorter."""
    x = zero_padding(x, lengths)
    if x.shape[2] < least:
        x = F.pad(x, (0, least - x.shape[2]))
    return x, None if lengths is None else lengths.clamp(min=least)


def mel_edges(bands: int, low_hz: float, high_hz: float) -> Tensor:
    """Edges (bands + 1,) float32, Hz, of bands of equal width in mel = 2595 log10(1 + hz / 700)."""
    low, high = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (low_hz, high_hz))
    mel = torch.linspace(low, high, bands + 1, dtype=torch.float64)
    return (700.0 * (10.0 ** (mel / 2595.0) - 1.0)).float()
