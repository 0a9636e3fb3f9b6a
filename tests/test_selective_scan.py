"""The selective scan of every backend that runs here, against the recurrence written down in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spkexp.errors import UserError
from spkexp.ops import cpu_scan
from spkexp.ops.backend import FusedKernel, Unavailable
from spkexp.ops.selective_scan import selective_scan

BACKENDS = ["torch", "fused"]


def recurrence(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Equations 2a and 2b of Gu and Dao 2023, one step and one group at a time."""
    if delta_bias is not None:
        delta = delta + delta_bias[None, :, None]
    if delta_softplus:
        delta = torch.log1p(torch.exp(delta))
    B, C = (x if x.ndim == 4 else x[:, None] for x in (B, C))
    groups = B.shape[1]
    per_group = u.shape[1] // groups
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    ys = []
    for t in range(u.shape[2]):
        b, c = (x[..., t].repeat_interleave(per_group, dim=1) for x in (B, C))  # (b, d, n)
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * b
        ys.append((h * c).sum(dim=2))
    y = torch.stack(ys, dim=2)
    if D is not None:
        y = y + D[:, None] * u
    return y if z is None else y * z * torch.sigmoid(z)


def inputs(b: int, d: int, l: int, n: int, groups: int | None, largest_step: float) -> dict[str, Tensor]:
    """Everything but the step size's bias and softplus; steps are uniform up to `largest_step`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    variable = (b, n, l) if groups is None else (b, groups, n, l)
    return {
        "u": normal(b, d, l),
        "delta": torch.rand(b, d, l, generator=generator) * largest_step,
        "A": -torch.arange(1.0, n + 1).expand(d, n) * torch.rand(d, n, generator=generator),
        "B": normal(*variable),
        "C": normal(*variable),
        "D": normal(d),
        "z": normal(b, d, l),
    }


def value_and_gradients(
    function: Callable[..., Tensor], given: dict[str, Tensor], **options: object
) -> dict[str, Tensor]:
    leaves = {key: value.detach().clone().requires_grad_() for key, value in given.items()}
    y = function(**leaves, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    gradients = torch.autograd.grad(y, list(leaves.values()), weight)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_exact(given: dict[str, Tensor], **options: object) -> None:
    """Largest difference of each backend from float64, as a share of the largest value: forward, gradients."""
    exact = value_and_gradients(recurrence, {k: v.double() for k, v in given.items()}, **options)
    for backend in BACKENDS:
        got = value_and_gradients(selective_scan, given, backend=backend, **options)
        found = {key: float((got[key] - exact[key]).abs().max() / exact[key].abs().max()) for key in exact}
        assert found.pop("y") <= 5e-7, backend
        assert max(found.values()) <= 2e-6, (backend, found)


@pytest.mark.parametrize(
    ("b", "d", "l", "n", "groups", "largest_step"),
    [
        (3, 32, 50, 16, None, 0.1),
        (2, 24, 33, 16, None, 5.0),  # channels that fill no vector of the kernel
        (2, 10, 1, 4, None, 1.0),  # one step
        (2, 12, 37, 3, 2, 1.0),  # groups of six channels, an odd number of states
        (1, 64, 65, 32, 4, 0.5),
        (1, 16, 2000, 16, None, 5.0),
        (1, 16, 2000, 16, None, 0.01),  # long memory
    ],
)
def test_against_float64(b: int, d: int, l: int, n: int, groups: int | None, largest_step: float) -> None:
    assert_exact(inputs(b, d, l, n, groups, largest_step))


def test_bias_and_softplus_of_the_step() -> None:
    given = inputs(2, 16, 40, 8, None, 5.0)
    given["delta"] = given["delta"] - 4.0
    given["delta_bias"] = torch.linspace(-3.0, 1.0, 16)
    assert_exact(given, delta_softplus=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_in_and_out_is_computed_in_float32(backend: str) -> None:
    given = {k: v.bfloat16() if v.ndim > 2 else v for k, v in inputs(2, 16, 40, 8, None, 0.5).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(selective_scan, given, backend=backend)
    exact = value_and_gradients(recurrence, {k: v.double() for k, v in given.items()})
    assert got["y"].dtype == torch.bfloat16
    for key, value in exact.items():
        # One rounding of an otherwise exact result; the sums over time of the gradients get the rounded output's.
        assert float((got[key] - value).abs().max() / value.abs().max()) < 2**-7, key


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_kernel_does_not_depend_on_threads(threads: int) -> None:
    given = inputs(5, 16, 40, 8, None, 0.5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = value_and_gradients(selective_scan, given, backend="fused")
        torch.set_num_threads(threads)
        more = value_and_gradients(selective_scan, given, backend="fused")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[key], more[key]) for key in one)


def test_gradcheck_of_the_torch_backend() -> None:
    given = {k: v.double().requires_grad_() for k, v in inputs(2, 4, 9, 3, 2, 1.0).items()}
    assert torch.autograd.gradcheck(
        lambda *values: selective_scan(**dict(zip(given, values, strict=True))), tuple(given.values())
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_and_infinity_are_not_hidden(backend: str) -> None:
    given = inputs(1, 16, 20, 4, None, 0.5)
    for key, bad in (("u", float("nan")), ("delta", float("nan")), ("delta", -400.0), ("B", float("inf"))):
        broken = given | {key: given[key].clone()}
        broken[key][0, 3, 10] = bad
        y = selective_scan(**broken, backend=backend)
        assert not y[0, 3, 10:].isfinite().any(), key
        assert y[0, :, :10].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_kept_for_backward_is_bounded(backend: str) -> None:
    """The inputs, some of them in another layout, and few states: naively there is one for every step."""
    given = inputs(4, 64, 640, 64, None, 0.5)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        selective_scan(**{k: v.clone().requires_grad_() for k, v in given.items()}, backend=backend)  # type: ignore[arg-type]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    size, every_state = given["u"].nbytes, 640 * 4 * 64 * 64 * 4
    assert sum(storages.values()) <= 10 * size + every_state / 8


def test_shapes_that_do_not_fit_are_named() -> None:
    given = inputs(2, 12, 7, 3, 2, 1.0)
    with pytest.raises(ValueError, match=r"delta is \(2, 11, 7\), expected \(2, 12, 7\)"):
        selective_scan(**given | {"delta": given["delta"][:, 1:]})
    with pytest.raises(ValueError, match="B has 5 groups, which do not divide 12 channels"):
        selective_scan(**given | {key: torch.zeros(2, 5, 3, 7) for key in ("B", "C")})
    with pytest.raises(ValueError, match="B has 2 and C 4 groups; give both as many, or one"):
        selective_scan(**given | {"C": torch.zeros(2, 4, 3, 7)})
    with pytest.raises(ValueError, match="backend='cuda'"):
        selective_scan(**given, backend="cuda")  # type: ignore[arg-type]


def test_a_missing_kernel_is_an_error_only_where_it_was_asked_for() -> None:
    def missing() -> None:
        raise Unavailable("it is not installed; install it")

    op = FusedKernel("some scan", {"cpu": missing})
    x = torch.zeros(1)
    assert op.choose("auto", x) is None
    assert op.choose("torch", x) is None
    with pytest.raises(UserError, match="some scan: backend=fused, but it is not installed; install it"):
        op.choose("fused", x)
    with pytest.raises(UserError, match=r"no kernel for torch\.float64 on cpu"):
        op.choose("fused", x.double())


def run_with(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = (
        "import logging, torch; logging.basicConfig(level=logging.INFO)\n"
        "from spkexp.ops.selective_scan import selective_scan as s\n"
        "x = torch.ones(1, 2, 3); print(s(x, x, -x[0, :, :1], x[:, :1], x[:, :1])[0, 0, 0].item())"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)


def test_without_a_compiler_torch_serves(tmp_path: Path) -> None:
    result = run_with({"CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)})
    assert result.stdout == "1.0\n"
    assert "selective scan on cpu: plain torch (no C compiler was found (no-such-compiler)" in result.stderr


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    result = run_with({"CC": "false", "XDG_CACHE_HOME": str(tmp_path)})
    assert result.stdout == "1.0\n"
    assert "could not compile scan_kernel.c" in result.stderr


def test_a_broken_library_in_the_cache_is_built_anew(tmp_path: Path) -> None:
    run_with({"XDG_CACHE_HOME": str(tmp_path)})
    (library,) = (tmp_path / "spkexp").iterdir()
    whole = library.stat().st_size
    library.write_bytes(library.read_bytes()[:100])  # a full disk, say
    result = run_with({"XDG_CACHE_HOME": str(tmp_path), "CC": " ".join(["cc", "-g0"])})
    assert result.stdout == "1.0\n"
    result = run_with({"XDG_CACHE_HOME": str(tmp_path)})
    assert "selective scan on cpu: fused kernel" in result.stderr
    assert result.stdout == "1.0\n"
    assert library.stat().st_size == whole


def test_a_forked_process_has_threads_of_its_own() -> None:
    """A loader's workers are forked; the threads that shared a batch are not."""
    code = (
        "import os, torch; torch.set_num_threads(2)\n"
        "from spkexp.ops.selective_scan import selective_scan as s\n"
        "x = torch.ones(4, 2, 3); f = lambda: s(x, x, -x[0, :, :1], x[:, :1], x[:, :1], backend='fused')\n"
        "y = f(); child = os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(f(), y) else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


def test_the_kernel_is_compiled_once_and_where_it_may_be_written(tmp_path: Path) -> None:
    place = tmp_path / "a b ü"
    for _ in range(2):
        assert "selective scan on cpu: fused kernel" in run_with({"XDG_CACHE_HOME": str(place)}).stderr
    (library,) = (place / "spkexp").iterdir()
    assert library.stat().st_size > 0
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert "fused kernel" in run_with({"XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)}).stderr


def test_kernel_is_here() -> None:
    """The tests above ran the compiled kernel: a machine that tests has a compiler."""
    assert callable(cpu_scan.load())


def test_exponential_of_the_kernel() -> None:
    """One step from the state 1 is exp(Δ A): the second step of an input that ends."""
    exponents = torch.linspace(-86.0, 0.0, 16 * 512).view(1, 16, 512)
    u, delta = torch.zeros(512, 16, 2), torch.ones(512, 16, 2)
    u[:, :, 0] = 1.0
    delta[:, :, 1] = -exponents[0].T
    one = torch.ones(512, 1, 2)
    y = selective_scan(u, delta, torch.full((16, 1), -1.0), one, one, backend="fused")
    exact = exponents[0].T.double().exp()
    assert float(((y[:, :, 1] - exact) / exact).abs().max()) < 2.5e-7
    assert F.mse_loss(y[:, :, 0], torch.ones(512, 16)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_keeps_no_states(backend: str) -> None:
    given = inputs(3, 32, 100, 16, None, 0.5)
    with torch.no_grad():
        y = selective_scan(**given, backend=backend)  # type: ignore[arg-type]
    assert not y.requires_grad
    assert torch.equal(y, selective_scan(**{k: v.requires_grad_() for k, v in given.items()}, backend=backend).detach())  # type: ignore[arg-type]


def test_empty_batch() -> None:
    given = {k: v[:0] if v.ndim == 3 else v for k, v in inputs(2, 32, 10, 16, None, 0.5).items()}
    assert selective_scan(**given, backend="fused").shape == (0, 32, 10)


def test_more_states_than_the_kernel_has_room_for() -> None:
    assert_exact(inputs(1, 4, 9, cpu_scan._MAX_STATES + 1, None, 0.1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused_rather_than_wrong(backend: str) -> None:
    given = {k: v.requires_grad_() for k, v in inputs(1, 16, 5, 4, None, 0.5).items()}
    y = selective_scan(**given, backend=backend)  # type: ignore[arg-type]
    (first,) = torch.autograd.grad(y.square().sum(), given["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_runs_and_why_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    op = FusedKernel("some scan", {"cpu": lambda: len})
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert op.choose("auto", torch.zeros(1)) is len
            assert op.choose("auto", torch.zeros(1), "it would round") is None
            assert op.choose("fused", torch.zeros(1), "it would round") is len
            assert op.choose("auto", torch.zeros(1).double()) is None
    assert [record.getMessage() for record in caplog.records] == [
        "some scan on cpu: fused kernel",
        "some scan on cpu: plain torch (it would round)",
        "some scan on cpu: plain torch (there is no kernel for torch.float64 on cpu)",
    ]
