"""Self-attention over the valid frames, with and without relative positions.

Shapes: B utterances, T frames, C channels, H heads of C / H channels. Sequences are (B, T, C) here, the layout of
linear layers and layer normalisation. `mask` is (B, 1, 1, T) bool, true at the frames that may be attended to, or None:
all. The softmax of `F.scaled_dot_product_attention` is accumulated in float32 whatever the precision.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import frame_mask
from spkexp.types import Fraction, PositiveInt


def key_mask(lengths: Tensor | None, num_frames: int) -> Tensor | None:
    """(B, 1, 1, T) bool, true at the valid frames; None where every row is full."""
    return None if lengths is None else frame_mask(lengths, num_frames).unsqueeze(1)


def sinusoids(positions: Tensor, channels: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: positions (T,) -> (T, channels) float32, sines at even channels, then cosines.

    PE(t, 2i) = sin(t / 10000^(2i / channels)), PE(t, 2i + 1) = cos of the same.
    """
    rates = torch.exp(torch.arange(0, channels, 2, device=positions.device) * (-math.log(10000.0) / channels))
    angles = positions[:, None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def relative_positions(num_frames: int, channels: int, relative: bool, device: torch.device) -> Tensor:
    """r of the distances T - 1 to 1 - T, (1, 2 T - 1, C); or of the keys 0 to T - 1, (1, T, C), if not relative."""
    if relative:
        steps = torch.arange(num_frames - 1, -num_frames, -1, device=device)
    else:
        steps = torch.arange(num_frames, device=device)
    return sinusoids(steps, channels).unsqueeze(0)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, C / H), without a copy."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, T, C) -> (B, T, C) (Vaswani et al. 2017, section 3.2).

    Args:
        channels: C.
        num_heads: H; must divide `channels`.
        dropout: of the attention weights.
    """

    def __init__(self, channels: PositiveInt, num_heads: PositiveInt, dropout: Fraction) -> None:
        super().__init__()
        if channels % num_heads or channels % 2:
            raise ValueError(f"attention_heads={num_heads} must divide channels={channels}, which must be even")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, H, T, C / H) -> (B, T, C). `mask` may also be float: what is added to the scaled products."""
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (split_heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value))
        return self.attend(query, key, value, mask)


class RelativeSelfAttention(SelfAttention):
    """Self-attention that also scores the position of the key (Dai et al., Transformer-XL, ACL 2019, section 3.3).

    The score of key j for query i is (q_i + u)·k_j + (q_i + v)·W r_{i-j}, over sqrt(C / H); r are `sinusoids`.

    Args:
        relative: r is that of the distance i - j, as published. Otherwise it is that of j itself: WeNet left the shift
            from one to the other out, and with it the MFA-Conformer.
    """

    def __init__(self, channels: PositiveInt, num_heads: PositiveInt, dropout: Fraction, relative: bool) -> None:
        super().__init__(channels, num_heads, dropout)
        self.relative = relative
        self.position = nn.Linear(channels, channels, bias=False)
        self.content_bias = nn.Parameter(torch.empty(num_heads, channels // num_heads))  # u
        self.position_bias = nn.Parameter(torch.empty(num_heads, channels // num_heads))  # v
        nn.init.xavier_uniform_(self.content_bias)
        nn.init.xavier_uniform_(self.position_bias)

    def forward(self, x: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, T, C), mask, and `relative_positions`, the same for all layers, -> (B, T, C)."""
        query, key, value = (split_heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value))
        place = split_heads(self.position(positions), self.num_heads)  # (1, H, 2 T - 1 or T, C / H)
        scale = query.shape[3] ** -0.5
        u, v = self.content_bias.unsqueeze(1), self.position_bias.unsqueeze(1)
        if self.relative:
            bias = shift((query + v) @ place.transpose(2, 3), x.shape[1]) * scale
            query = query + u
        else:
            # The products join: q·(k + W r) + (u·k + v·W r), of which the second is one number a key.
            bias = ((key * u + place * v).sum(dim=3) * scale).unsqueeze(2)  # (B, H, 1, T)
            key = key + place
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        return self.attend(query, key, value, bias)


def shift(scores: Tensor, num_frames: int) -> Tensor:
    """Scores by distance, (B, H, T, 2 T - 1) from T - 1 to 1 - T, -> by key, (B, H, T, T): [i, j] is of distance i - j.

    Of row i the keys are a window that begins at T - 1 - i; one column more makes each row begin one earlier.
    """
    batch, heads, rows, columns = scores.shape
    shifted = F.pad(scores, (1, 0)).view(batch, heads, columns + 1, rows)[:, :, 1:]
    return shifted.reshape(batch, heads, rows, columns)[..., :num_frames]


class FeedForward(nn.Module):
    """Two linear layers with a nonlinearity and dropout between: (B, T, C) -> (B, T, C)."""

    def __init__(self, channels: PositiveInt, hidden: PositiveInt, activation: nn.Module, dropout: Fraction) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x))))
