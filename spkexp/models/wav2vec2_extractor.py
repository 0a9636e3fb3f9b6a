"""The convolutional extractor of wav2vec 2.0, HuBERT and WavLM: from a waveform to a frame every 20 ms.

Baevski, Zhou, Mohamed, Auli: wav2vec 2.0, NeurIPS 2020, section 2. Modules bear the names of torchaudio and
transformers. Shapes: B utterances, C channels, T frames.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import check_layers, frame_mean, strided_lengths, zero_padding
from spkexp.types import PositiveInt


class FeatureExtractor(nn.Module):
    """Strided convolutions over the waveform: (B, 1, samples) -> (B, channels[-1], T).

    Nothing is padded; an utterance shorter than what a frame sees (25 ms) is filled up with zeros to give one.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        norm: Literal["group", "layer"],
        bias: bool,
    ) -> None:
        super().__init__()
        check_layers(
            "SelfSupervised",
            extractor_channels=list(channels),
            extractor_kernel_sizes=list(kernel_sizes),
            extractor_strides=list(strides),
        )
        self.shortest = 1
        for kernel_size, stride in zip(reversed(kernel_sizes), reversed(strides), strict=True):
            self.shortest = (self.shortest - 1) * stride + kernel_size
        self.conv_layers = nn.ModuleList()
        inputs = [1, *channels[:-1]]
        for before, after, kernel_size, stride in zip(inputs, channels, kernel_sizes, strides, strict=True):
            kind = norm if norm == "layer" or not self.conv_layers else None
            self.conv_layers.append(ExtractorLayer(before, after, kernel_size, stride, kind, bias))

    def forward(self, waveform: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        num_samples = waveform.shape[2]
        waveform = zero_padding(waveform, lengths)
        if num_samples < self.shortest:
            if lengths is None:
                lengths = torch.full((waveform.shape[0],), num_samples, device=waveform.device)
            waveform = F.pad(waveform, (0, self.shortest - num_samples))
        x = waveform
        for layer in self.conv_layers:
            x, lengths = layer(x, lengths)
        return x, lengths


class ExtractorLayer(nn.Module):
    """Convolution, normalisation over time ("group": of each channel), over channels ("layer") or none, GELU."""

    def __init__(
        self,
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        kernel_size: PositiveInt,
        stride: PositiveInt,
        norm: Literal["group", "layer"] | None,
        bias: bool,
    ) -> None:
        super().__init__()
        self.shape = (kernel_size, stride, 0)
        self.conv = nn.Conv1d(in_channels, out_channels, *self.shape, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.layer_norm: nn.Module | None = None
        if norm is not None:
            self.layer_norm = nn.LayerNorm(out_channels) if norm == "layer" else ChannelNorm(out_channels, out_channels)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.conv(x)
        lengths = strided_lengths(lengths, *self.shape)
        if isinstance(self.layer_norm, ChannelNorm):
            x = self.layer_norm(x, lengths)
        elif self.layer_norm is not None:
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(x), lengths


class ChannelNorm(nn.GroupNorm):
    """Each channel normalised over the valid frames of its utterance: (B, C, T) -> (B, C, T).

    Over all frames, as elsewhere, the padding of a batch would change its utterances.
    """

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:  # type: ignore[override]
        if lengths is None:
            return super().forward(x)
        mean = frame_mean(x, lengths).unsqueeze(2)
        variance = frame_mean((x - mean).square(), lengths).unsqueeze(2)
        return torch.addcmul(self.bias[:, None], x - mean, (variance + self.eps).rsqrt() * self.weight[:, None])
