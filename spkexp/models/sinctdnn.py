"""The SincTDNN encoder: an x-vector network over learned band-pass filters, pyannote.audio's XVectorSincNet.

Ravanelli, Bengio: Speaker recognition from raw waveform with SincNet, SLT 2018; Snyder et al.: X-vectors, ICASSP 2018;
Bredin et al.: pyannote.audio: neural building blocks for speaker diarization, ICASSP 2020.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import Layer, check_layers, max_pool, norm_frames, strided_lengths
from spkexp.models.sincnet import InstanceNorm, SincFilterbank, extend_to
from spkexp.types import Fraction, PositiveInt

_INSTANCE_NORM_EPS = 1e-5


class SincTDNN(nn.Module):
    """SincNet and time-delay layers: waveforms (B, 1, samples) -> (B, channels[-1], T).

    No layer pads, so T counts whole receptive fields: with the published sizes 4771 samples, one every 270 (a stride of
    the filters of 10) or 2511 and 135 (5). An utterance that is shorter than one is followed by silence.

    Args:
        in_channels: 1, from the feature extractor, which is `spkexp.features.Waveform`.
        sample_rate: of the waveform, Hz.
        sinc_filters: of the filterbank, two a band.
        sinc_kernel_size: samples of a filter, odd.
        sinc_stride: samples from one frame of the filterbank to the next.
        conv_channels: output channels of each convolution of SincNet after the filterbank.
        conv_kernel_size: frames seen by each of them.
        pool_size: frames of which each of these layers, the filterbank too, keeps the greatest.
        channels: output channels of each time-delay layer.
        kernel_sizes: frames seen by each.
        dilations: frames from one tap of the kernel to the next, for each.
        negative_slope: of the leaky ReLU everywhere; 0 is the ReLU.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        sample_rate: PositiveInt,
        sinc_filters: PositiveInt,
        sinc_kernel_size: PositiveInt,
        sinc_stride: PositiveInt,
        conv_channels: list[int],
        conv_kernel_size: PositiveInt,
        pool_size: PositiveInt,
        channels: list[int],
        kernel_sizes: list[int],
        dilations: list[int],
        negative_slope: Fraction,
    ) -> None:
        super().__init__()
        if in_channels != 1:
            raise ValueError(f"SincTDNN: in_channels={in_channels}; it hears one waveform, spkexp.features.Waveform")
        check_layers("SincTDNN", channels=channels, kernel_sizes=kernel_sizes, dilations=dilations)
        self.out_channels = channels[-1]
        self.pool_size = pool_size
        self.negative_slope = negative_slope
        self.waveform_norm = InstanceNorm(1, _INSTANCE_NORM_EPS)
        self.filterbank = SincFilterbank(sinc_filters, sinc_kernel_size, sinc_stride, sample_rate)
        widths = [sinc_filters, *conv_channels]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, conv_kernel_size) for before, after in zip(widths, conv_channels, strict=False)
        )
        self.instance_norms = nn.ModuleList(InstanceNorm(width, _INSTANCE_NORM_EPS) for width in widths)
        inputs = [widths[-1], *channels[:-1]]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size, dilation=dilation)
            for before, after, kernel_size, dilation in zip(inputs, channels, kernel_sizes, dilations, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in channels)
        self.conv_kernel_size = conv_kernel_size
        self.reaches = [1 + dilation * (size - 1) for size, dilation in zip(kernel_sizes, dilations, strict=True)]
        frames = 1 + sum(reach - 1 for reach in self.reaches)
        for _ in conv_channels:
            frames = frames * pool_size + conv_kernel_size - 1
        self.receptive_field = (frames * pool_size - 1) * sinc_stride + sinc_kernel_size

    @property
    def layers_from_input(self) -> list[Layer]:
        convolutions = zip(self.convolutions, self.instance_norms[1:], strict=True)
        return [*convolutions, *zip(self.layers, self.norms, strict=True)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, 1, samples), lengths (B,) in samples (None: all) -> (B, out_channels, T), lengths in frames."""
        x, lengths = self._sincnet(*extend_to(features, lengths, self.receptive_field))
        for layer, norm, reach in zip(self.layers, self.norms, self.reaches, strict=True):
            lengths = strided_lengths(lengths, reach, 1, 0)
            x = norm_frames(norm, F.leaky_relu_(layer(x), self.negative_slope), lengths)
        return x, lengths

    def _sincnet(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, 1, samples) -> (B, conv_channels[-1], frames): filter, pool, normalise, rectify, and again.

        Padding needs no mask between the layers: a frame within its row's length has heard nothing behind it.
        """
        x = self.filterbank(self.waveform_norm(x, lengths)).abs()
        lengths = strided_lengths(lengths, self.filterbank.kernel_size, self.filterbank.stride, 0)
        for index, norm in enumerate(self.instance_norms):
            if index:
                x = self.convolutions[index - 1](x)
                lengths = strided_lengths(lengths, self.conv_kernel_size, 1, 0)
            x = max_pool(x, self.pool_size)
            lengths = strided_lengths(lengths, self.pool_size, self.pool_size, 0)
            x = F.leaky_relu_(norm(x, lengths), self.negative_slope)
        return x, lengths
