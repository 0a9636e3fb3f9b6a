"""The x-vector encoder: a stack of time-delay layers.

Snyder, Garcia-Romero, Sell, Povey, Khudanpur: X-vectors: robust DNN embeddings for speaker recognition,
ICASSP 2018, table 1. The rectifier and the lists of a recipe stand in its config.
"""

from typing import Literal

from torch import Tensor, nn

from spkexp.models.layers import TDNN, Layer, check_layers
from spkexp.types import Fraction, PositiveInt


class XVector(nn.Module):
    """Time-delay neural network: (B, in_channels, T) -> (B, channels[-1], T).

    Args:
        in_channels: features a frame, from the feature extractor.
        channels: output channels of each layer.
        kernel_sizes: frames seen by each layer, odd.
        dilations: frames from one tap of the kernel to the next, for each layer.
        padding: beyond an utterance: "reflect" (SpeechBrain) or "zeros".
        negative_slope: of the leaky ReLU; 0 is the ReLU.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        channels: list[int],
        kernel_sizes: list[int],
        dilations: list[int],
        padding: Literal["reflect", "zeros"],
        negative_slope: Fraction,
    ) -> None:
        super().__init__()
        check_layers("XVector", channels=channels, kernel_sizes=kernel_sizes, dilations=dilations)
        self.out_channels = channels[-1]
        inputs = [in_channels, *channels[:-1]]
        self.layers = nn.ModuleList(
            TDNN(before, after, kernel_size, dilation, padding, negative_slope, norm=True)
            for before, after, kernel_size, dilation in zip(inputs, channels, kernel_sizes, dilations, strict=True)
        )

    @property
    def layers_from_input(self) -> list[Layer]:
        return [(layer,) for layer in self.layers]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T), -> (B, out_channels, T), lengths."""
        for layer in self.layers:
            features = layer(features, lengths)
        return features, lengths
