"""The ECAPA-TDNN encoder, up to the pooling (which is `pooling.AttentiveStatisticsPooling`).

Desplanques, Thienpondt, Demuynck: ECAPA-TDNN: Emphasized channel attention, propagation and aggregation in TDNN
based speaker verification, Interspeech 2020, figures 1 and 2.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from spkexp.models.layers import TDNN, Layer, check_layers, frame_mean
from spkexp.types import PositiveInt


class BlockAggregation(nn.Module):
    """A first layer, blocks in sequence, and one more layer over the outputs of all blocks: figure 2 of the paper."""

    def __init__(self, first: nn.Module, blocks: list[nn.Module], aggregation: TDNN) -> None:
        super().__init__()
        self.out_channels = aggregation.conv.out_channels
        self.first = first
        self.blocks = nn.ModuleList(blocks)
        self.aggregation = aggregation

    @property
    def layers_from_input(self) -> list[Layer]:
        return [*((block,) for block in self.blocks), (self.aggregation,)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T), -> (B, out_channels, T), lengths."""
        hidden = self.first(features, lengths)
        outputs = []
        for block in self.blocks:
            hidden = block(hidden, lengths)
            outputs.append(hidden)
        return self.aggregation(torch.cat(outputs, dim=1), lengths), lengths


class ECAPA(BlockAggregation):
    """SE-Res2 blocks in sequence, their outputs aggregated: (B, in_channels, T) -> (B, aggregation_channels, T).

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: C of the paper, in every block (512 or 1024 there).
        kernel_sizes: of the first layer and of each SE-Res2 block, odd.
        dilations: likewise; their number sets the number of blocks.
        res2net_scale: groups of channels in a Res2 block; must divide `channels`.
        se_channels: width of the bottleneck of squeeze and excitation.
        aggregation_channels: width after the blocks' outputs are joined (paper and WeSpeaker 1536; SpeechBrain 3072).
        aggregation_norm: batch normalisation after the aggregation (SpeechBrain; neither paper nor WeSpeaker).
        padding: beyond an utterance: "zeros" (WeSpeaker) or "reflect" (SpeechBrain).

    Of the groups of a Res2 block the first passes unchanged, as in SpeechBrain (WeSpeaker: the last, which is the same
    network with its channels in another order).
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        kernel_sizes: list[int],
        dilations: list[int],
        res2net_scale: PositiveInt,
        se_channels: PositiveInt,
        aggregation_channels: PositiveInt,
        aggregation_norm: bool,
        padding: Literal["reflect", "zeros"],
    ) -> None:
        check_layers("ECAPA", kernel_sizes=kernel_sizes, dilations=dilations)
        if len(kernel_sizes) < 2:
            raise ValueError("ECAPA: kernel_sizes needs at least 2 entries: the first layer and one SE-Res2 block")
        super().__init__(
            TDNN(in_channels, channels, kernel_sizes[0], dilations[0], padding, 0.0, norm=True),
            [
                SEBlock(channels, Res2(channels, kernel_size, dilation, res2net_scale, padding), se_channels)
                for kernel_size, dilation in zip(kernel_sizes[1:], dilations[1:], strict=True)
            ],
            TDNN(channels * (len(dilations) - 1), aggregation_channels, 1, 1, padding, 0.0, norm=aggregation_norm),
        )


class SEBlock(nn.Module):
    """1x1 convolution, what mixes time, 1x1 convolution, squeeze and excitation, skip: figure 1."""

    def __init__(self, channels: PositiveInt, mixer: nn.Module, se_channels: PositiveInt) -> None:
        super().__init__()
        self.before = TDNN(channels, channels, 1, 1, "zeros", 0.0, norm=True)
        self.mixer = mixer
        self.after = TDNN(channels, channels, 1, 1, "zeros", 0.0, norm=True)
        self.excitation = SqueezeExcitation(channels, se_channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        y = self.after(self.mixer(self.before(x, lengths), lengths), lengths)
        return torch.addcmul(x, y, self.excitation(y, lengths))


class Res2(nn.Module):
    """Res2Net convolution (Gao et al., TPAMI 2021, eq. 1): y_1 = x_1, y_2 = K_2(x_2), y_i = K_i(x_i + y_{i-1})."""

    def __init__(
        self,
        channels: PositiveInt,
        kernel_size: PositiveInt,
        dilation: PositiveInt,
        scale: PositiveInt,
        padding: Literal["reflect", "zeros"],
    ) -> None:
        super().__init__()
        if scale < 2 or channels % scale:
            raise ValueError(f"ECAPA: res2net_scale={scale} must be at least 2 and divide channels={channels}")
        self.scale = scale
        width = channels // scale
        self.convolutions = nn.ModuleList(
            TDNN(width, width, kernel_size, dilation, padding, 0.0, norm=True) for _ in range(scale - 1)
        )

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        first, *groups = x.chunk(self.scale, dim=1)
        outputs = [first]
        for group, convolution in zip(groups, self.convolutions, strict=True):
            outputs.append(convolution(group if len(outputs) == 1 else group + outputs[-1], lengths))
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    """Channel gains from the mean over the valid frames: s = σ(W2 f(W1 z + b1) + b2), eq. 2 and 3 of the paper."""

    def __init__(self, channels: PositiveInt, bottleneck: PositiveInt) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, T) -> gains (B, C, 1) in (0, 1)."""
        gains = torch.sigmoid(self.excite(torch.relu(self.squeeze(frame_mean(x, lengths)))))
        return gains.unsqueeze(2)
