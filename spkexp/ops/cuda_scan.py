"""The selective scan by mamba-ssm's CUDA kernel, called directly: importing the package would need much more."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spkexp.errors import UserError
from spkexp.ops.backend import Unavailable


def load() -> Callable[..., Tensor]:
    """`selective_scan` of all its arguments but the backend. Raises Unavailable where mamba-ssm is not installed."""
    try:
        import selective_scan_cuda  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"mamba-ssm's compiled kernel cannot be imported ({error}); tools/build_mamba.sh builds it"
        ) from error

    def scan(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> Tensor:
        _refuse_if_deterministic(u, delta, A, B, C, D, z, delta_bias)
        # The kernel wants one type for what varies in time and float32 for what does not; it computes in float32.
        groups = max(B.shape[1], C.shape[1])  # and B and C in as many groups as each other
        B, C = (x.expand(-1, groups, -1, -1) for x in (B, C))
        u, delta, B, C = (x.to(u.dtype).contiguous() for x in (u, delta, B, C))
        z = None if z is None else z.to(u.dtype).contiguous()
        A = A.float().contiguous()
        D, delta_bias = (None if x is None else x.float().contiguous() for x in (D, delta_bias))
        y: Tensor = _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return y

    return scan


def _refuse_if_deterministic(*tensors: Tensor | None) -> None:
    """Raise UserError where a gradient is asked for and torch is to be deterministic: the kernel adds up by atomics."""
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if wanted and torch.are_deterministic_algorithms_enabled():
        raise UserError(
            "selective scan: mamba-ssm's kernel has no deterministic implementation of its gradient, whose sums have "
            "another order in each run; set model.encoder.backend=torch, or trainer.deterministic=false"
        )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> Tensor:
        import selective_scan_cuda

        out, states, *gated = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        ctx.delta_softplus = delta_softplus
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, out if z is not None else None)
        return gated[0] if z is not None else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        import selective_scan_cuda

        u, delta, A, B, C, D, z, delta_bias, states, out = ctx.saved_tensors
        du, ddelta, dA, dB, dC, dD, dbias, *dz = selective_scan_cuda.bwd(
            u, delta, A, B, C, D, z, delta_bias, grad_y.contiguous(), states, out, None, ctx.delta_softplus, False
        )
        return (
            du,
            ddelta,
            dA,
            dB,
            dC,
            None if D is None else dD,
            None if z is None else dz[0],
            None if delta_bias is None else dbias,
            None,
        )
