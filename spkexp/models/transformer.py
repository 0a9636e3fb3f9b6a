"""The Transformer encoder, a baseline of the LibriSpeech classification study.

Vaswani et al.: Attention is all you need, NIPS 2017; layer normalisation before each part (Xiong et al., ICML 2020).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from spkexp.models.attention import FeedForward, SelfAttention, key_mask, sinusoids
from spkexp.models.layers import Layer
from spkexp.models.subsampling import Subsampling
from spkexp.types import Fraction, PositiveInt


class Transformer(nn.Module):
    """Self-attention and feed-forward layers: (B, in_channels, T) -> (B, channels, T').

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: of every layer.
        num_layers: of self-attention and feed-forward.
        attention_heads: must divide `channels`.
        feedforward_channels: width between the two linear layers.
        subsampling: input frames for each frame that is attended to: 1, 2 or 4.
        dropout: of the input, the attention weights and what every part adds.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: PositiveInt,
        num_layers: PositiveInt,
        attention_heads: PositiveInt,
        feedforward_channels: PositiveInt,
        subsampling: Literal[1, 2, 4],
        dropout: Fraction,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.subsampling = Subsampling(in_channels, channels, subsampling)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(channels, attention_heads, feedforward_channels, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)

    @property
    def layers_from_input(self) -> list[Layer]:
        *layers, last = self.layers
        return [*((layer,) for layer in layers), (last, self.norm)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,) or None (all T) -> (B, channels, T'), lengths'."""
        hidden, lengths = self.subsampling(features, lengths)
        x = hidden.transpose(1, 2).contiguous()
        num_frames, channels = x.shape[1:]
        x = self.dropout(x + sinusoids(torch.arange(num_frames, device=x.device), channels))
        mask = key_mask(lengths, num_frames)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x).transpose(1, 2), lengths


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): (B, T, C) -> (B, T, C)."""

    def __init__(
        self,
        channels: PositiveInt,
        attention_heads: PositiveInt,
        feedforward_channels: PositiveInt,
        dropout: Fraction,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, attention_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, feedforward_channels, nn.ReLU(inplace=True), dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
