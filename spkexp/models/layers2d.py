"""What the residual networks over frequency and time share: ResNet, Res2Net and ERes2NetV2.

Shapes: B utterances, C channels, F frequencies (mel bins at first), T frames. Lengths as in `layers`, except that
a stride makes other ones: what may have a stride returns the lengths of its output along with it.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import Layer, as_image, norm_frames, strided_lengths, zero_padding
from spkexp.types import PositiveInt

# (in_channels, width, out_channels, stride) -> a block; its forward is (x, lengths) -> (x, lengths).
MakeBlock = Callable[[int, int, int, int], nn.Module]


class ConvNorm(nn.Module):
    """Convolution without bias, zeros beyond the utterance, batch normalisation: (B, C, F, T) -> (B, C', F', T').

    F' and T' are F and T divided by the stride, rounded up.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: of both axes, odd.
        stride: of both axes.
    """

    def __init__(
        self, in_channels: PositiveInt, out_channels: PositiveInt, kernel_size: PositiveInt, stride: PositiveInt
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, self.padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.padding:  # a kernel of one frame sees no neighbours
            x = zero_padding(x, lengths)
        if self.stride > 1:
            lengths = strided_lengths(lengths, self.kernel_size, self.stride, self.padding)
        return norm_frames(self.norm, self.conv(x), lengths), lengths


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> ConvNorm | None:
    """Around a block: a 1x1 convolution where the block changes the shape, else nothing (the identity)."""
    return ConvNorm(in_channels, out_channels, 1, stride) if stride > 1 or in_channels != out_channels else None


class Stage(nn.ModuleList):
    """Blocks of one resolution in sequence."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(blocks)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for block in self:
            x, lengths = block(x, lengths)
        return x, lengths


class ResidualEncoder(nn.Module):
    """A 3x3 convolution and stages of blocks: (B, in_channels, T) -> (B, out_channels, T').

    Every stage after the first halves frequencies and frames, in its first block, and doubles the channels. At the
    end channels and frequencies become one axis, channel-major, so that pooling gives each its own statistics.

    Args:
        in_channels: frequencies F of the features.
        channels: of the first convolution; the blocks of stage i (from 0) have the width `channels` · 2^i.
        expansion: output channels of a block over its width.
        num_blocks: of each stage.
        make_blocks: makes a block, for each stage.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        expansion: PositiveInt,
        num_blocks: list[int],
        make_blocks: Sequence[MakeBlock],
    ) -> None:
        super().__init__()
        if not num_blocks or min(num_blocks) < 1:
            raise ValueError(f"num_blocks={num_blocks}: give the number of blocks, at least 1, of every stage")
        self.first = ConvNorm(1, channels, 3, 1)
        self.stages = nn.ModuleList()
        before, frequencies = channels, in_channels
        for index, (number, make) in enumerate(zip(num_blocks, make_blocks, strict=True)):
            width, stride = channels * 2**index, 2 if index else 1
            after = width * expansion
            rest = [make(after, width, after, 1) for _ in range(number - 1)]
            self.stages.append(Stage([make(before, width, after, stride), *rest]))
            before, frequencies = after, (frequencies + stride - 1) // stride
        self.out_channels = before * frequencies
        self.narrowest = math.gcd(*(conv.out_channels for conv in self.modules() if isinstance(conv, nn.Conv2d)))

    @property
    def layers_from_input(self) -> list[Layer]:
        return [(stage,) for stage in self.stages]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T), -> (B, out_channels, T'), lengths."""
        x, lengths = self.first(as_image(features, self.narrowest), lengths)
        x = F.relu_(x)  # in place, here and in the blocks: batch normalisation does not need its output
        for stage in self.stages:
            x, lengths = stage(x, lengths)
        return x.flatten(1, 2), lengths
