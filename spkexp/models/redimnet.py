"""The ReDimNet encoder: 2-D and 1-D blocks in turn on one representation that is reshaped between them.

Yakovlev, Makarov, Balykin, Malov, Okhotnikov, Torgashov: Reshape dimensions network for speaker recognition,
Interspeech 2024, figure 1; sizes and details as in the authors' code (IDRnD/ReDimNet) and released checkpoints.

The idea: a 2-D block that divides the frequencies by s multiplies the channels by s. Channels times frequencies thus
stay the same everywhere, every stage's output is a (B, C F, T) signal of the same size, and each stage starts from a
weighted sum of all outputs before it.

Shapes: B utterances, C channels, F frequencies, T frames. C F is that of the stem, in every stage.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from spkexp.models.layers import Layer, as_image, check_layers, innermost_channels, zero_padding
from spkexp.models.redimnet_blocks import ChannelNorm, ConvNeXtBlock, FrequencyGate, ResidualBlock, Squeeze, TimeBlock
from spkexp.types import PositiveInt

Block2d = Literal["convnext", "resnet", "resnet_gate"]


def to_1d(x: Tensor) -> Tensor:
    """(B, C, F, T) -> (B, F C, T): the channels of a frequency side by side.

    So a frequency that a stage pools from s neighbours, with s times the channels, has the place that they had.
    """
    return x.transpose(1, 2).flatten(1, 2)


def to_2d(x: Tensor, num_frequencies: int) -> Tensor:
    """(B, F C, T) -> (B, C, F, T), the inverse of `to_1d`."""
    return x.unflatten(1, (num_frequencies, -1)).transpose(1, 2)


class WeightedSum(nn.Module):
    """Sum of N signals (B, C F, T), weighted for each channel and frequency by a softmax over the signals."""

    def __init__(self, num_signals: PositiveInt, channels: PositiveInt) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_signals, channels, 1))

    def forward(self, signals: list[Tensor]) -> Tensor:
        return _WeightedSum.apply(torch.softmax(self.weight, dim=0), *signals)


class _WeightedSum(torch.autograd.Function):
    """Σ_i weight_i signal_i, whose backward makes no other tensors of a signal's size than the gradients themselves.

    A network sums some 20 signals of its full width; autograd would make three temporaries for each.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *signals: Tensor) -> Tensor:
        """weight (N, C, 1), N signals (B, C, T) -> (B, C, T)."""
        total = signals[0] * weight[0]
        for signal, factor in zip(signals[1:], weight[1:], strict=True):
            total.addcmul_(signal, factor)
        ctx.save_for_backward(weight, *signals)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        weight, *signals = ctx.saved_tensors
        # On a CPU an utterance at a time, which stays in a cache.
        rows = grad.split(1 if grad.device.type == "cpu" else len(grad))
        grad_weight = torch.zeros_like(weight)
        for total, signal in zip(grad_weight, signals, strict=True):
            for grad_row, row in zip(rows, signal.split(len(rows[0])), strict=True):
                total += (grad_row * row).sum(dim=(0, 2)).unsqueeze(1)
        return grad_weight, *((grad * factor).to(s.dtype) for factor, s in zip(weight, signals, strict=True))


