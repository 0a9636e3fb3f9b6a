"""The network of wav2vec 2.0, HuBERT and WavLM: from a waveform to the hidden states of a Transformer.

Baevski, Zhou, Mohamed, Auli: wav2vec 2.0, NeurIPS 2020, section 2; Hsu et al.: HuBERT, TASLP 2021 (the same network);
Chen et al.: WavLM, JSTSP 2022, section III (gated relative position bias). Modules bear the names that they have
in torchaudio and transformers, so that files of weights map by prefix (`spkexp.models.pretrained`).

Shapes: B utterances, T frames of 20 ms, C channels, H heads. Sequences are (B, T, C), as in `attention`.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models import lora
from spkexp.models.attention import key_mask, split_heads
from spkexp.models.layers import zero_padding
from spkexp.models.wav2vec2_extractor import FeatureExtractor
from spkexp.types import Fraction, NonNegativeInt, PositiveInt


class Wav2Vec2(nn.Module):
    """All hidden states: (B, 1, samples) -> each layer's input and the last output, num_layers + 1 times (B, T, C).

    The stages are the convolutional extractor, what comes before the layers, and each layer. The first `frozen_stages`
    of them stay as they are: without gradient, and without dropout in training too. The other arguments are those
    of `self_supervised.SelfSupervised`.
    """

    def __init__(
        self,
        extractor_channels: list[int],
        extractor_kernel_sizes: list[int],
        extractor_strides: list[int],
        extractor_norm: Literal["group", "layer"],
        extractor_bias: bool,
        channels: PositiveInt,
        num_layers: PositiveInt,
        attention_heads: PositiveInt,
        feedforward_channels: PositiveInt,
        position_kernel: PositiveInt,
        position_groups: PositiveInt,
        position_buckets: NonNegativeInt,
        max_distance: NonNegativeInt,
        layer_norm_first: bool,
        dropout: Fraction,
        frozen_stages: NonNegativeInt,
    ) -> None:
        super().__init__()
        self.layer_norm_first = layer_norm_first
        self.feature_extractor = FeatureExtractor(
            extractor_channels, extractor_kernel_sizes, extractor_strides, extractor_norm, extractor_bias
        )
        self.feature_projection = FeatureProjection(extractor_channels[-1], channels)
        self.pos_conv_embed = PositionalConvolution(channels, position_kernel, position_groups)
        self.layer_norm = nn.LayerNorm(channels)  # before the layers, or after them if each begins with one
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(
                Attention(channels, attention_heads, position_buckets, max_distance, index == 0, dropout),
                FeedForward(channels, feedforward_channels),
                layer_norm_first,
                dropout,
            )
            for index in range(num_layers)
        )
        self.apply(initialise)
        before: list[nn.Module] = [self.feature_projection, self.pos_conv_embed, self.dropout]
        if not layer_norm_first:
            before.append(self.layer_norm)
        stages: list[list[nn.Module]] = [[self.feature_extractor], before, *([layer] for layer in self.layers)]
        if layer_norm_first:
            stages[-1].append(self.layer_norm)
        self.constant_stages = frozen_stages  # those without anything that learns in or below them
        # In tuples, so that no module is registered twice.
        self.stages = tuple(tuple(stage) for stage in stages)
        self.frozen = tuple(module for stage in stages[:frozen_stages] for module in stage)
        for module in self.frozen:
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        for module in self.modules():
            if isinstance(module, lora.LoraLinear):  # of a frozen layer, too
                module.train(mode)
        return self

    def add_lora(self, match: str, rank: int, alpha: float, dropout: float) -> None:
        """See `lora.add`. Gradients then go down to the lowest stage that has some, frozen layers between or not."""
        lora.add(self, match, rank, alpha, dropout)
        learning = [
            index
            for index, stage in enumerate(self.stages)
            if any(isinstance(module, lora.LoraLinear) for part in stage for module in part.modules())
        ]
        self.constant_stages = min(self.constant_stages, learning[0])
        self.train(self.training)

    def _stage(self, index: int) -> AbstractContextManager[None]:
        return torch.no_grad() if index < self.constant_stages else nullcontext()

    def forward(self, waveform: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """waveform (B, 1, samples), lengths (B,) or None (all samples) -> num_layers + 1 times (B, T, C), lengths'."""
        with self._stage(0):
            features, lengths = self.feature_extractor(waveform, lengths)
        with self._stage(1):
            x = self.feature_projection(self.dropout, features.transpose(1, 2))
            x = x + self.pos_conv_embed(x, lengths)
            x = self.dropout(x if self.layer_norm_first else self.layer_norm(x))
        num_frames = x.shape[1]
        mask = key_mask(lengths, num_frames)
        states, bias = [x], None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            with self._stage(2 + index):
                if index == 0:
                    bias = layer.attention.position_bias(num_frames)
                x = layer(x, mask, bias)
                if self.layer_norm_first and index == len(self.layers) - 1:
                    x = self.layer_norm(x)
            states.append(x)
        return states, lengths


