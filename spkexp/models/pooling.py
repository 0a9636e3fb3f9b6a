"""Pooling of frames to one vector an utterance.

Shapes: hidden (B, C, T) with T frames; lengths (B,) int64 on its device, the valid frames of each row, or None where
every row is full. Statistics are computed in at least float32, also under autocast, and a variance from
deviations from the mean: E[x²] - E[x]² would cancel. Attention gives padding the weight zero.
"""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import frame_mask, frame_mean, norm_frames, zero_padding
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


class MeanPooling(nn.Module):
    """Mean over time: (B, C, T) -> (B, C).

    Args:
        channels: C, from the encoder.
    """

    def __init__(self, channels: PositiveInt) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """hidden (B, C, T), lengths (B,) or None (all T) -> (B, C)."""
        return frame_mean(hidden, lengths)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time: (B, C, T) -> (B, 2 C), means first (Snyder et al. 2018, section 2.1).

    The deviation is unbiased (n - 1), as in SpeechBrain, WeSpeaker and torch.std. After a 2-D encoder, whose
    (B, channels, frequencies, T) arrive as (B, channels · frequencies, T), these are the statistics over time of each
    channel at each frequency: WeSpeaker's TSTP.

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
        return softmax_over_frames(self.scores(self.activation(a, lengths)), lengths)

    def activation(self, a: Tensor, lengths: Tensor | None) -> Tensor:
        """f of eq. 1: (B, R, T) -> (B, R, T)."""
        return torch.tanh(a if self.norm is None else norm_frames(self.norm, F.relu(a), lengths))

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """hidden (B, C, T), lengths (B,) or None (all T) -> (B, 2 C)."""
        hidden = zero_padding(hidden, lengths)
        weights = self.attention(hidden, lengths)
        return torch.cat(weighted_statistics(at_least_float32(hidden), weights, self.variance_floor), dim=1)


class RectifiedAttentiveStatisticsPooling(AttentiveStatisticsPooling):
    """`AttentiveStatisticsPooling` with ReLU and batch normalisation in place of the tanh: RawNet3's.

    Args:
        channels: C, from the encoder.
        attention_channels: R, width between W and V.
        global_context: W sees [h; mean; deviation] of the utterance as well as the frame.
        variance_floor: least variance, weighted or not (RawNet3 1e-4).
    """

    def __init__(
        self, channels: PositiveInt, attention_channels: PositiveInt, global_context: bool, variance_floor: Positive
    ) -> None:
        super().__init__(channels, attention_channels, global_context, 1, True, variance_floor)

    def activation(self, a: Tensor, lengths: Tensor | None) -> Tensor:
        assert self.norm is not None
        return norm_frames(self.norm, F.relu(a), lengths)


class AttentivePooling(nn.Module):
    """Statistics weighted by one score a frame: (B, C, T) -> (B, C) or (B, 2 C), means first.

    Okabe, Koshinaka, Shinoda: Attentive statistics pooling for deep speaker embedding, Interspeech 2018: the scores
    e = v tanh(W h + b) + k (eq. 1), a softmax over time (eq. 2), the weighted mean (eq. 3) and deviation (eq. 5).

    Args:
        channels: C, from the encoder.
        attention_channels: width between W and v.
        statistics: "mean" (self-attentive pooling) or "mean_and_deviation".
        variance_floor: least weighted variance.
    """

    def __init__(
        self,
        channels: PositiveInt,
        attention_channels: PositiveInt,
        statistics: Literal["mean", "mean_and_deviation"],
        variance_floor: Positive,
    ) -> None:
        super().__init__()
        self.out_channels = channels if statistics == "mean" else 2 * channels
        self.statistics = statistics
        self.variance_floor = variance_floor
        self.hidden = nn.Conv1d(channels, attention_channels, 1)
        self.scores = nn.Conv1d(attention_channels, 1, 1)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """hidden (B, C, T), lengths (B,) or None (all T) -> (B, out_channels)."""
        hidden = zero_padding(hidden, lengths)
        weights = softmax_over_frames(self.scores(torch.tanh(self.hidden(hidden))), lengths)
        x = at_least_float32(hidden)
        if self.statistics == "mean":
            return (weights * x).sum(dim=2)
        return torch.cat(weighted_statistics(x, weights, self.variance_floor), dim=1)


