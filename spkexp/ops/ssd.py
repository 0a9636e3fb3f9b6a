"""The state-space duality of Mamba-2: Dao and Gu, Transformers are SSMs, 2024, section 6 and listing 1.

Shape letters, as in mamba-ssm: b utterances, l steps, h heads, p channels a head, n states, g groups of heads; and
q steps in each of c chunks.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops import scan

from spkexp.ops.backend import Backend, FusedKernel, Unavailable
from spkexp.ops.counting import declared, scan_macs
from spkexp.ops.precision import without_autocast

# Steps in a chunk. The products inside one grow with it, the states handed from one to the next shrink.
_CHUNK = 64
_CHUNK_FUSED = 256


def _load_cuda() -> Callable[..., Tensor]:
    """mamba-ssm's Triton kernels alone: the package's own __init__ asks for transformers, tilelang and more."""
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None:
        raise Unavailable("mamba-ssm is not installed; tools/build_mamba.sh builds it")
    imported_before = "mamba_ssm" in sys.modules
    if not imported_before:
        sys.modules["mamba_ssm"] = importlib.util.module_from_spec(spec)  # has the path of the package, runs no code
    try:
        module = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except ImportError as error:
        raise Unavailable(
            f"mamba-ssm's Triton kernels cannot be imported ({error}); tools/build_mamba.sh installs them"
        ) from error
    finally:
        if not imported_before:  # an import of the whole package by others must still run its __init__
            for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
                del sys.modules[name]
    function: Callable[..., Tensor] = module.mamba_chunk_scan_combined
    return function


_fused = FusedKernel("state-space duality", {"cuda": _load_cuda})


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """y_t = C_t h_t + D x_t with h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_tᵀ and h_0 = 0, A one number a head.

    What mamba-ssm's `mamba_chunk_scan_combined` computes, with the same shapes. "torch" computes in float32, or in
    float64 for float64, whatever the type of x. "fused" multiplies matrices of x's type and adds up in float32; its
    products of float32 matrices are TF32 (ten bits of mantissa), which no setting of torch turns off.

    Args:
        x: (b, l, h, p), the input.
        dt: (b, l, h), the step size Δ, before bias and softplus.
        A: (h,), negative in Mamba-2.
        B: (b, l, g, n), where g divides h: heads i h/g to (i + 1) h/g share group i.
        C: like B.
        D: (h,), the skip connection.
        dt_bias: (h,), added to dt.
        dt_softplus: Δ = softplus(dt + dt_bias).
        backend: "fused": mamba-ssm's kernels on CUDA; "torch": matrix products in chunks; "auto": fused if available,
            and for float32 only where torch may use TF32 too (`torch.backends.cuda.matmul.fp32_precision`).

    Returns:
        (b, l, h, p), in x's type.

    Raises:
        ValueError: shapes that do not fit.
        UserError: "fused" where no kernel can be had; the message says why.
    """
    _check_shapes(x, dt, A, B, C)
    exact = x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    rather_torch = "the kernel would multiply float32 as TF32" if x.device.type == "cuda" and exact else ""
    kernel = _fused.choose(backend, x, rather_torch)
    (b, l, h, p), n = x.shape, B.shape[3]
    with without_autocast(x.device), declared("ssd", scan_macs(b, h * p, l, n)):
        if kernel is not None:
            B, C = B.to(x.dtype), C.to(x.dtype)
            return kernel(x, dt, A, B, C, _CHUNK_FUSED, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus)
        dtype = torch.promote_types(x.dtype, torch.float32)
        step = dt.to(dtype)
        if dt_bias is not None:
            step = step + dt_bias.to(dtype)
        if dt_softplus:
            step = F.softplus(step)
        y = _chunked(x.to(dtype), step, A.to(dtype), B.to(dtype), C.to(dtype))
        if D is not None:
            y = y + x.to(dtype) * D.to(dtype)[:, None]
        return y.to(x.dtype)


def _chunked(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Inside a chunk a masked matrix product, like attention; between chunks a recurrence of their last states."""
    length, groups = x.shape[1], B.shape[2]
    exported = torch.compiler.is_exporting()
    q = _CHUNK if exported else min(_CHUNK, length)
    # Zero steps at the end change nothing before it, and their own outputs are cut off.
    x, step, B, C = (_in_chunks(v, q) for v in (x, step, B, C))
    x = (x * step.unsqueeze(-1)).permute(0, 1, 3, 2, 4).unflatten(2, (groups, -1))  # (b, c, g, h / g, q, p)
    B, C = (v.permute(0, 1, 3, 2, 4) for v in (B, C))  # (b, c, g, q, n)
    # The exponents are differences of a long sum: in float64, or its rounding would enter every weight.
    exponent = (step.double() * A.double()).cumsum(dim=2).permute(0, 1, 3, 2).unflatten(2, (groups, -1))
    later = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
    between = (exponent.unsqueeze(-1) - exponent.unsqueeze(-2)).masked_fill(later, float("-inf")).to(x.dtype)
    weight = (C @ B.mT).unsqueeze(3) * between.exp()  # (b, c, g, h / g, q, q)
    y = weight @ x
    if exported or y.shape[1] > 1:
        to_end = (exponent[..., -1:] - exponent).to(x.dtype).exp()
        from_start = exponent.to(x.dtype).exp()
        entering = _entering((x * to_end.unsqueeze(-1)).mT @ B.unsqueeze(3), from_start[..., -1])
        y = y + (C.unsqueeze(3) @ entering.mT) * from_start.unsqueeze(-1)
    y = y.flatten(2, 3).permute(0, 1, 3, 2, 4)
    return y.flatten(1, 2)[:, :length]


def _in_chunks(x: Tensor, q: int) -> Tensor:
    """(b, l, ...) -> (b, c, q, ...), zeros behind l."""
    missing = -x.shape[1] % q
    if torch.compiler.is_exporting():  # with one more, for a graph made with several chunks serves no single one
        missing = missing + q
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
    return x.unflatten(1, (-1, q))


def _entering(added: Tensor, decay: Tensor) -> Tensor:
    """The state before each chunk, from what each adds (b, c, g, h / g, p, n) and its decay (b, c, g, h / g)."""
    state = torch.zeros_like(added[:, 0])
    if torch.compiler.is_exporting():  # for any number of chunks, and more than one
        _, exported = scan(_advance, state, (added.movedim(1, 0), decay.movedim(1, 0)))
        return exported.movedim(0, 1)
    states = [state]
    for state_added, factor in zip(added[:, :-1].unbind(1), decay[:, :-1].unbind(1), strict=True):
        state = torch.addcmul(state_added, state, factor[..., None, None])
        states.append(state)
    return torch.stack(states, dim=1)


def _advance(state: Tensor, chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(the state after a chunk, the state before it), from what it adds and its decay."""
    added, decay = chunk
    return added + state * decay[..., None, None], state.clone()


def _check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    b, l, h, _ = x.shape
    g, n = B.shape[2:]
    if h % g:
        raise ValueError(f"ssd: B has {g} groups, which do not divide {h} heads")
    expected = {"dt": (dt, (b, l, h)), "A": (A, (h,)), "B": (B, (b, l, g, n)), "C": (C, (b, l, g, n))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"ssd: {name} is {tuple(tensor.shape)}, expected {shape} for x {tuple(x.shape)}")