class FeatureProjection(nn.Module):
    """Layer normalisation and linear layer to the Transformer's width: (B, T, F) -> (B, T, C)."""

    def __init__(self, in_channels: PositiveInt, channels: PositiveInt) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(in_channels)
        self.projection = nn.Linear(in_channels, channels)

    def forward(self, dropout: nn.Module, x: Tensor) -> Tensor:
        return dropout(self.projection(self.layer_norm(x)))


class PositionalConvolution(nn.Module):
    """Grouped convolution whose output is added as relative position: (B, T, C) -> (B, T, C), zeros as padding."""

    def __init__(self, channels: PositiveInt, kernel_size: PositiveInt, groups: PositiveInt) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"position_groups={groups} must divide channels={channels}")
        convolution = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups)
        nn.init.normal_(convolution.weight, std=math.sqrt(4 / (kernel_size * channels)))
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        self.conv = nn.utils.parametrizations.weight_norm(convolution, dim=2)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        num_frames = x.shape[1]
        y = self.conv(zero_padding(x.transpose(1, 2), lengths))
        return F.gelu(y[..., :num_frames]).transpose(1, 2)  # an even kernel gives one frame too many


class Attention(nn.Module):
    """Multi-head self-attention, with WavLM's gated relative position bias if `position_buckets` is not 0.

    The scores get g_i B[bucket(j - i)], where the gate g of a query is computed from the layer's input.
    """

    def __init__(
        self,
        channels: PositiveInt,
        num_heads: PositiveInt,
        position_buckets: NonNegativeInt,
        max_distance: NonNegativeInt,
        first: bool,
        dropout: Fraction,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"attention_heads={num_heads} must divide channels={channels}")
        self.num_heads, self.dropout = num_heads, dropout
        self.num_buckets, self.max_distance = position_buckets, max_distance
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)
        if position_buckets:
            self.gru_rel_pos_linear = nn.Linear(channels // num_heads, 8)
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))
            if first:  # all layers share B
                self.rel_attn_embed = nn.Embedding(position_buckets, num_heads)

    def position_bias(self, num_frames: int) -> Tensor | None:
        """B (H, T, T) at [query, key]; the first layer's alone can be asked for. None without relative positions."""
        if not self.num_buckets:
            return None
        position = torch.arange(num_frames, device=self.rel_attn_embed.weight.device)
        distances = torch.arange(1 - num_frames, num_frames, device=position.device)
        values = self.rel_attn_embed(distance_buckets(distances, self.num_buckets, self.max_distance))
        return values.T[:, position - position[:, None] + num_frames - 1]

    def gate(self, x: Tensor) -> Tensor:
        """g (B, H, T, 1) = r_u (s r_r - 1) + 2 with r_u, r_r = σ(W x) of each head (WavLM, section III-B)."""
        sums = self.gru_rel_pos_linear(split_heads(x, self.num_heads)).unflatten(3, (2, 4)).sum(dim=4)
        update, reset = torch.sigmoid(sums).split(1, dim=3)
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        """x (B, T, C), mask (B, 1, 1, T) bool or None, bias (H, T, T) or None -> (B, T, C)."""
        if bias is not None:
            bias = self.gate(x) * bias
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        query, key, value = (split_heads(f(x), self.num_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))


def distance_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance j - i, int64: one each up to a quarter of them, then logarithmic; half for each sign."""
    half = num_buckets // 2
    exact = half // 2
    size = distances.abs()
    ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(size < exact, size, far) + half * (distances > 0)


class FeedForward(nn.Module):
    """Linear layer, GELU, linear layer: (B, T, C) -> (B, T, C)."""

    def __init__(self, channels: PositiveInt, hidden: PositiveInt) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(channels, hidden)
        self.output_dense = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class Layer(nn.Module):
    """Attention and feed-forward step, normalised before (large models) or after (base): (B, T, C) -> (B, T, C)."""

    def __init__(self, attention: Attention, feed_forward: FeedForward, norm_first: bool, dropout: Fraction) -> None:
        super().__init__()
        channels = attention.out_proj.out_features
        self.attention = attention
        self.layer_norm = nn.LayerNorm(channels)
        self.feed_forward = feed_forward
        self.final_layer_norm = nn.LayerNorm(channels)
        self.norm_first = norm_first
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.layer_norm(x), mask, bias))
            return x + self.dropout(self.feed_forward(self.final_layer_norm(x)))
        x = self.layer_norm(x + self.dropout(self.attention(x, mask, bias)))
        return self.final_layer_norm(x + self.dropout(self.feed_forward(x)))


def initialise(module: nn.Module) -> None:
    """As fairseq: linear layers and embeddings N(0, 0.02²)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