class MultiHeadAttentivePooling(nn.Module):
    """Attentive statistics of each head of channels for each query: (B, C, T) -> (B, 2 Q C).

    Zhao et al.: Multi-query multi-head attention pooling and inter-topK penalty for speaker verification, ICASSP 2022,
    section 2; with one query and one score a frame the multi-head attention of India, Safari, Hernando 2019. The C
    channels are H heads of C / H. Each query scores the frames of each head by a network of its own, tanh between its
    layers, and a softmax over time makes them weights. The result lists queries, their heads, and of each head first
    the means, then the deviations, as WeSpeaker's MQMHASTP does.

    Args:
        channels: C, from the encoder.
        num_queries: Q.
        num_heads: H; must divide C.
        num_layers: of the scoring networks; 1 is linear.
        attention_channels: width between their layers.
        scores: one a "frame" of each head or one a "channel" of each frame.
        variance_floor: least weighted variance.
    """

    def __init__(
        self,
        channels: PositiveInt,
        num_queries: PositiveInt,
        num_heads: PositiveInt,
        num_layers: PositiveInt,
        attention_channels: PositiveInt,
        scores: Literal["frame", "channel"],
        variance_floor: Positive,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"MultiHeadAttentivePooling: num_heads={num_heads} must divide the {channels=}")
        self.out_channels = 2 * num_queries * channels
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.variance_floor = variance_floor
        width = channels // num_heads
        networks = num_heads * num_queries
        outputs = [attention_channels] * (num_layers - 1) + [width if scores == "channel" else 1]
        # All the networks at once as groups of one convolution; those of a head, which share its input, side by side.
        layers = [nn.Conv1d(channels, networks * outputs[0], 1, groups=num_heads)]
        for before, after in itertools.pairwise(outputs):
            layers.append(nn.Conv1d(networks * before, networks * after, 1, groups=networks))
        self.layers = nn.ModuleList(layers)

    def attention(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Weights (B, H, Q, 1 or C / H, T) of the frames: zero in padding, of sum one over the valid frames."""
        first, *rest = self.layers
        scores = first(hidden)
        for layer in rest:
            scores = layer(torch.tanh(scores))
        weights = softmax_over_frames(scores, lengths)
        return weights.view(len(hidden), self.num_heads, self.num_queries, -1, hidden.shape[2])

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """hidden (B, C, T), lengths (B,) or None (all T) -> (B, 2 Q C)."""
        hidden = zero_padding(hidden, lengths)
        weights = self.attention(hidden, lengths)
        x = at_least_float32(hidden).unflatten(1, (self.num_heads, 1, -1))
        statistics = torch.stack(weighted_statistics(x, weights, self.variance_floor), dim=3)
        return statistics.transpose(1, 2).flatten(1)  # (B, H, Q, 2, C / H) -> queries first


def softmax_over_frames(scores: Tensor, lengths: Tensor | None) -> Tensor:
    """Scores (B, S, T) -> weights (B, S, T), at least float32: zero in padding, of sum one over the valid frames."""
    scores = at_least_float32(scores)
    if lengths is not None:
        scores = scores.masked_fill(~frame_mask(lengths, scores.shape[2]), float("-inf"))
    return torch.softmax(scores, dim=2)


def weighted_statistics(x: Tensor, weights: Tensor, variance_floor: float) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over the last dimension of x and weights, which broadcast; x finite in padding."""
    mean = (weights * x).sum(dim=-1)
    variance = (weights * (x - mean.unsqueeze(-1)).square()).sum(dim=-1)
    return mean, variance.clamp(min=variance_floor).sqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
