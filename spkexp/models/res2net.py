"""The Res2Net encoder, as 3D-Speaker and WeSpeaker have it.

Gao, Cheng, Zhao, Zhang, Yang, Torr: Res2Net: A new multi-scale backbone architecture, TPAMI 2021; for speakers Zhou,
Zhao, Wu: ResNeXt and Res2Net structures for speaker verification, SLT 2021.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers2d import ConvNorm, ResidualEncoder, make_shortcut
from spkexp.types import PositiveInt

# The ReLU of the blocks is cut off here, in 3D-Speaker and WeSpeaker.
CEILING = 20.0


class Res2Net(ResidualEncoder):
    """Residual network whose blocks see several scales: (B, in_channels, T) -> (B, out_channels, T / 2^(stages - 1)).

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: of the first convolution; the width of the blocks of the first stage, doubled by every stage.
        base_width: channels in a group of channels where the blocks are 64 wide (w of the paper, figure 2).
        scale: groups of channels in a block (s of the paper), at least 2.
        expansion: output channels of a block over its width.
        num_blocks: of each stage.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        base_width: PositiveInt,
        scale: PositiveInt,
        expansion: PositiveInt,
        num_blocks: list[int],
    ) -> None:
        if scale < 2:
            raise ValueError(f"Res2Net: scale={scale}: at least 2 groups are needed; a ResNet has one")
        make = partial(Res2Block, base_width, scale)
        super().__init__(in_channels, channels, expansion, num_blocks, [make] * len(num_blocks))


class Res2Block(nn.Module):
    """1x1 convolution, 3x3 convolutions of groups, 1x1 convolution and the skip: figure 2b.

    y_1 = K_1(x_1), y_i = K_i(x_i + y_{i-1}), y_s = x_s: the last group passes unchanged, as in the authors' code (the
    paper's equation 1 passes the first, which is the same network with its channels in another order).
    """

    def __init__(
        self,
        base_width: PositiveInt,
        scale: PositiveInt,
        in_channels: PositiveInt,
        width: PositiveInt,
        out_channels: PositiveInt,
        stride: PositiveInt,
    ) -> None:
        super().__init__()
        self.scale = scale
        group = group_width(width, base_width)
        self.before = ConvNorm(in_channels, group * scale, 1, stride)
        self.convs = nn.ModuleList(ConvNorm(group, group, 3, 1) for _ in range(scale - 1))
        self.after = ConvNorm(group * scale, out_channels, 1, 1)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, in_channels, F, T) -> (B, out_channels, F', T')."""
        y, strided = self.before(x, lengths)
        *groups, last = clipped_relu_(y).chunk(self.scale, dim=1)
        outputs: list[Tensor] = []
        for group, conv in zip(groups, self.convs, strict=True):
            z, _ = conv(group + outputs[-1] if outputs else group, strided)
            outputs.append(clipped_relu_(z))
        y, _ = self.after(torch.cat([*outputs, last], dim=1), strided)
        skip = x if self.shortcut is None else self.shortcut(x, lengths)[0]
        return clipped_relu_(y.add_(skip)), strided


def group_width(width: int, base_width: int) -> int:
    """Channels in a group of a block of this width."""
    if width * base_width < 64:
        raise ValueError(f"base_width={base_width} leaves no channels in a group of a block {width} wide; raise either")
    return width * base_width // 64


def clipped_relu_(x: Tensor) -> Tensor:
    """min(max(x, 0), CEILING) in place, as `F.relu_`."""
    return F.hardtanh_(x, 0.0, CEILING)
