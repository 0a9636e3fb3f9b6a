"""From frames every 10 ms to the frames of a sequence model: projected, and fewer where convolutions stride.

Dong, Xu, Xu: Speech-Transformer, ICASSP 2018, section 3.1 (strided 2-D convolutions before self-attention); the kernels
without padding are those of ESPnet and WeNet, and of the MFA-Conformer.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import strided_lengths, zero_padding
from spkexp.types import PositiveInt

_KERNEL, _STRIDE = 3, 2


class Subsampling(nn.Module):
    """Linear layer after 0, 1 or 2 strided convolutions over mel bins and time: (B, F, T) -> (B, channels, T').

    A convolution sees no frames beyond the utterance, T' = (T - 3) // 2 + 1 for each; an utterance too short for that
    is filled up with zeros to give one frame.

    Args:
        in_channels: F, features a frame.
        channels: of the output and of the convolutions.
        factor: input frames for each output frame: 1 (a linear layer alone), 2 or 4.
    """

    def __init__(self, in_channels: PositiveInt, channels: PositiveInt, factor: Literal[1, 2, 4]) -> None:
        super().__init__()
        if factor not in (1, 2, 4):
            raise ValueError(f"subsampling={factor}: must be 1, 2 or 4")
        self.out_channels = channels
        self.shortest = 1  # frames that give one
        layers: list[nn.Module] = []
        bins = in_channels
        for index in range(factor.bit_length() - 1):
            layers += [nn.Conv2d(channels if index else 1, channels, _KERNEL, _STRIDE), nn.ReLU(inplace=True)]
            self.shortest = (self.shortest - 1) * _STRIDE + _KERNEL
            bins = (bins - _KERNEL) // _STRIDE + 1
        if bins < 1:
            raise ValueError(f"subsampling={factor} leaves nothing of {in_channels} mel bins; use more of them")
        self.convolutions = nn.Sequential(*layers)
        self.num_convolutions = len(layers) // 2
        self.projection = nn.Conv1d((channels if layers else 1) * bins, channels, 1)

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,) or None (all T) -> (B, channels, T'), lengths'."""
        if self.num_convolutions == 0:
            return self.projection(features), lengths
        # A short row's one frame sees zeros behind it, here as in a longer batch.
        features = zero_padding(features, lengths)
        features = F.pad(features, (0, max(0, self.shortest - features.shape[2])))
        hidden = self.convolutions(features.unsqueeze(1))  # (B, channels, F', T')
        for _ in range(self.num_convolutions):
            lengths = strided_lengths(lengths, _KERNEL, _STRIDE, 0)
        return self.projection(hidden.flatten(1, 2)), lengths
