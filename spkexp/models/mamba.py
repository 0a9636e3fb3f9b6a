"""Mamba, Mamba-2 and a bidirectional Mamba: the layers that mix time, with the official layers' parameters.

Gu and Dao, Mamba: Linear-time sequence modeling with selective state spaces, 2023, figure 3; Dao and Gu,
Transformers are SSMs, 2024, figure 6. Names and shapes of the parameters are those of mamba_ssm.Mamba and
mamba_ssm.Mamba2: their state_dict loads as it is, and a checkpoint does not depend on the backend that trained it.

Shapes: x (B, T, d_model); Di = expand d_model inner channels, N states, R = ⌈d_model / 16⌉ the rank of the step size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.models.layers import frame_mask
from spkexp.models.pooling import at_least_float32
from spkexp.ops.backend import Backend
from spkexp.ops.causal_conv import causal_conv
from spkexp.ops.selective_scan import selective_scan
from spkexp.ops.ssd import ssd
from spkexp.types import PositiveInt

# Steps Δ at the beginning: log-uniform between these, as in the official code.
_STEP_MIN, _STEP_MAX, _STEP_FLOOR = 1e-3, 0.1, 1e-4


class SelectiveSSM(nn.Module):
    """Causal convolution and selective scan, the part of Mamba that sees time: (B, T, Di) -> (B, T, Di).

    Args:
        channels: Di.
        d_state: N.
        d_conv: taps of the convolution.
        dt_rank: R.
        backend: of the scan and the convolution.
    """

    def __init__(
        self, channels: PositiveInt, d_state: PositiveInt, d_conv: PositiveInt, dt_rank: PositiveInt, backend: Backend
    ) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.sizes = [dt_rank, d_state, d_state]
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1)
        self.x_proj = nn.Linear(channels, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, channels)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_step_bias(channels))
        # S4D-real: A = -1 ... -N in every channel.
        self.A_log = without_decay(torch.arange(1.0, d_state + 1).log().repeat(channels, 1))
        self.D = without_decay(torch.ones(channels))

    def forward(self, x: Tensor, gate: Tensor | None, valid: Tensor | None) -> Tensor:
        """x (B, T, Di); gate (B, T, Di) or None; valid (B, T, 1) bool or None (all): frames that are no padding.

        Only a scan that meets padding before the utterance needs `valid`; behind it nothing can leak.
        """
        if valid is not None:
            x = x.masked_fill(~valid, 0.0)
        u = causal_conv(x, self.conv1d.weight, self.conv1d.bias, self.backend)
        if valid is not None:
            u = u.masked_fill(~valid, 0.0)  # the convolution's bias would set the state in motion
        dt, b, c = self.x_proj(u).split(self.sizes, dim=2)
        y = selective_scan(
            u.mT,
            F.linear(dt, self.dt_proj.weight).mT,
            -at_least_float32(self.A_log).exp(),
            b.mT,
            c.mT,
            self.D,
            None if gate is None else gate.mT,
            self.dt_proj.bias,
            delta_softplus=True,
            backend=self.backend,
        )
        return y.mT


class Mamba(SelectiveSSM):
    """The Mamba layer: (B, T, d_model) -> (B, T, d_model).

    Args:
        d_model: channels of input and output.
        d_state: N (official 16).
        d_conv: taps of the convolution (official 4).
        expand: Di / d_model (official 2).
        backend: "auto", "fused" or "torch": see `spkexp.ops`.
    """

    def __init__(
        self, d_model: PositiveInt, d_state: PositiveInt, d_conv: PositiveInt, expand: PositiveInt, backend: Backend
    ) -> None:
        super().__init__(expand * d_model, d_state, d_conv, math.ceil(d_model / 16), backend)
        self.in_proj = nn.Linear(d_model, 2 * expand * d_model, bias=False)  # [x, gate]
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:  # type: ignore[override]
        """x (B, T, d_model) -> (B, T, d_model). What lies behind a row's length never reaches a frame before it."""
        x, gate = self.in_proj(x).chunk(2, dim=2)
        return self.out_proj(super().forward(x, gate, None))


