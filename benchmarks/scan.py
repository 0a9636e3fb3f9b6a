"""The selective scan of Mamba on a CPU, in training, on one thread: what this project runs against what others write.

    OMP_NUM_THREADS=1 python benchmarks/scan.py [--repeats 5] [--output FILE]

Batch 32, 200 steps, 512 channels, 16 states, float32; forward and all gradients; CPU time, medians, all in turn.

naive          a loop over steps with unbind, autograd keeping every state
cumsum         h_t = P_t Σ_s (Δ_s u_s B_s / P_s) with P the cumulative decay: its quotients overflow
logcumsumexp   the same in complex logarithms
torch, fused   `selective_scan` by its two backends
ssd            Mamba-2 with 64 states, against `torch` with 64 states

Errors are the largest difference from float64 as a share of the largest value, with steps up to --largest-step.
"""

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import parser, write
from torch import Tensor

from spkexp.cost.trace import Trace
from spkexp.ops.selective_scan import selective_scan
from spkexp.ops.ssd import ssd

B, L, D, N, N_SSD, HEADDIM = 32, 200, 512, 16, 64, 64


def terms(u: Tensor, delta: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents and inputs of the recurrence, (B, L, D, N)."""
    return delta.mT.unsqueeze(3) * A, (delta * u).mT.unsqueeze(3) * b.mT.unsqueeze(2)


def naive(u: Tensor, delta: Tensor, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    exponents, inputs = terms(u, delta, A, b)
    h = torch.zeros_like(inputs[:, 0])
    ys = []
    for decay, x, row in zip(exponents.exp().unbind(1), inputs.unbind(1), c.unbind(2), strict=True):
        h = decay * h + x
        ys.append((h * row.unsqueeze(1)).sum(dim=2))
    return torch.stack(ys, dim=2)


def cumsum(u: Tensor, delta: Tensor, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    exponents, inputs = terms(u, delta, A, b)
    decay = exponents.cumsum(dim=1).exp()
    h = decay * (inputs / (decay + 1e-12)).cumsum(dim=1)
    return (h @ c.mT.unsqueeze(3)).squeeze(3).mT


def logcumsumexp(u: Tensor, delta: Tensor, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    exponents, inputs = terms(u, delta, A, b)
    total = exponents.cumsum(dim=1)
    complex_type = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    h = (total + torch.logcumsumexp(inputs.to(complex_type).log() - total, dim=1)).exp().real
    return (h @ c.mT.unsqueeze(3)).squeeze(3).mT


def by(backend: Any) -> Callable[..., Tensor]:
    return lambda *tensors: selective_scan(*tensors, backend=backend)


def inputs(batch: int, length: int, channels: int, states: int, largest_step: float) -> list[Tensor]:
    """u, Δ, A, B, C as a Mamba layer has them: frames outside, channels inside."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, length, channels, generator=generator).mT
    delta = torch.rand(batch, length, channels, generator=generator).mT * largest_step
    b, c = (torch.randn(batch, length, states, generator=generator).mT for _ in range(2))
    return [u, delta, -torch.arange(1.0, states + 1).repeat(channels, 1), b, c]


def heads(tensors: list[Tensor]) -> list[Tensor]:
    """The same sizes for Mamba-2, one step and one decay a head."""
    u, delta, a, b, c = tensors
    x = u.mT.unflatten(2, (-1, HEADDIM)).contiguous()
    step = delta.mT[:, :, ::HEADDIM].contiguous()
    return [x, step, a[: x.shape[2], 0].clone(), *(v.mT.unsqueeze(2).contiguous() for v in (b, c))]


def train(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of a weighted sum of it."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    y = function(*leaves)
    weight = torch.linspace(-1.0, 1.0, y.shape[-1], dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weight.expand(y.shape))]


def cpu_ms(function: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    start = time.process_time()
    train(function, tensors)
    return 1e3 * (time.process_time() - start)


def extra_gib(function: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    """Most memory held at once, beyond inputs, the result and the gradients."""
    trace = Trace()
    for tensor in tensors:
        trace.add(tensor, "input")
    start = trace.position()
    with trace:
        results = train(function, tensors)
    return (trace.peak(start)[0] - sum(x.nbytes for x in results)) / 2**30


def errors(function: Callable[..., Tensor], tensors: list[Tensor]) -> dict[str, float | None]:
    """None where there are results that are no numbers."""
    exact = train(naive, [x.double() for x in tensors])
    got = train(function, tensors)
    found = [float((g - e).abs().max() / e.abs().max()) for g, e in zip(got, exact, strict=True)]
    if not all(math.isfinite(value) for value in found):
        return {"forward": None, "gradients": None}
    return {"forward": found[0], "gradients": max(found[1:])}


def main() -> None:
    arguments = parser(__doc__, "scan")
    arguments.add_argument("--repeats", type=int, default=5, help="measurements of each, after one to warm up")
    arguments.add_argument("--largest-step", type=float, default=5.0, help="of the errors; the times have 0.1")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    functions = {
        "naive": naive,
        "cumsum": cumsum,
        "logcumsumexp": logcumsumexp,
        "torch": by("torch"),
        "fused": by("fused"),
    }
    small, wide = inputs(B, L, D, N, 0.1), inputs(B, L, D, N_SSD, 0.1)
    work: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {k: (f, small) for k, f in functions.items()}
    work[f"torch_{N_SSD}"] = by("torch"), wide
    work[f"fused_{N_SSD}"] = by("fused"), wide
    work[f"ssd_{N_SSD}"] = ssd, heads(wide)
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(given.repeats + 1):
        for name, (function, tensors) in work.items():
            times[name].append(cpu_ms(function, tensors))
    medians = {name: median(values[1:]) for name, values in times.items()}
    checks = {
        f"{length} steps, Δ up to {given.largest_step:g}": inputs(2, length, 32, N, given.largest_step)
        for length in (200, 2000)
    }
    write(
        given.output,
        f"selective scan in training, B={B} T={L} D={D} N={N} float32, one CPU thread",
        {
            "repeats": given.repeats,
            "cpu_ms": {name: round(value, 1) for name, value in medians.items()},
            "times_faster": {
                "torch than naive (asked 6)": round(medians["naive"] / medians["torch"], 2),
                "torch than cumsum (asked 15)": round(medians["cumsum"] / medians["torch"], 2),
                "fused than torch (asked 3)": round(medians["torch"] / medians["fused"], 2),
                f"ssd than torch at N={N_SSD} (asked 1.5)": round(
                    medians[f"torch_{N_SSD}"] / medians[f"ssd_{N_SSD}"], 2
                ),
            },
            "extra_gib (asked 0.2)": {
                name: round(extra_gib(function, tensors), 3) for name, (function, tensors) in work.items()
            },
            "errors (asked 5e-7 forward, 2e-6 gradients)": {
                case: {name: errors(function, tensors) for name, function in functions.items()}
                for case, tensors in checks.items()
            },
        },
        "torch",
    )


if __name__ == "__main__":
    main()
