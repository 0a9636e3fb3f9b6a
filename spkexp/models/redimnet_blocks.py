"""The 2-D and 1-D blocks of ReDimNet, all of which keep their input's size.

Yakovlev et al. 2024, section 2; the ConvNeXt block: Liu et al., CVPR 2022; the gate: Thienpondt et al., Interspeech
2021 (frequency-wise squeeze and excitation). Shapes: B utterances, C channels, F frequencies, T frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import frame_mask, frame_mean, norm_frames, zero_padding
from spkexp.types import PositiveInt

_EPSILON = 1e-6  # of the layer normalisations and of `Squeeze`; other batch normalisations have torch's 1e-5


def num_groups(channels: int, group_channels: int) -> int:
    """Groups of a convolution that mixes `group_channels` channels, or all where there are fewer."""
    groups = max(channels // group_channels, 1)
    if channels % groups:
        raise ValueError(f"ReDimNet: group_channels={group_channels} must divide the {channels} channels of a block")
    return groups


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each (frequency and) frame: (B, C, ..., T) -> (B, C, ..., T)."""

    def __init__(self, channels: PositiveInt) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """Grouped convolution, batch normalisation, GELU, 1x1 convolution and a skip, in one or two dimensions."""

    def __init__(
        self,
        convolution: type[nn.Conv1d] | type[nn.Conv2d],
        channels: PositiveInt,
        kernel_size: PositiveInt,
        group_channels: PositiveInt,
    ) -> None:
        super().__init__()
        groups = num_groups(channels, group_channels)
        self.conv = convolution(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups)
        self.norm = (nn.BatchNorm2d if convolution is nn.Conv2d else nn.BatchNorm1d)(channels)
        self.pointwise = convolution(channels, channels, 1)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, T) or (B, C, F, T)."""
        y = norm_frames(self.norm, self.conv(zero_padding(x, lengths)), lengths)
        return x + self.pointwise(F.gelu(y))


class ResidualBlock(nn.Module):
    """Two grouped 3x3 convolutions, each with a 1x1 convolution behind it, an optional gate and a skip."""

    def __init__(self, channels: PositiveInt, group_channels: PositiveInt, gate: nn.Module | None) -> None:
        super().__init__()
        groups = num_groups(channels, group_channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.pointwise1 = nn.Conv2d(channels, channels, 1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.pointwise2 = nn.Conv2d(channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.gate = gate

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, F, T)."""
        y = F.relu_(self.pointwise1(self.conv1(zero_padding(x, lengths))))
        y = zero_padding(norm_frames(self.norm1, y, lengths), lengths)
        y = norm_frames(self.norm2, self.pointwise2(self.conv2(y)), lengths)
        # The batch normalisation needs its input for the gradient, the product its output.
        y = y.add_(x) if self.gate is None else torch.addcmul(x, y, self.gate(y, lengths))
        return F.relu_(y)


class FrequencyGate(nn.Module):
    """Gains of the frequencies from their means over channels and valid frames: (B, C, F, T) -> (B, 1, F, 1)."""

    def __init__(self, num_frequencies: PositiveInt, bottleneck: PositiveInt) -> None:
        super().__init__()
        self.squeeze = nn.Linear(num_frequencies, bottleneck)
        self.excite = nn.Linear(bottleneck, num_frequencies)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            mean = x.mean(dim=(1, 3), dtype=torch.promote_types(x.dtype, torch.float32))
        else:
            mean = frame_mean(x.flatten(1, 2), lengths).unflatten(1, x.shape[1:3]).mean(dim=1)
        gains = torch.sigmoid(self.excite(F.relu_(self.squeeze(mean))))
        return gains[:, None, :, None]


class Squeeze(nn.Module):
    """From the expanded channels of a stage back to those that the reshaping needs: (B, C, F, T) -> (B, C', F, T)."""

    def __init__(self, in_channels: PositiveInt, out_channels: PositiveInt, group_channels: PositiveInt) -> None:
        super().__init__()
        groups = num_groups(out_channels, group_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPSILON)
        self.pointwise = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        y = norm_frames(self.norm, self.conv(zero_padding(x, lengths)), lengths)
        return self.pointwise(F.gelu(y))


class TimeBlock(nn.Module):
    """The 1-D block: fewer channels, convolutions over growing spans of time, self-attention, and back to a skip.

    (B, C, T) -> (B, C, T), with C / reduction channels inside.
    """

    def __init__(
        self, channels: PositiveInt, reduction: PositiveInt, kernel_sizes: list[int], num_heads: PositiveInt
    ) -> None:
        super().__init__()
        width = channels // reduction
        if width % num_heads or width == 0:
            raise ValueError(
                f"ReDimNet: time_reductions has {reduction}, which leaves {width} of {channels} channels; "
                f"num_heads={num_heads} must divide what is left"
            )
        if any(size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"ReDimNet: time_kernel_sizes={kernel_sizes}: odd numbers keep the number of frames")
        self.reduce = nn.Conv1d(channels, width, 1)
        self.norm = ChannelNorm(width)
        self.convolutions = nn.ModuleList(ConvNeXtBlock(nn.Conv1d, width, size, 1) for size in kernel_sizes)
        self.attention = AttentionLayer(width, num_heads)
        self.expand = nn.Conv1d(width, channels, 1)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        y = self.norm(self.reduce(x))
        for convolution in self.convolutions:
            y = convolution(y, lengths)
        y = self.attention(y.transpose(1, 2), lengths).transpose(1, 2)
        return x + self.expand(y)


class AttentionLayer(nn.Module):
    """Transformer encoder layer (Vaswani et al. 2017) without dropout, normalised behind each sum.

    (B, T, C) -> (B, T, C). The feed-forward part is C wide; its GELU is the tanh approximation.
    """

    def __init__(self, channels: PositiveInt, num_heads: PositiveInt) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels, eps=_EPSILON)
        self.feed_in = nn.Linear(channels, channels)
        self.feed_out = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=_EPSILON)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        mask = None if lengths is None else frame_mask(lengths, x.shape[1]).unsqueeze(1)  # (B, 1, 1, T)
        query, key, value = (
            projection(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, C / heads)
            for projection in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.norm1(x + self.output(y.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.feed_out(F.gelu(self.feed_in(x), approximate="tanh")))
