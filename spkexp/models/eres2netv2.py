"""The ERes2NetV2 encoder.

Chen, Zheng, Wang, Cheng, Chen, Zhang, Li: ERes2NetV2: Boosting short-duration speaker verification performance with
computational efficiency, Interspeech 2024. Its fusions are those of ERes2Net, of which it keeps the deepest: Chen,
Zheng, Wang, Cheng, Chen, Qi: An enhanced Res2Net with local and global feature fusion for speaker verification,
Interspeech 2023.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import Layer, norm_frames, zero_padding
from spkexp.models.layers2d import ConvNorm, ResidualEncoder, make_shortcut
from spkexp.models.res2net import clipped_relu_, group_width
from spkexp.types import PositiveInt

# Channels that a fusion's attention works on over those inside it (r of ERes2Net).
REDUCTION = 4


class ERes2NetV2(ResidualEncoder):
    """Res2Net with fusion by attention in the last two stages, whose outputs are fused at the end.

    (B, in_channels, T) -> (B, out_channels, T / 2^(stages - 1)).

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: of the first convolution; the width of the blocks of the first stage, doubled by every stage.
        base_width: channels in a group of channels where the blocks are 64 wide.
        scale: groups of channels in a block, at least 2.
        expansion: output channels of a block over its width.
        num_blocks: of each stage; at least two stages.
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
        if len(num_blocks) < 2:
            raise ValueError(f"ERes2NetV2: num_blocks={num_blocks}: two stages are fused; give it two entries or more")
        if scale < 2:
            raise ValueError(f"ERes2NetV2: scale={scale}: at least 2 groups are needed")
        plain, fused = (partial(ERes2Block, base_width, scale, fusion) for fusion in (False, True))
        make_blocks = [plain] * (len(num_blocks) - 2) + [fused] * 2
        super().__init__(in_channels, channels, expansion, num_blocks, make_blocks)
        last = channels * expansion * 2 ** (len(num_blocks) - 1)
        self.downsample = nn.Conv2d(last // 2, last, 3, stride=2, padding=1, bias=False)
        self.fusion = AttentionalFusion(last)

    @property
    def layers_from_input(self) -> list[Layer]:
        return [*super().layers_from_input, (self.downsample, self.fusion)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T), -> (B, out_channels, T'), lengths."""
        x, lengths = self.first(features.unsqueeze(1), lengths)
        x = F.relu_(x)
        for stage in self.stages[:-1]:
            x, lengths = stage(x, lengths)
        last, strided = self.stages[-1](x, lengths)
        x = self.downsample(zero_padding(x, lengths))
        return self.fusion(last, x, strided).flatten(1, 2), strided


class ERes2Block(nn.Module):
    """1x1 convolution, 3x3 convolutions of groups, 1x1 convolution and the skip.

    y_1 = K_1(x_1), y_i = K_i(x_i + y_{i-1}), with `fusion` K_i of the fusion of y_{i-1} and x_i.
    """

    def __init__(
        self,
        base_width: PositiveInt,
        scale: PositiveInt,
        fusion: bool,
        in_channels: PositiveInt,
        width: PositiveInt,
        out_channels: PositiveInt,
        stride: PositiveInt,
    ) -> None:
        super().__init__()
        self.scale = scale
        group = group_width(width, base_width)
        self.before = ConvNorm(in_channels, group * scale, 1, stride)
        self.convs = nn.ModuleList(ConvNorm(group, group, 3, 1) for _ in range(scale))
        self.fusions = nn.ModuleList(AttentionalFusion(group) for _ in range(scale - 1)) if fusion else None
        self.after = ConvNorm(group * scale, out_channels, 1, 1)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, in_channels, F, T) -> (B, out_channels, F', T')."""
        y, strided = self.before(x, lengths)
        outputs: list[Tensor] = []
        for index, (group, conv) in enumerate(zip(clipped_relu_(y).chunk(self.scale, dim=1), self.convs, strict=True)):
            if index and self.fusions is not None:
                group = self.fusions[index - 1](outputs[-1], group, strided)
            elif index:
                group = outputs[-1] + group
            z, _ = conv(group, strided)
            outputs.append(clipped_relu_(z))
        y, _ = self.after(torch.cat(outputs, dim=1), strided)
        skip = x if self.shortcut is None else self.shortcut(x, lengths)[0]
        return clipped_relu_(y.add_(skip)), strided


class AttentionalFusion(nn.Module):
    """(1 + u) x + (1 - u) y, u in (-1, 1) for every channel, frequency and frame, from both (ERes2Net, section 2)."""

    def __init__(self, channels: PositiveInt) -> None:
        super().__init__()
        bottleneck = channels // REDUCTION
        if bottleneck == 0:
            raise ValueError(f"AttentionalFusion: {channels} channels; at least {REDUCTION} are needed: raise channels")
        self.squeeze = nn.Conv2d(2 * channels, bottleneck, 1)
        self.squeeze_norm = nn.BatchNorm2d(bottleneck)
        self.excite = nn.Conv2d(bottleneck, channels, 1)
        self.excite_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, y: Tensor, lengths: Tensor | None) -> Tensor:
        """x and y (B, C, F, T) -> (B, C, F, T)."""
        hidden = norm_frames(self.squeeze_norm, self.squeeze(torch.cat([x, y], dim=1)), lengths)
        hidden = norm_frames(self.excite_norm, self.excite(F.silu(hidden)), lengths)
        return torch.addcmul(x + y, torch.tanh_(hidden), x - y)
