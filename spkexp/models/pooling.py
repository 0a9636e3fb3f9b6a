"""Pooling of frames to one vector an utterance.

Shapes: hidden (B, C, T) with T frames; lengths (B,) int64 on its device, the valid frames of each row, or None where
every row is full. Statistics are computed in at least float32, also under autocast, and a variance from
deviations from the mean: E[x²] - E[x]² would cancel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import frame_mask, norm_frames, zero_padding
from spkexp.types import NonNegativeInt, Positive, PositiveInt


def mean_and_deviation(
    x: Tensor, lengths: Tensor | None, correction: int, variance_floor: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C) over the valid frames of x (B, C, T).

    The variance divides by n - correction, at least 1, and is at least variance_floor, where its gradient is zero: one
    frame or a constant has the deviation sqrt(variance_floor) and a finite gradient.
    """
    num_frames = x.shape[2]
    if lengths is None:
        variance, mean = torch.var_mean(x, dim=2, correction=0)
        variance = variance * (num_frames / max(num_frames - correction, 1))
    else:
        padding = ~frame_mask(lengths, num_frames)
        mean = x.masked_fill(padding, 0.0).sum(dim=2) / lengths[:, None]
        centred = (x - mean.unsqueeze(2)).masked_fill(padding, 0.0)
        variance = centred.square().sum(dim=2) / (lengths - correction).clamp(min=1)[:, None]
    return mean, variance.clamp(min=variance_floor).sqrt()


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time: (B, C, T) -> (B, 2 C), means first (Snyder et al. 2018, section 2.1).

    The deviation is unbiased (n - 1), as in SpeechBrain, WeSpeaker and torch.std.

    Args:
        channels: C, from the encoder.
        variance_floor: least variance; the deviation of a single frame is its square root.
    """

    def __init__(self, channels: PositiveInt, variance_floor: Positive) -> None:
        super().__init__()
        self.out_channels = 2 * channels
        self.variance_floor = variance_floor

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """hidden (B, C, T), lengths (B,) or None (all T) -> (B, 2 C)."""
        x = at_least_float32(hidden)
        return torch.cat(mean_and_deviation(x, lengths, 1, self.variance_floor), dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Channel- and context-dependent attentive statistics: (B, C, T) -> (B, 2 C), means first.

    Desplanques et al. 2020, section 3.1: the scores e = V f(W h + b) + k (eq. 1), a softmax over time for each
    channel (eq. 2), and the weighted mean and deviation (eq. 3 and 4).

    Args:
        channels: C, from the encoder.
        attention_channels: R, width between W and V.
        global_context: W sees [h; mean; deviation] of the utterance as well as the frame.
        context_correction: the context's variance divides by n minus this: 0 SpeechBrain, 1 WeSpeaker.
        attention_norm: ReLU and batch normalisation before the tanh (SpeechBrain; neither paper nor WeSpeaker).
        variance_floor: least variance, weighted or not (SpeechBrain 1e-12, WeSpeaker 1e-7).
    """

    def __init__(
        self,
        channels: PositiveInt,
        attention_channels: PositiveInt,
        global_context: bool,
        context_correction: NonNegativeInt,
        attention_norm: bool,
        variance_floor: Positive,
    ) -> None:
        super().__init__()
        self.out_channels = 2 * channels
        self.context_correction = context_correction
        self.variance_floor = variance_floor
        self.hidden = nn.Conv1d(channels, attention_channels, 1)
        # W of the context, apart from W of the frames: what it adds is the same for all frames, so that computing
        # it once for an utterance saves two thirds of the product W [h; mean; deviation].
        self.context = nn.Linear(2 * channels, attention_channels, bias=False) if global_context else None
        self.norm = nn.BatchNorm1d(attention_channels) if attention_norm else None
        self.scores = nn.Conv1d(attention_channels, channels, 1)

    def attention(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Weights (B, C, T) of the frames, at least float32: zero in padding, of sum one over the valid frames."""
        a = self.hidden(hidden)
        if self.context is not None:
            x = at_least_float32(hidden)
            context = mean_and_deviation(x, lengths, self.context_correction, self.variance_floor)
            a = a + self.context(torch.cat(context, dim=1)).unsqueeze(2)
        if self.norm is not None:
            a = norm_frames(self.norm, F.relu(a), lengths)
        scores = at_least_float32(self.scores(torch.tanh(a)))
        if lengths is not None:
            scores = scores.masked_fill(~frame_mask(lengths, hidden.shape[2]), float("-inf"))
        return torch.softmax(scores, dim=2)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """hidden (B, C, T), lengths (B,) or None (all T) -> (B, 2 C)."""
        hidden = zero_padding(hidden, lengths)
        weights = self.attention(hidden, lengths)
        x = at_least_float32(hidden)
        mean = (weights * x).sum(dim=2)
        variance = (weights * (x - mean.unsqueeze(2)).square()).sum(dim=2)
        return torch.cat([mean, variance.clamp(min=self.variance_floor).sqrt()], dim=1)


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