class ReDimNet(nn.Module):
    """Stem, stages of 2-D and 1-D blocks, weighted sum of their outputs: (B, in_channels, T) -> (B, C F, T).

    Args:
        in_channels: F of the stem, features a frame, from the feature extractor; the strides must divide it.
        channels: C of the stem.
        block_2d: "convnext", "resnet" or "resnet_gate" (with a gate for each frequency).
        group_channels: channels that a 3x3 convolution mixes; 1 is a depthwise convolution.
        strides: what each stage divides the frequencies and multiplies the channels by.
        num_blocks: 2-D blocks of each stage.
        expansions: factor of the channels inside the 2-D blocks of each stage.
        time_reductions: C F by the width of the 1-D block of each stage; 0: the stage has none.
        time_kernel_sizes: of the convolutions in a 1-D block, odd.
        num_heads: of the attention in a 1-D block.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        block_2d: Block2d,
        group_channels: PositiveInt,
        strides: list[int],
        num_blocks: list[int],
        expansions: list[int],
        time_reductions: list[int],
        time_kernel_sizes: list[int],
        num_heads: PositiveInt,
    ) -> None:
        super().__init__()
        check_layers(
            "ReDimNet", strides=strides, num_blocks=num_blocks, expansions=expansions, time_reductions=time_reductions
        )
        self.out_channels = channels * in_channels
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.stem_norm = ChannelNorm(channels)
        self.stages = nn.ModuleList()
        frequencies = in_channels
        for i, (stride, depth, expansion, reduction) in enumerate(
            zip(strides, num_blocks, expansions, time_reductions, strict=True)
        ):
            if stride < 1 or frequencies % stride:
                raise ValueError(f"ReDimNet: the product of strides={strides} must divide in_channels={in_channels}")
            width = channels * stride * expansion
            blocks: list[nn.Module] = [
                ConvNeXtBlock(nn.Conv2d, width, 3, group_channels)
                if block_2d == "convnext"
                else ResidualBlock(width, group_channels, gate(block_2d, width, frequencies // stride))
                for _ in range(depth)
            ]
            if expansion > 1:
                blocks.append(Squeeze(width, channels * stride, group_channels))
            time = TimeBlock(self.out_channels, reduction, time_kernel_sizes, num_heads) if reduction else None
            # The first stage has one signal to start from.
            inputs = WeightedSum(i + 1, self.out_channels) if i else None
            self.stages.append(Stage(inputs, frequencies, channels, stride, width, blocks, time))
            channels, frequencies = channels * stride, frequencies // stride
        self.outputs = WeightedSum(len(strides) + 1, self.out_channels)

    @property
    def layers_from_input(self) -> list[Layer]:
        *stages, last = self.stages
        return [*((stage,) for stage in stages), (last, self.outputs)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T), -> (B, out_channels, T), lengths."""
        signals = [to_1d(self.stem_norm(self.stem(as_image(zero_padding(features, lengths), self.stem.out_channels))))]
        for stage in self.stages:
            signals.append(stage(signals, lengths))
        return self.outputs(signals), lengths


class Stage(nn.Module):
    """From the signals so far to the next: N times (B, C F, T) -> (B, C F, T).

    Args:
        inputs: their weighted sum.
        num_frequencies: F of the sum as an image (B, C, F, T).
        channels: its C.
        stride: what the strided convolution divides F by.
        width: channels behind it.
        blocks: 2-D blocks, the last with `stride` times C channels.
        time: the 1-D block.
    """

    def __init__(
        self,
        inputs: WeightedSum | None,
        num_frequencies: PositiveInt,
        channels: PositiveInt,
        stride: PositiveInt,
        width: PositiveInt,
        blocks: list[nn.Module],
        time: TimeBlock | None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.num_frequencies = num_frequencies
        self.pool = nn.Conv2d(channels, width, (stride, 1), stride=(stride, 1))
        self.blocks = nn.ModuleList(blocks)
        self.time = time

    def forward(self, signals: list[Tensor], lengths: Tensor | None) -> Tensor:
        x = signals[0] if self.inputs is None else self.inputs(signals)
        x = to_2d(x, self.num_frequencies)
        if innermost_channels(self.pool.in_channels):
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.pool(x)
        for block in self.blocks:
            x = block(x, lengths)
        x = to_1d(x)
        return x if self.time is None else self.time(x, lengths)


def gate(block_2d: Block2d, width: int, num_frequencies: int) -> FrequencyGate | None:
    """The gate at the end of a residual block, of the authors' width."""
    return FrequencyGate(num_frequencies, min(64, max(width, 32))) if block_2d == "resnet_gate" else None
