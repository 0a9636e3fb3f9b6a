"""The RawNet3 encoder, up to the pooling (which is `pooling.RectifiedAttentiveStatisticsPooling`).

Jung, Kim, Heo, Lee, Chung: Pushing the limits of raw waveform speaker recognition, Interspeech 2022, section 3:
learned band-pass filters, then the Res2 blocks of ECAPA-TDNN with max pooling and feature map scaling.
"""

import torch
from torch import Tensor, nn

from spkexp.models.ecapa import Res2
from spkexp.models.layers import TDNN, Layer, frame_mean, max_pool, strided_lengths
from spkexp.models.sincnet import InstanceNorm, SincFilterbank, extend_to
from spkexp.ops.precision import without_autocast
from spkexp.types import Fraction, PositiveInt

# Both of the authors' code: of the variance of a waveform in [-1, 1], and added to a magnitude before its logarithm.
_INSTANCE_NORM_EPS = 1e-4
_MAGNITUDE_FLOOR = 1e-6


class RawNet3(nn.Module):
    """Three Res2 blocks over a learned filterbank: waveforms (B, 1, samples) -> (B, aggregation_channels, T).

    With the published sizes a frame hears 391 samples, and there is one every 150. An utterance that is shorter than
    one is followed by silence. The blocks' outputs, of which the first is pooled to the frames of the others, are
    joined as in ECAPA-TDNN; the third block hears the sum of the first two.

    Args:
        in_channels: 1, from the feature extractor, which is `spkexp.features.Waveform`.
        sample_rate: of the waveform, Hz.
        preemphasis: a in y[n] = x[n] - a x[n-1].
        sinc_filters: of the filterbank, two a band.
        sinc_kernel_size: samples of a filter, odd.
        sinc_stride: samples from one frame of the filterbank to the next.
        channels: of every block.
        kernel_size: of the Res2 convolutions, odd.
        dilations: of those of each of the three blocks.
        pool_sizes: frames of which the first and the second block keep the greatest.
        res2net_scale: groups of channels in a Res2 convolution; must divide `channels`.
        aggregation_channels: width after the blocks' outputs are joined.

    Of the groups of a Res2 convolution the first passes unchanged (the authors' code: the last, which is the same
    network with its channels in another order).
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        sample_rate: PositiveInt,
        preemphasis: Fraction,
        sinc_filters: PositiveInt,
        sinc_kernel_size: PositiveInt,
        sinc_stride: PositiveInt,
        channels: PositiveInt,
        kernel_size: PositiveInt,
        dilations: list[int],
        pool_sizes: list[int],
        res2net_scale: PositiveInt,
        aggregation_channels: PositiveInt,
    ) -> None:
        super().__init__()
        if in_channels != 1:
            raise ValueError(f"RawNet3: in_channels={in_channels}; it hears one waveform, spkexp.features.Waveform")
        if len(dilations) != 3 or len(pool_sizes) != 2:
            raise ValueError(
                f"RawNet3: dilations has {len(dilations)} entries and pool_sizes {len(pool_sizes)}; its three blocks "
                "need 3 and, as the third does not pool, 2"
            )
        if res2net_scale < 2 or channels % res2net_scale:
            raise ValueError(f"RawNet3: res2net_scale={res2net_scale} must be at least 2 and divide {channels=}")
        self.out_channels = aggregation_channels
        self.preemphasis = preemphasis
        self.pool_size = pool_sizes[1]
        self.receptive_field = (pool_sizes[0] * pool_sizes[1] - 1) * sinc_stride + sinc_kernel_size
        self.waveform_norm = InstanceNorm(1, _INSTANCE_NORM_EPS)
        self.filterbank = SincFilterbank(sinc_filters, sinc_kernel_size, sinc_stride, sample_rate)
        self.blocks = nn.ModuleList(
            RawNetBlock(before, channels, kernel_size, dilation, res2net_scale, pool_size)
            for before, dilation, pool_size in zip(
                [sinc_filters, channels, channels], dilations, [*pool_sizes, 1], strict=True
            )
        )
        self.aggregation = TDNN(3 * channels, aggregation_channels, 1, 1, "zeros", 0.0, norm=False)

    @property
    def layers_from_input(self) -> list[Layer]:
        return [*((block,) for block in self.blocks), (self.aggregation,)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, 1, samples), lengths (B,) in samples (None: all) -> (B, out_channels, T), lengths in frames."""
        with without_autocast(features.device):
            x, lengths = self._log_magnitudes(*extend_to(features, lengths, self.receptive_field))
        first, lengths = self.blocks[0](x, lengths)
        second, shorter = self.blocks[1](first, lengths)
        first = max_pool(first, self.pool_size)
        third, _ = self.blocks[2](first + second, shorter)
        return self.aggregation(torch.cat([first, second, third], dim=1), shorter), shorter

    def _log_magnitudes(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, 1, samples) -> log magnitudes (B, sinc_filters, frames), each filter's mean removed.

        Padding needs no mask up to the filters: a frame within its row's length has heard nothing behind it.
        """
        # The first sample's predecessor is its successor: the edge is mirrored, as in the authors' code.
        x = x - self.preemphasis * torch.cat([x[..., 1:2], x[..., :-1]], dim=2)
        # The norm of padded rows for full ones too, for it rounds alike: of a magnitude near zero the logarithm that
        # follows would make a difference between an utterance alone and in a batch.
        samples = torch.full((len(x),), x.shape[2], device=x.device) if lengths is None else lengths
        x = self.filterbank(self.waveform_norm(x, samples))
        lengths = strided_lengths(lengths, self.filterbank.kernel_size, self.filterbank.stride, 0)
        x = x.abs().add_(_MAGNITUDE_FLOOR).log()
        return x.sub_(frame_mean(x, lengths).unsqueeze(2)), lengths


class RawNetBlock(nn.Module):
    """1x1 convolution, dilated Res2 convolution, 1x1 convolution, skip, max pooling, feature map scaling: figure 1.

    (B, in_channels, T) -> (B, channels, T // pool_size).
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        kernel_size: PositiveInt,
        dilation: PositiveInt,
        res2net_scale: PositiveInt,
        pool_size: PositiveInt,
    ) -> None:
        super().__init__()
        self.before = TDNN(in_channels, channels, 1, 1, "zeros", 0.0, norm=True)
        self.res2 = Res2(channels, kernel_size, dilation, res2net_scale, "zeros")
        self.after = TDNN(channels, channels, 1, 1, "zeros", 0.0, norm=True)
        self.skip = nn.Identity() if in_channels == channels else nn.Conv1d(in_channels, channels, 1, bias=False)
        self.pool_size = pool_size
        self.scaling = FeatureMapScaling(channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, in_channels, T), lengths (B,) or None (all T) -> (B, channels, T // pool_size) and its lengths."""
        y = self.after(self.res2(self.before(x, lengths), lengths), lengths) + self.skip(x)
        if self.pool_size > 1:
            y = max_pool(y, self.pool_size)
            lengths = strided_lengths(lengths, self.pool_size, self.pool_size, 0)
        return self.scaling(y, lengths), lengths


class FeatureMapScaling(nn.Module):
    """α-feature map scaling: (x + α) σ(W z + b), where z is the mean of x over the valid frames.

    Jung, Kim, Shim, Kim, Yu: Improved RawNet with feature map scaling, Interspeech 2020, and its α for each channel.
    """

    def __init__(self, channels: PositiveInt) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels, 1))
        self.gain = nn.Linear(channels, channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        gain = torch.sigmoid(self.gain(frame_mean(x, lengths))).unsqueeze(2)
        return torch.addcmul((self.alpha * gain).to(x.dtype), x, gain.to(x.dtype))
