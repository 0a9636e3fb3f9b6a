"""The fused kernels and the torch backends on a GPU, each against the torch backend in float64 on the CPU.

That one is tested against the recurrences themselves in test_selective_scan.py and test_ssd.py. Errors are the largest
difference as a share of the largest value.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from spkexp.ops import causal_conv as conv_module
from spkexp.ops import selective_scan as scan_module
from spkexp.ops import ssd as ssd_module
from spkexp.ops.backend import FusedKernel
from spkexp.ops.causal_conv import causal_conv
from spkexp.ops.selective_scan import selective_scan
from spkexp.ops.ssd import ssd
from tests.test_selective_scan import inputs as scan_inputs
from tests.test_ssd import inputs as ssd_inputs

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BACKENDS = ["fused", "torch"]
DTYPES = [torch.float32, torch.bfloat16]
Operation = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    """Products of float32 in float32: what the errors below are about."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def need(kernel: FusedKernel, backend: str) -> None:
    """Skip where "fused" cannot be had, with the reason and the remedy: tools/build_mamba.sh."""
    if backend == "fused":
        found, reason = kernel._load(DEVICE)
        if found is None:
            pytest.skip(reason)


def results(operation: Operation, given: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
    """The output and the gradients of all that is given, in float64 on the CPU."""
    leaves = {key: value.detach().clone(memory_format=torch.preserve_format) for key, value in given.items()}
    y = operation(**{key: value.requires_grad_() for key, value in leaves.items()}, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()  # the same in every type
    gradients = torch.autograd.grad(y, list(leaves.values()), weight.to(y.device, y.dtype))
    everything = {"y": y, **dict(zip(leaves, gradients, strict=True))}
    return {key: value.detach().cpu().double() for key, value in everything.items()}


def assert_close(
    operation: Operation,
    given: dict[str, Tensor],
    allowed: tuple[float, float],
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    **options: object,
) -> None:
    """given: on the CPU, in the types to compute with; prepare: lays what is on the device out in memory."""
    backend = options.pop("backend")
    exact = results(operation, {key: value.double() for key, value in given.items()}, backend="torch", **options)
    on_device = {key: prepare(value.to(DEVICE)) for key, value in given.items()}
    got = results(operation, on_device, backend=backend, **options)
    errors = {key: error(got[key], exact[key]) for key in exact}
    print(errors)  # pytest -rP shows how far the limits are
    assert all(got[key].isfinite().all() for key in got), errors
    assert errors.pop("y") <= allowed[0], errors
    assert max(errors.values()) <= allowed[1], errors


def error(got: Tensor, exact: Tensor) -> float:
    largest = float(exact.abs().max())
    return float((got - exact).abs().max()) / largest if largest else float(got.abs().max())


# --- the selective scan

SCANS = [  # b, d, l, n, groups
    (2, 24, 1, 16, None),
    (2, 24, 7, 16, None),
    (2, 20, 257, 16, None),  # channels that are no multiple of eight
    (1, 1, 65, 1, None),
    (2, 12, 257, 3, 2),
    (3, 64, 300, 32, 4),
    (2, 32, 512, 16, None),  # a length for which the kernel loads whole vectors
    (1, 16, 2100, 16, None),  # more than one chunk of the kernel, which has 2048 steps
]
# The kernel is compiled with --use_fast_math: exponentials are good to 2e-6 or so.
SCAN_ALLOWED = {torch.float32: (1e-4, 3e-4), torch.bfloat16: (2**-7, 2**-6)}


def scan_given(
    b: int, d: int, l: int, n: int, groups: int | None, dtype: torch.dtype, extras: str
) -> tuple[dict[str, Tensor], dict[str, object]]:
    given = scan_inputs(b, d, l, n, groups, 0.5)
    if "bias" in extras:
        given["delta"] = given["delta"] * 4.0 - 4.0
        given["delta_bias"] = torch.linspace(-2.0, 1.0, d)
    if "D" not in extras:
        del given["D"]
    if "z" not in extras:
        del given["z"]
    varying = {"u", "delta", "B", "C", "z"}
    given = {key: value.to(dtype) if key in varying else value for key, value in given.items()}
    return given, {"delta_softplus": "bias" in extras}


@pytest.mark.parametrize("extras", ["D z bias", "D", "z", ""])
@pytest.mark.parametrize(("b", "d", "l", "n", "groups"), SCANS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_selective_scan(
    backend: str, dtype: torch.dtype, b: int, d: int, l: int, n: int, groups: int | None, extras: str
) -> None:
    need(scan_module._fused, backend)
    given, options = scan_given(b, d, l, n, groups, dtype, extras)
    assert_close(selective_scan, given, SCAN_ALLOWED[dtype], backend=backend, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selective_scan_of_what_the_models_hand_over(dtype: torch.dtype) -> None:
    """Transposed views, and as many groups of C as of channels but one of B."""
    need(scan_module._fused, "fused")
    given, options = scan_given(3, 24, 101, 16, None, dtype, "D z bias")
    assert_close(
        selective_scan,
        given,
        SCAN_ALLOWED[dtype],
        prepare=lambda x: x.mT.contiguous().mT if x.ndim == 3 else x,
        backend="fused",
        **options,
    )
    given["C"] = torch.randn(3, 4, 16, 101, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert_close(selective_scan, given, SCAN_ALLOWED[dtype], backend="fused", **options)


# --- the state-space duality. Heads of 64 channels and 64 states, as in conf/model/mamba2.yaml: Triton tries its
# configurations again for each size of those and each type, which takes a minute.

SSDS = [(2, 1, 4, 1), (2, 7, 4, 1), (2, 257, 4, 2), (1, 600, 6, 3), (2, 256, 2, 1)]  # b, l, h, g
SSD_ALLOWED = {
    # TF32 on the fused backend, whatever torch is told; bfloat16 matrices on it, float32 on the torch backend.
    ("fused", torch.float32): (3e-3, 1e-2),
    ("fused", torch.bfloat16): (2e-2, 5e-2),
    ("torch", torch.float32): (1e-5, 1e-4),
    ("torch", torch.bfloat16): (2**-7, 2**-6),
}


def ssd_given(b: int, l: int, h: int, g: int, dtype: torch.dtype) -> dict[str, Tensor]:
    given = ssd_inputs(b, l, h, 64, g, 64, 0.1)
    return {key: value.to(dtype) if key in ("x", "B", "C", "dt") else value for key, value in given.items()}


@pytest.mark.parametrize("extras", ["D bias", ""])
@pytest.mark.parametrize(("b", "l", "h", "g"), SSDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ssd(backend: str, dtype: torch.dtype, b: int, l: int, h: int, g: int, extras: str) -> None:
    need(ssd_module._fused, backend)
    given = ssd_given(b, l, h, g, dtype)
    if not extras:
        del given["D"]
    else:
        given["dt_bias"] = torch.linspace(-4.0, -1.0, h)
    assert_close(ssd, given, SSD_ALLOWED[backend, dtype], backend=backend, dt_softplus="bias" in extras)


def test_ssd_in_float32_is_exact_unless_tf32_is_allowed() -> None:
    given = {key: value.to(DEVICE) for key, value in ssd_given(2, 70, 4, 2, torch.float32).items()}
    assert torch.equal(ssd(**given, backend="auto"), ssd(**given, backend="torch"))


# --- the causal convolution


CONVOLUTIONS = [(2, 1, 24), (2, 7, 24), (3, 257, 64), (2, 257, 20), (2, 7, 1), (2, 8, 12), (1, 1, 20)]  # b, l, d


@pytest.mark.parametrize("taps", [2, 4, 5])  # there is no fused kernel for 5
@pytest.mark.parametrize(("b", "l", "d"), CONVOLUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_conv(backend: str, dtype: torch.dtype, b: int, l: int, d: int, taps: int) -> None:
    """Also for a view whose rows begin anywhere, as Mamba-2's have, and for gradients that lie like that."""
    need(conv_module._fused, backend)
    generator = torch.Generator().manual_seed(0)
    given = {
        "x": torch.randn(b, l, d, generator=generator).to(dtype),
        "weight": torch.randn(d, 1, taps, generator=generator),
        "bias": torch.randn(d, generator=generator),
    }

    def view_of_more(**arguments: Tensor) -> Tensor:
        x = arguments.pop("x")
        wide = torch.cat([x[..., :1], x, x], dim=2)
        y = causal_conv(wide[..., 1 : 1 + d], **arguments)  # type: ignore[arg-type]
        return torch.cat([x[..., :1] * 0, y], dim=2)

    allowed = (1e-6, 1e-5) if dtype == torch.float32 else (2**-7, 2**-6)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert_close(causal_conv, given, allowed, backend=backend)
        assert_close(view_of_more, given, allowed, backend=backend)
