"""ECAPA-TDNN with a bidirectional Mamba in each block where the dilated Res2 convolution was."""

from typing import Literal

from torch import Tensor, nn

from spkexp.models.ecapa import BlockAggregation, SEBlock
from spkexp.models.layers import TDNN
from spkexp.models.mamba import BiMamba
from spkexp.ops.backend import Backend
from spkexp.types import PositiveInt


class MambaECAPA(BlockAggregation):
    """SE blocks around a bidirectional Mamba: (B, in_channels, T) -> (B, aggregation_channels, T).

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: in every block.
        kernel_size: of the first layer, odd.
        num_blocks: how many.
        d_state: N of Mamba.
        d_conv: taps of its convolution.
        expand: its inner channels, in multiples of `channels`.
        se_channels: width of the bottleneck of squeeze and excitation.
        aggregation_channels: width after the blocks' outputs are joined.
        aggregation_norm: batch normalisation after the aggregation.
        padding: what the first layer sees beyond an utterance: "zeros" or "reflect".
        backend: "auto", "fused" or "torch": see `spkexp.ops`.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        kernel_size: PositiveInt,
        num_blocks: PositiveInt,
        d_state: PositiveInt,
        d_conv: PositiveInt,
        expand: PositiveInt,
        se_channels: PositiveInt,
        aggregation_channels: PositiveInt,
        aggregation_norm: bool,
        padding: Literal["reflect", "zeros"],
        backend: Backend,
    ) -> None:
        super().__init__(
            TDNN(in_channels, channels, kernel_size, 1, padding, 0.0, norm=True),
            [
                SEBlock(channels, _FramesLast(BiMamba(channels, d_state, d_conv, expand, backend)), se_channels)
                for _ in range(num_blocks)
            ],
            TDNN(channels * num_blocks, aggregation_channels, 1, 1, padding, 0.0, norm=aggregation_norm),
        )


class _FramesLast(nn.Module):
    """A layer for (B, T, C) where (B, C, T) comes and goes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self.layer(x.mT, lengths).mT.contiguous()
