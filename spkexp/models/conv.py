"""Plain convolutional encoders, the baselines of the LibriSpeech classification study."""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import Layer, as_image, check_layers, norm_frames, strided_lengths, zero_padding
from spkexp.types import PositiveInt


class Conv1d(nn.Module):
    """Convolutions over time that see all features of a frame: (B, in_channels, T) -> (B, channels[-1], T').

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: output channels of each layer.
        kernel_sizes: frames seen by each layer, odd.
        strides: input frames for each output frame of a layer.
    """

    def __init__(
        self, in_channels: PositiveInt, channels: list[int], kernel_sizes: list[int], strides: list[int]
    ) -> None:
        super().__init__()
        check_layers("Conv1d", channels=channels, kernel_sizes=kernel_sizes, strides=strides)
        self.out_channels = channels[-1]
        inputs = [in_channels, *channels[:-1]]
        self.layers = nn.ModuleList(
            ConvolutionLayer(1, *sizes) for sizes in zip(inputs, channels, kernel_sizes, strides, strict=True)
        )

    @property
    def layers_from_input(self) -> list[Layer]:
        return [(layer,) for layer in self.layers]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,) or None (all T) -> (B, out_channels, T'), lengths'."""
        for layer in self.layers:
            features, lengths = layer(features, lengths)
        return features, lengths


class Conv2d(nn.Module):
    """Convolutions over mel bins and time: (B, in_channels, T) -> (B, channels[-1] F', T').

    Args:
        in_channels: mel bins F, from the feature extractor.
        channels: output channels of each layer.
        kernel_sizes: bins and frames seen by each layer, odd.
        strides: input bins, and input frames, for each output of a layer: F' = ⌈F / stride⌉ for each.
    """

    def __init__(
        self, in_channels: PositiveInt, channels: list[int], kernel_sizes: list[int], strides: list[int]
    ) -> None:
        super().__init__()
        check_layers("Conv2d", channels=channels, kernel_sizes=kernel_sizes, strides=strides)
        bins = in_channels
        for stride in strides:
            bins = -(-bins // stride)
        self.out_channels = channels[-1] * bins
        self.narrowest = math.gcd(*channels)
        inputs = [1, *channels[:-1]]
        self.layers = nn.ModuleList(
            ConvolutionLayer(2, *sizes) for sizes in zip(inputs, channels, kernel_sizes, strides, strict=True)
        )

    @property
    def layers_from_input(self) -> list[Layer]:
        return [(layer,) for layer in self.layers]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,) or None (all T) -> (B, out_channels, T'), lengths'."""
        x = as_image(features, self.narrowest)
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        return x.flatten(1, 2), lengths


class ConvolutionLayer(nn.Module):
    """Convolution, batch normalisation, ReLU over zero-padded frames: (B, C, T) or (B, C, F, T), with lengths."""

    def __init__(
        self,
        dimensions: Literal[1, 2],
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        kernel_size: PositiveInt,
        stride: PositiveInt,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: must be odd, so that T' = ⌈T / stride⌉")
        self.shape = (kernel_size, stride, kernel_size // 2)
        convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.conv = convolution(in_channels, out_channels, *self.shape, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.conv(zero_padding(x, lengths))
        lengths = strided_lengths(lengths, *self.shape)
        return F.relu(norm_frames(self.norm, x, lengths), inplace=True), lengths
