"""Mamba-2's state-space duality against its recurrence written down in float64."""

import pytest
import torch
from torch import Tensor

from spkexp.errors import UserError
from spkexp.ops.ssd import ssd


def recurrence(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """One step and one head at a time: Dao and Gu 2024, eq. 1 with a scalar times the identity for A."""
    b, l, heads, p = x.shape
    per_group = heads // B.shape[2]
    outputs = []
    for i in range(heads):
        h = x.new_zeros(b, p, B.shape[3])
        ys = []
        for t in range(l):
            step = dt[:, t, i, None, None]
            added = x[:, t, i, :, None] * B[:, t, i // per_group, None, :]
            h = torch.exp(step * A[i]) * h + step * added
            ys.append((h * C[:, t, i // per_group, None, :]).sum(dim=2) + D[i] * x[:, t, i])
        outputs.append(torch.stack(ys, dim=1))
    return torch.stack(outputs, dim=2)


def inputs(b: int, l: int, h: int, p: int, g: int, n: int, largest_step: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(b, l, h, p, generator=generator),
        "dt": torch.rand(b, l, h, generator=generator) * largest_step,
        "A": -1.0 - 15.0 * torch.rand(h, generator=generator),
        "B": torch.randn(b, l, g, n, generator=generator),
        "C": torch.randn(b, l, g, n, generator=generator),
        "D": torch.randn(h, generator=generator),
    }


@pytest.mark.parametrize(
    ("b", "l", "h", "p", "g", "n", "largest_step"),
    [
        (2, 130, 4, 8, 2, 16, 0.1),
        (2, 1, 2, 4, 1, 3, 1.0),
        (3, 64, 2, 8, 1, 5, 5.0),
        (1, 65, 4, 8, 4, 16, 0.5),
        (1, 2000, 2, 4, 1, 8, 5.0),
        (1, 2000, 2, 4, 1, 8, 0.001),  # long memory
    ],
)
def test_against_float64(b: int, l: int, h: int, p: int, g: int, n: int, largest_step: float) -> None:
    given = inputs(b, l, h, p, g, n, largest_step)
    results = []
    for function, dtype in ((recurrence, torch.float64), (ssd, torch.float32)):
        leaves = [v.to(dtype, copy=True).requires_grad_() for v in given.values()]
        y = function(*leaves)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, weight)])
    for name, exact, got in zip(("y", *given), *results, strict=True):
        allowed = 5e-7 if name == "y" else 2e-6  # of the largest; zero where nothing is: A's gradient after one step
        assert float((got - exact).abs().max()) <= allowed * float(exact.abs().max()), name


def test_gradcheck() -> None:
    given = [v.double().requires_grad_() for v in inputs(2, 5, 2, 3, 1, 2, 0.5).values()]
    assert torch.autograd.gradcheck(ssd, given)


def test_bias_and_softplus_of_the_step() -> None:
    given = inputs(2, 70, 2, 4, 1, 3, 1.0)
    bias = torch.tensor([-2.0, 1.0])
    step = torch.log1p(torch.exp((given["dt"] + bias).double()))
    exact = recurrence(**{k: v.double() for k, v in given.items()} | {"dt": step})
    y = ssd(**given, dt_bias=bias, dt_softplus=True)
    assert float((y - exact).abs().max() / exact.abs().max()) < 1e-6


def test_bfloat16_in_and_out_is_computed_in_float32() -> None:
    given = {k: v.bfloat16() if v.ndim == 4 else v for k, v in inputs(2, 70, 2, 4, 1, 3, 0.2).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ssd(**given)
    assert y.dtype == torch.bfloat16
    exact = recurrence(**{k: v.double() for k, v in given.items()})
    assert float((y - exact).abs().max() / exact.abs().max()) < 2**-8


def test_mistakes_are_named() -> None:
    given = inputs(2, 5, 4, 3, 1, 2, 0.5)
    with pytest.raises(ValueError, match=r"dt is \(2, 5, 3\), expected \(2, 5, 4\)"):
        ssd(**given | {"dt": given["dt"][..., 1:]})
    with pytest.raises(ValueError, match="3 groups, which do not divide 4 heads"):
        ssd(**given | {"B": torch.zeros(2, 5, 3, 2)})
    with pytest.raises(UserError, match="state-space duality: backend=fused, but there is no kernel for cpu"):
        ssd(**given, backend="fused")
