"""The MFA-Conformer encoder, up to the pooling (which is `pooling.AttentiveStatisticsPooling`).

Zhang, Lv, Wu, Zhang, Hu, Wu, Lee, Meng: MFA-Conformer: Multi-scale feature aggregation Conformer for automatic speaker
verification, Interspeech 2022, section 2 and figure 1. The blocks are those of Gulati et al.: Conformer,
Interspeech 2020, section 2.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.attention import FeedForward, RelativeSelfAttention, key_mask, relative_positions
from spkexp.models.layers import Layer, norm_frames, zero_padding
from spkexp.models.subsampling import Subsampling
from spkexp.types import Fraction, PositiveInt

# Of layer normalisation, as ESPnet, WeNet and the authors' checkpoints have it.
_EPSILON = 1e-12


class Conformer(nn.Module):
    """Conformer blocks whose outputs are joined and normalised: (B, in_channels, T) -> (B, num_blocks channels, T').

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: of every block (paper: 256).
        num_blocks: whose outputs are joined (paper: 6).
        attention_heads: must divide `channels` (paper: 4).
        feedforward_channels: width between the two linear layers (paper: 2048).
        kernel_size: frames seen by the convolution of a block, odd (paper: 15).
        subsampling: input frames for each frame that is attended to: 1, 2 (paper) or 4.
        relative_shift: positions are distances between frames, as in Transformer-XL and the paper; the authors' code
            scores the position of the key alone (see `attention.RelativeSelfAttention`).
        dropout: of the input, of the positions, and of what every part adds.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        num_blocks: PositiveInt,
        attention_heads: PositiveInt,
        feedforward_channels: PositiveInt,
        kernel_size: PositiveInt,
        subsampling: Literal[1, 2, 4],
        relative_shift: bool,
        dropout: Fraction,
    ) -> None:
        super().__init__()
        self.out_channels = num_blocks * channels
        self.scale = channels**0.5
        self.relative_shift = relative_shift
        self.subsampling = Subsampling(in_channels, channels, subsampling)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(channels, attention_heads, feedforward_channels, kernel_size, relative_shift, dropout)
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(self.out_channels, eps=_EPSILON)

    @property
    def layers_from_input(self) -> list[Layer]:
        *blocks, last = self.blocks
        return [*((block,) for block in blocks), (last, self.norm)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,) or None (all T) -> (B, out_channels, T'), lengths'."""
        hidden, lengths = self.subsampling(features, lengths)
        x = self.dropout(hidden.transpose(1, 2).contiguous() * self.scale)
        num_frames = x.shape[1]
        positions = self.dropout(relative_positions(num_frames, x.shape[2], self.relative_shift, x.device))
        mask = key_mask(lengths, num_frames)
        outputs = []
        for block in self.blocks:
            x = block(x, lengths, mask, positions)
            outputs.append(x)
        return self.norm(torch.cat(outputs, dim=2)).transpose(1, 2), lengths


class ConformerBlock(nn.Module):
    """Feed-forward half step, attention, convolution, feed-forward half step, norm: (B, T, C) -> (B, T, C).

    Gulati et al. 2020, eq. 1; every part is a residual with layer normalisation before it.
    """

    def __init__(
        self,
        channels: PositiveInt,
        attention_heads: PositiveInt,
        feedforward_channels: PositiveInt,
        kernel_size: PositiveInt,
        relative_shift: bool,
        dropout: Fraction,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=_EPSILON) for _ in range(4))
        self.first = FeedForward(channels, feedforward_channels, nn.SiLU(), dropout)
        self.attention = RelativeSelfAttention(channels, attention_heads, 0.0, relative_shift)
        self.convolution = ConvolutionModule(channels, kernel_size)
        self.last = FeedForward(channels, feedforward_channels, nn.SiLU(), dropout)
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None, positions: Tensor) -> Tensor:
        """x (B, T, C), lengths and their mask, and `relative_positions` -> (B, T, C)."""
        x = x.add(self.dropout(self.first(self.norms[0](x))), alpha=0.5)
        x = x + self.dropout(self.attention(self.norms[1](x), mask, positions))
        x = x + self.dropout(self.convolution(self.norms[2](x), lengths))
        x = x.add(self.dropout(self.last(self.norms[3](x))), alpha=0.5)
        return self.norm(x)


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution: (B, T, C) -> (B, T, C) (Gulati et al. 2020, figure 2)."""

    def __init__(self, channels: PositiveInt, kernel_size: PositiveInt) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: an odd number keeps the number of frames")
        # Pointwise convolutions are linear layers here: frames come and go as rows.
        self.gated = nn.Linear(channels, 2 * channels)
        self.depthwise = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.BatchNorm1d(channels)
        self.pointwise = nn.Linear(channels, channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        x = zero_padding(F.glu(self.gated(x), dim=2).transpose(1, 2), lengths)  # (B, C, T)
        x = F.silu(norm_frames(self.norm, self.depthwise(x), lengths), inplace=True)
        return self.pointwise(x.transpose(1, 2))
