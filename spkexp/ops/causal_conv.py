"""The short causal convolution before a state-space model: each channel with its own few taps, then SiLU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spkexp.ops.backend import Backend, FusedKernel, Unavailable


def _load_cuda() -> Callable[..., Tensor]:
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError as error:
        raise Unavailable(f"causal-conv1d cannot be imported ({error}); tools/build_mamba.sh builds it") from error
    return causal_conv1d_fn


_FUSED_TAPS = range(2, 5)

_fused = FusedKernel("causal convolution", {"cuda": _load_cuda})


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, backend: Backend = "auto") -> Tensor:
    """SiLU(bias + Σ_j weight_j x_{t-k+1+j}), zeros before the first frame.

    Args:
        x: (b, l, d).
        weight: (d, 1, k), of an nn.Conv1d with d groups.
        bias: (d,).
        backend: "fused": the package causal-conv1d on CUDA, which has kernels for 2 to 4 taps; "torch"; "auto". There
            is no other kernel, so that "fused" asks for one on CUDA and for 2 to 4 taps alone.

    Returns:
        (b, l, d).
    """
    taps = weight.shape[2]
    if taps not in _FUSED_TAPS:
        backend = "torch"
    kernel = _fused.choose("auto" if backend == "fused" and x.device.type == "cpu" else backend, x)
    if kernel is not None:
        y: Tensor = kernel(_laid_out(x).mT, weight.squeeze(1).contiguous(), bias, activation="silu").mT
        if y.requires_grad:
            y.register_hook(_laid_out)
        return y
    # As an image of height one, (b, d, 1, l), whose channels lie innermost: three times faster on a CPU than conv1d.
    image = F.pad(x, (0, 0, taps - 1, 0)).mT.unsqueeze(2)
    return F.silu(F.conv2d(image, weight.unsqueeze(2), bias, groups=weight.shape[0])).squeeze(2).mT


def _laid_out(x: Tensor) -> Tensor:
    """x (b, l, d), or a gradient, as causal-conv1d wants it in memory: a copy unless it is so already.

    Channels innermost, every frame at a multiple of eight elements; where eight does not divide d, frames innermost.
    """
    if x.shape[2] % 8:
        return x.mT.clone(memory_format=torch.contiguous_format).mT
    aligned = all(number % 8 == 0 for number in (x.stride(0), x.stride(1), x.storage_offset()))
    return x if x.stride(2) == 1 and aligned else x.clone(memory_format=torch.contiguous_format)
