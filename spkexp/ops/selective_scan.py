"""The selective scan of Mamba (S6): Gu and Dao, Mamba: Linear-time sequence modeling with selective state spaces, 2023.

Shape letters, as in mamba-ssm: b utterances, d channels, l steps, n states, g groups of channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spkexp.ops import cpu_scan, cuda_scan, torch_scan
from spkexp.ops.backend import Backend, FusedKernel
from spkexp.ops.counting import declared, scan_macs
from spkexp.ops.precision import without_autocast

_fused = FusedKernel("selective scan", {"cuda": cuda_scan.load, "cpu": cpu_scan.load})


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """y_t = C_t h_t + D u_t with h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t and h_0 = 0 (eq. 2 and 4), times SiLU(z_t).

    What mamba-ssm's `selective_scan_fn` computes, with the same shapes; computed in float32, or in float64 for float64.

    Args:
        u: (b, d, l), the input. A transposed (b, l, d) is what the CPU works on and costs no copy there.
        delta: (b, d, l), the step size Δ, before bias and softplus.
        A: (d, n), negative in Mamba.
        B: (b, n, l) or (b, g, n, l), where g divides d: channels i d/g to (i + 1) d/g share group i.
        C: like B.
        D: (d,), the skip connection.
        z: (b, d, l), the gate.
        delta_bias: (d,), added to delta.
        delta_softplus: Δ = softplus(delta + delta_bias).
        backend: "fused": mamba-ssm's kernel on CUDA, our compiled one on a CPU; "torch"; "auto": fused if available.

    Returns:
        (b, d, l), in u's type.

    Raises:
        ValueError: shapes that do not fit.
        UserError: "fused" where no kernel can be had; the message says why.
    """
    B, C = (x.unsqueeze(1) if x.ndim == 3 else x for x in (B, C))
    _check_shapes(u, delta, A, B, C, z)
    kernel = _fused.choose(backend, u)
    (b, d, l), n = u.shape, A.shape[1]
    with without_autocast(u.device), declared("selective_scan", scan_macs(b, d, l, n)):
        if kernel is not None and u.device.type == "cuda":
            return kernel(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        dtype = torch.promote_types(u.dtype, torch.float32)
        x, step = u.to(dtype), delta.to(dtype)
        if delta_bias is not None:
            step = step + delta_bias.to(dtype)[:, None]
        if delta_softplus:
            step = F.softplus(step)
        y = (kernel or torch_scan.scan)(x, step, A.to(dtype), B.to(dtype), C.to(dtype))
        if D is not None:
            y = torch.addcmul(y, x, D.to(dtype)[:, None])
        if z is not None:
            y = y * F.silu(z.to(dtype))
        return y.to(u.dtype)


def _check_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> None:
    b, d, l = u.shape
    n = A.shape[1]
    expected = {"delta": (delta, (b, d, l)), "A": (A, (d, n))}
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[1]
        expected[name] = (x, (b, groups, n, l))
        if groups not in (1, max(B.shape[1], C.shape[1])):
            raise ValueError(f"selective_scan: B has {B.shape[1]} and C {C.shape[1]} groups; give both as many, or one")
        if d % groups:
            raise ValueError(f"selective_scan: {name} has {groups} groups, which do not divide {d} channels")
    if z is not None:
        expected["z"] = (z, (b, d, l))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"selective_scan: {name} is {tuple(tensor.shape)}, expected {shape} for u {(b, d, l)}")
