"""The ResNet encoders.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016, figure 5 and table 1, as speaker
recognition has it since Zeinali et al. 2019 (BUT system description to VoxCeleb speaker recognition challenge 2019):
half the channels, a first convolution of 3x3 without stride, and no pooling behind it.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers2d import ConvNorm, ResidualEncoder, make_shortcut
from spkexp.types import PositiveInt


class ResNet(ResidualEncoder):
    """Residual network over frequency and time: (B, in_channels, T) -> (B, out_channels, T / 2^(stages - 1)).

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: of the first convolution and the first stage; every stage doubles them.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1 with four times the channels).
        num_blocks: of each stage.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        block: Literal["basic", "bottleneck"],
        num_blocks: list[int],
    ) -> None:
        make, expansion = (BasicBlock, 1) if block == "basic" else (Bottleneck, 4)
        super().__init__(in_channels, channels, expansion, num_blocks, [make] * len(num_blocks))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the skip: figure 5, left."""

    def __init__(
        self, in_channels: PositiveInt, width: PositiveInt, out_channels: PositiveInt, stride: PositiveInt
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 3, stride)
        self.conv2 = ConvNorm(width, out_channels, 3, 1)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, in_channels, F, T) -> (B, out_channels, F', T')."""
        y, strided = self.conv1(x, lengths)
        y, _ = self.conv2(F.relu_(y), strided)
        skip = x if self.shortcut is None else self.shortcut(x, lengths)[0]
        return F.relu_(y.add_(skip)), strided


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and the skip: figure 5, right. The 3x3 has the stride, as in torchvision."""

    def __init__(
        self, in_channels: PositiveInt, width: PositiveInt, out_channels: PositiveInt, stride: PositiveInt
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 1, 1)
        self.conv2 = ConvNorm(width, width, 3, stride)
        self.conv3 = ConvNorm(width, out_channels, 1, 1)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, in_channels, F, T) -> (B, out_channels, F', T')."""
        y, _ = self.conv1(x, lengths)
        y, strided = self.conv2(F.relu_(y), lengths)
        y, _ = self.conv3(F.relu_(y), strided)
        skip = x if self.shortcut is None else self.shortcut(x, lengths)[0]
        return F.relu_(y.add_(skip)), strided
