"""Stacks of Mamba layers as speaker encoders: norm, layer, dropout, residual, as in mamba_ssm's language model."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from spkexp.models.layers import Layer
from spkexp.models.mamba import BiMamba, Mamba, Mamba2
from spkexp.models.pooling import at_least_float32
from spkexp.models.subsampling import Subsampling
from spkexp.ops.backend import Backend
from spkexp.types import Fraction, PositiveInt

Norm = Literal["rms_norm", "layer_norm"]


class ResidualStack(nn.Module):
    """x + dropout(layer(norm(x))) for each layer, between a front end and a last norm: (B, F, T) -> (B, d_model, T').

    Args:
        in_channels: F, features a frame, from the feature extractor.
        d_model: channels between the layers.
        num_layers: how many.
        make_layer: a layer (B, T, d_model), lengths -> (B, T, d_model), with an `out_proj`.
        subsampling: input frames for each frame of the stack: 1, 2 or 4.
        norm: "rms_norm" or "layer_norm", before each layer and at the end.
        dropout: of what a layer adds.
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        d_model: PositiveInt,
        num_layers: PositiveInt,
        make_layer: Callable[[], nn.Module],
        subsampling: Literal[1, 2, 4],
        norm: Norm,
        dropout: Fraction,
    ) -> None:
        super().__init__()
        make_norm = nn.RMSNorm if norm == "rms_norm" else nn.LayerNorm
        self.out_channels = d_model
        self.subsampling = Subsampling(in_channels, d_model, subsampling)
        self.norms = nn.ModuleList(make_norm(d_model, eps=1e-5) for _ in range(num_layers))
        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.last_norm = make_norm(d_model, eps=1e-5)
        with torch.no_grad():
            for layer in self.layers:
                # As many terms as layers add up in the residual stream; each starts that much smaller (GPT-2).
                layer.out_proj.weight /= num_layers**0.5  # type: ignore[union-attr]

    @property
    def layers_from_input(self) -> list[Layer]:
        layers = list(zip(self.norms, self.layers, strict=True))
        return [*layers[:-1], (*layers[-1], self.last_norm)]

    def forward(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """features (B, in_channels, T) and lengths (B,), in frames (None: all T), -> (B, d_model, T'), lengths'."""
        hidden, lengths = self.subsampling(features, lengths)
        x = at_least_float32(hidden.mT)  # what many small terms are added to
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + self.dropout(layer(norm(x), lengths))
        return self.last_norm(x).mT, lengths


class MambaEncoder(ResidualStack):
    """Mamba layers, each frame hearing the past alone; see ResidualStack and Mamba for the arguments."""

    layer: type[nn.Module] = Mamba

    def __init__(
        self,
        in_channels: PositiveInt,
        num_layers: PositiveInt,
        d_model: PositiveInt,
        d_state: PositiveInt,
        d_conv: PositiveInt,
        expand: PositiveInt,
        subsampling: Literal[1, 2, 4],
        norm: Norm,
        dropout: Fraction,
        backend: Backend,
    ) -> None:
        def make() -> nn.Module:
            return self.layer(d_model, d_state, d_conv, expand, backend)

        super().__init__(in_channels, d_model, num_layers, make, subsampling, norm, dropout)


class BiMambaEncoder(MambaEncoder):
    """Bidirectional Mamba layers; see MambaEncoder for the arguments."""

    layer = BiMamba


class Mamba2Encoder(ResidualStack):
    """Mamba-2 layers, each frame hearing the past alone; see ResidualStack and Mamba2 for the arguments."""

    def __init__(
        self,
        in_channels: PositiveInt,
        num_layers: PositiveInt,
        d_model: PositiveInt,
        d_state: PositiveInt,
        d_conv: PositiveInt,
        expand: PositiveInt,
        headdim: PositiveInt,
        ngroups: PositiveInt,
        subsampling: Literal[1, 2, 4],
        norm: Norm,
        dropout: Fraction,
        backend: Backend,
    ) -> None:
        def layer() -> nn.Module:
            return Mamba2(d_model, d_state, d_conv, expand, headdim, ngroups, backend)

        super().__init__(in_channels, d_model, num_layers, layer, subsampling, norm, dropout)