class BiMamba(nn.Module):
    """A Mamba that hears the future too: shared projections and gate, for each direction its own scan.

    The two directions are added before the gate, as in Vision Mamba (Zhu et al. 2024, algorithm 1). Arguments as
    for Mamba.
    """

    def __init__(
        self, d_model: PositiveInt, d_state: PositiveInt, d_conv: PositiveInt, expand: PositiveInt, backend: Backend
    ) -> None:
        super().__init__()
        channels, rank = expand * d_model, math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * channels, bias=False)  # [x, gate]
        self.forwards = SelectiveSSM(channels, d_state, d_conv, rank, backend)
        self.backwards = SelectiveSSM(channels, d_state, d_conv, rank, backend)
        self.out_proj = nn.Linear(channels, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, T, d_model), lengths (B,) or None (all T) -> (B, T, d_model)."""
        x, gate = self.in_proj(x).chunk(2, dim=2)
        # Backwards a row begins with its padding: silent, it leaves the state at zero, so that the flip is exact.
        valid = None if lengths is None else frame_mask(lengths, x.shape[1]).mT.flip(1)
        y = self.forwards(x, None, None) + self.backwards(x.flip(1), None, valid).flip(1)
        return self.out_proj(y * F.silu(gate))


class Mamba2(nn.Module):
    """The Mamba-2 layer: (B, T, d_model) -> (B, T, d_model).

    Args:
        d_model: channels of input and output.
        d_state: N (official 128).
        d_conv: taps of the convolution (official 4).
        expand: Di / d_model (official 2).
        headdim: channels of a head, which share one decay (official 64); must divide Di.
        ngroups: groups of heads that share B and C (official 1); must divide the number of heads.
        backend: "auto", "fused" or "torch": see `spkexp.ops`.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        d_state: PositiveInt,
        d_conv: PositiveInt,
        expand: PositiveInt,
        headdim: PositiveInt,
        ngroups: PositiveInt,
        backend: Backend,
    ) -> None:
        super().__init__()
        channels = expand * d_model
        if channels % headdim or channels // headdim % ngroups:
            raise ValueError(
                f"Mamba2: expand * d_model = {channels} must be a multiple of headdim={headdim}, and the number of "
                f"heads one of ngroups={ngroups}"
            )
        self.backend: Backend = backend
        self.headdim, self.ngroups = headdim, ngroups
        heads, shared = channels // headdim, ngroups * d_state
        self.sizes = [channels, channels + 2 * shared, heads]
        self.inner_sizes = [channels, shared, shared]
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)  # [gate, x, B, C, dt]
        self.conv1d = nn.Conv1d(self.sizes[1], self.sizes[1], d_conv, groups=self.sizes[1], padding=d_conv - 1)
        self.dt_bias = without_decay(initial_step_bias(heads))
        self.A_log = without_decay(torch.empty(heads).uniform_(1.0, 16.0).log())
        self.D = without_decay(torch.ones(heads))
        self.norm = GatedRMSNorm(channels, ngroups)
        self.out_proj = nn.Linear(channels, d_model, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, T, d_model) -> (B, T, d_model). What lies behind a row's length never reaches a frame before it."""
        gate, xbc, dt = self.in_proj(x).split(self.sizes, dim=2)
        xbc = causal_conv(xbc, self.conv1d.weight, self.conv1d.bias, self.backend)
        x, b, c = xbc.split(self.inner_sizes, dim=2)
        y = ssd(
            x.unflatten(2, (-1, self.headdim)),
            dt,
            -at_least_float32(self.A_log).exp(),
            b.unflatten(2, (self.ngroups, -1)),
            c.unflatten(2, (self.ngroups, -1)),
            self.D,
            self.dt_bias,
            dt_softplus=True,
            backend=self.backend,
        )
        return self.out_proj(self.norm(y.flatten(2), gate))


class GatedRMSNorm(nn.Module):
    """w y SiLU(gate) / rms(y SiLU(gate)), the root mean square over each group of channels, in float32."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.groups = groups

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        dtype = torch.promote_types(y.dtype, torch.float32)
        x = y.to(dtype) * F.silu(gate.to(dtype))
        x = F.rms_norm(x.unflatten(2, (self.groups, -1)), [x.shape[2] // self.groups], eps=1e-5).flatten(2)
        return (x * self.weight).to(y.dtype)


def initial_step_bias(count: int) -> Tensor:
    """softplus⁻¹ of steps that are log-uniform in [1e-3, 0.1]: (count,)."""
    step = torch.exp(torch.rand(count) * math.log(_STEP_MAX / _STEP_MIN) + math.log(_STEP_MIN)).clamp(min=_STEP_FLOOR)
    return step + torch.log(-torch.expm1(-step))


def without_decay(value: Tensor) -> nn.Parameter:
    """A parameter that weight decay leaves alone, as the official code asks: shrinking it has no meaning of its own."""
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
