"""The CAM++ encoder: densely connected time-delay layers whose outputs are masked by their context.

Wang, Zheng, Chen, Cheng, Chen: CAM++: A fast and efficient network for speaker verification using context-aware
masking, Interspeech 2023, figure 1. Sizes and details as in 3D-Speaker and WeSpeaker.

Shapes: B utterances, C channels, F frequencies, T frames; S segments of at most `segment_frames` frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import (
    Layer,
    as_image,
    check_layers,
    frame_mean,
    norm_frames,
    strided_lengths,
    zero_padding,
)
from spkexp.types import PositiveInt


class CAMPlusPlus(nn.Module):
    """Front of 2-D convolutions, D-TDNN backbone with context-aware masking: (B, in_channels, T) -> (B, C, ⌈T / 2⌉).

    Args:
        in_channels: features a frame, from the feature extractor.
        front_channels: channels of the 2-D convolutions, which divide the frequencies by 8.
        channels: into the first dense block.
        growth_rate: channels that each dense layer adds.
        bottleneck_channels: width inside a dense layer.
        context_channels: width inside the mask of a dense layer.
        num_layers: dense layers of each block; a transition after the block halves the channels.
        kernel_sizes: of the dense layers of each block, odd.
        dilations: likewise.
        segment_frames: frames of a segment, the local context of the mask.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        front_channels: PositiveInt,
        channels: PositiveInt,
        growth_rate: PositiveInt,
        bottleneck_channels: PositiveInt,
        context_channels: PositiveInt,
        num_layers: list[int],
        kernel_sizes: list[int],
        dilations: list[int],
        segment_frames: PositiveInt,
    ) -> None:
        super().__init__()
        check_layers("CAMPlusPlus", num_layers=num_layers, kernel_sizes=kernel_sizes, dilations=dilations)
        self.front = ConvolutionFront(in_channels, front_channels)
        # The only layer that reduces the frames, before the backbone, which thereby costs half.
        self.first = nn.Conv1d(self.front.out_channels, channels, 5, stride=2, padding=2, bias=False)
        self.first_norm = nn.BatchNorm1d(channels)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for depth, kernel_size, dilation in zip(num_layers, kernel_sizes, dilations, strict=True):
            layers = [
                DenseLayer(
                    channels + i * growth_rate,
                    growth_rate,
                    bottleneck_channels,
                    context_channels,
                    kernel_size,
                    dilation,
                    segment_frames,
                )
                for i in range(depth)
            ]
            self.blocks.append(DenseBlock(layers))
            channels += depth * growth_rate
            self.transitions.append(Transition(channels, channels // 2))
            channels //= 2
        self.norm = nn.BatchNorm1d(channels)
        self.out_channels = channels
        for module in self.modules():  # as 3D-Speaker and WeSpeaker
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def layers_from_input(self) -> list[Layer]:
        blocks = list(zip(self.blocks, self.transitions, strict=True))
        return [(self.first, self.first_norm), *blocks[:-1], (*blocks[-1], self.norm)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T).

        Returns:
            hidden (B, out_channels, ⌈T / 2⌉) and its lengths.
        """
        x = self.first(zero_padding(self.front(features, lengths), lengths))
        lengths = strided_lengths(lengths, kernel_size=5, stride=2, padding=2)
        x = F.relu_(norm_frames(self.first_norm, x, lengths))
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            x = transition(block(x, lengths), lengths)
        return F.relu_(norm_frames(self.norm, x, lengths)), lengths


class DenseBlock(nn.Module):
    """Each layer sees what entered the block and the outputs of all layers before it: (B, C, T) -> (B, C', T)."""

    def __init__(self, layers: list["DenseLayer"]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.out_channels = layers[-1].in_channels + layers[-1].out_channels

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        # Autograd keeps the input of every layer, so that each needs its own; an exported graph writes into none.
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            for layer in self.layers:
                x = torch.cat([x, layer(x, lengths)], dim=1)
            return x
        joined = x.new_empty(x.shape[0], self.out_channels, x.shape[2])
        joined[:, : x.shape[1]] = x
        end = x.shape[1]
        for layer in self.layers:
            y = layer(joined[:, :end], lengths)
            joined[:, end : end + y.shape[1]] = y
            end += y.shape[1]
        return joined


class DenseLayer(nn.Module):
    """Bottleneck, then a dilated convolution whose output is masked by its context: (B, C, T) -> (B, growth_rate, T).

    The mask is σ(W2 ReLU(W1 (g + s) + b1) + b2) with g, the mean over the utterance, and s, the mean over the segment
    that a frame lies in ("multi-granularity pooling"). It is the same for all frames of a segment.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        growth_rate: PositiveInt,
        bottleneck_channels: PositiveInt,
        context_channels: PositiveInt,
        kernel_size: PositiveInt,
        dilation: PositiveInt,
        segment_frames: PositiveInt,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"CAMPlusPlus: kernel_sizes has {kernel_size}; odd numbers keep the number of frames")
        self.in_channels = in_channels
        self.out_channels = growth_rate
        self.segment_frames = segment_frames
        self.norm = nn.BatchNorm1d(in_channels)
        self.bottleneck = nn.Conv1d(in_channels, bottleneck_channels, 1, bias=False)
        self.bottleneck_norm = nn.BatchNorm1d(bottleneck_channels)
        self.conv = nn.Conv1d(
            bottleneck_channels,
            growth_rate,
            kernel_size,
            dilation=dilation,
            padding=dilation * (kernel_size - 1) // 2,
            bias=False,
        )
        self.squeeze = nn.Conv1d(bottleneck_channels, context_channels, 1)
        self.excite = nn.Conv1d(context_channels, growth_rate, 1)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        x = self.bottleneck(F.relu_(norm_frames(self.norm, x, lengths)))
        x = zero_padding(F.relu_(norm_frames(self.bottleneck_norm, x, lengths)), lengths)
        return self.conv(x) * self.mask(x, lengths)

    def mask(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, C, T), zero behind each row's valid frames, -> (B, growth_rate, T), or 1 for T, in (0, 1)."""
        num_frames = x.shape[2]
        context = frame_mean(x, lengths).unsqueeze(2)
        one_segment = lengths is None and num_frames <= self.segment_frames  # the utterance is its own segment
        context = context + (context if one_segment else segment_mean(x, lengths, self.segment_frames))
        mask = torch.sigmoid(self.excite(F.relu_(self.squeeze(context))))
        return mask if one_segment else mask.repeat_interleave(self.segment_frames, dim=2)[..., :num_frames]


def segment_mean(x: Tensor, lengths: Tensor | None, size: int) -> Tensor:
    """Mean over the valid frames of each segment of `size` frames: (B, C, T) -> (B, C, S), S = ⌈T / size⌉.

    x is zero behind each row's valid frames; a segment without any has the mean zero. An exported graph has two such
    segments more: it would broadcast a single one, and then serve no longer utterances.
    """
    if lengths is None:
        return F.avg_pool1d(x, size, ceil_mode=True)  # divides the last segment by the frames it has
    num_segments = (x.shape[2] + size - 1) // size + (2 if torch.compiler.is_exporting() else 0)
    segments = F.pad(x, (0, num_segments * size - x.shape[2])).unflatten(2, (num_segments, size))
    start = size * torch.arange(num_segments, device=x.device)
    count = (lengths[:, None] - start).clamp(min=1, max=size)
    return segments.sum(dim=3, dtype=torch.promote_types(x.dtype, torch.float32)) / count.unsqueeze(1)


class Transition(nn.Module):
    """Batch normalisation, ReLU and a convolution of one frame between dense blocks: (B, C, T) -> (B, C', T)."""

    def __init__(self, in_channels: PositiveInt, out_channels: PositiveInt) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_channels)
        self.conv = nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return self.conv(F.relu_(norm_frames(self.norm, x, lengths)))


class ConvolutionFront(nn.Module):
    """Residual 2-D convolutions that divide the frequencies by 8 ("FCM"): (B, F, T) -> (B, C ⌈F / 8⌉, T)."""

    def __init__(self, num_frequencies: PositiveInt, channels: PositiveInt) -> None:
        super().__init__()
        self.first = Convolution2d(1, channels, 3, stride=1)
        self.blocks = nn.ModuleList(ResidualBlock(channels, stride) for stride in (2, 1, 2, 1))
        self.last = Convolution2d(channels, channels, 3, stride=2)
        self.out_channels = channels * -(-num_frequencies // 8)

    def forward(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        x = F.relu_(self.first(as_image(features, self.first.conv.out_channels), lengths))
        for block in self.blocks:
            x = block(x, lengths)
        return F.relu_(self.last(x, lengths)).flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip, which is a convolution too where the frequencies are fewer behind the block."""

    def __init__(self, channels: PositiveInt, stride: PositiveInt) -> None:
        super().__init__()
        self.first = Convolution2d(channels, channels, 3, stride)
        self.second = Convolution2d(channels, channels, 3, stride=1)
        self.skip = Convolution2d(channels, channels, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        y = self.second(F.relu_(self.first(x, lengths)), lengths)
        y += x if self.skip is None else self.skip(x, lengths)
        return F.relu_(y)


class Convolution2d(nn.Module):
    """Convolution over frequencies and frames, batch normalisation: (B, C, F, T) -> (B, C', ⌈F / stride⌉, T)."""

    def __init__(
        self, in_channels: PositiveInt, out_channels: PositiveInt, kernel_size: PositiveInt, stride: PositiveInt
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=(stride, 1), padding=kernel_size // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if self.conv.kernel_size[1] > 1:
            x = zero_padding(x, lengths)
        return norm_frames(self.norm, self.conv(x), lengths)
