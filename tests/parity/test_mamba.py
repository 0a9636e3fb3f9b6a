"""The official Mamba and Mamba-2 layers, with random weights, give the same outputs as ours.

Run with a checkout of the official code, of which only the reference formulas are executed, on the CPU:

    git clone https://github.com/state-spaces/mamba && SPKEXP_MAMBA=$PWD/mamba pytest tests/parity/test_mamba.py
"""

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from spkexp.models.mamba import Mamba, Mamba2
from tests.model_tools import relative_error

CHECKOUT = os.environ.get("SPKEXP_MAMBA")
pytestmark = pytest.mark.skipif(
    not CHECKOUT, reason="set SPKEXP_MAMBA to a checkout of github.com/state-spaces/mamba to compare with it"
)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """mamba_ssm without its __init__, which imports compiled kernels and transformers."""
    package = ModuleType("mamba_ssm")
    package.__path__ = [f"{CHECKOUT}/mamba_ssm"]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    # What needs a GPU; the reference formulas replace it below.
    for name in ("layer_norm", "selective_state_update", "layernorm_gated", "ssd_combined"):
        monkeypatch.setitem(sys.modules, f"mamba_ssm.ops.triton.{name}", MagicMock())
    yield package
    for name in [name for name in sys.modules if name.startswith("mamba_ssm")]:
        del sys.modules[name]


def spread(layer: nn.Module) -> None:
    """Every parameter away from its initial pattern, so that an exchange of two would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_mamba(official: ModuleType, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    module = importlib.import_module("mamba_ssm.modules.mamba_simple")
    reference = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    monkeypatch.setattr(module, "selective_scan_fn", reference)
    monkeypatch.setattr(module, "causal_conv1d_fn", None)
    theirs = module.Mamba(48, d_state=8, use_fast_path=False)
    spread(theirs)
    ours = Mamba(48, 8, 4, 2, backend)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 70, 48)
    assert relative_error(ours(x, None), theirs(x)) < 1e-5


def test_mamba2(official: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    minimal = importlib.import_module("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    module = importlib.import_module("mamba_ssm.modules.mamba2")

    def chunk_scan(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus, **options):  # type: ignore[no-untyped-def]
        step = torch.nn.functional.softplus(dt + dt_bias)
        heads = [v.repeat_interleave(x.shape[2] // v.shape[2], dim=2) for v in (B, C)]
        y, _ = minimal(x * step.unsqueeze(-1), A * step, *heads, 35)
        return y + x * D[:, None]

    class GatedNorm(nn.Module):
        def __init__(self, size, eps, norm_before_gate, group_size, **factory):  # type: ignore[no-untyped-def]
            super().__init__()
            self.weight, self.eps, self.group = nn.Parameter(torch.ones(size)), eps, group_size

        def forward(self, x, z):  # type: ignore[no-untyped-def]
            x = (x * torch.nn.functional.silu(z)).unflatten(-1, (-1, self.group))
            return (x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()).flatten(-2) * self.weight

    for name, value in (
        ("mamba_chunk_scan_combined", chunk_scan),
        ("RMSNormGated", GatedNorm),
        ("causal_conv1d_fn", None),
    ):
        monkeypatch.setattr(module, name, value)
    theirs = module.Mamba2(64, d_state=16, headdim=16, ngroups=2, use_mem_eff_path=False)
    spread(theirs)
    ours = Mamba2(64, 16, 4, 2, 16, 2, "torch")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 70, 64)
    assert relative_error(ours(x, None), theirs(x)) < 1e-5
