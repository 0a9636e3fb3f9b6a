"""The short causal convolution before a state-space model: each channel with its own few taps, then SiLU."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from spkexp.ops.backend import Backend, FusedKernel, Unavailable


def _load_cuda() -> Callable[..., Tensor]:
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError as error:
        raise Unavailable(f"causal-conv1d cannot be imported ({error}); tools/build_mamba.sh builds it") from error
    return causal_conv1d_fn


_fused = FusedKernel("causal convolution", {"cuda": _load_cuda})


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, backend: Backend = "auto") -> Tensor:
    """SiLU(bias + Σ_j weight_j x_{t-k+1+j}), zeros before the first frame.

    Args:
        x: (b, l, d).
        weight: (d, 1, k), of an nn.Conv1d with d groups.
        bias: (d,).
        backend: "fused": the package causal-conv1d on CUDA; "torch"; "auto". There is no kernel of ours for a CPU, so
            that "fused" asks for one on CUDA alone.

    Returns:
        (b, l, d).
    """
    kernel = _fused.choose("auto" if backend == "fused" and x.device.type == "cpu" else backend, x)
    if kernel is not None:
        return kernel(x.mT, weight.squeeze(1).to(x.dtype), bias.to(x.dtype), activation="silu").mT
    # As an image of height one, (b, d, 1, l), whose channels lie innermost: three times faster on a CPU than conv1d.
    image = F.pad(x, (0, 0, weight.shape[2] - 1, 0)).mT.unsqueeze(2)
    return F.silu(F.conv2d(image, weight.unsqueeze(2), bias, groups=weight.shape[0])).squeeze(2).mT
