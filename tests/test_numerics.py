"""How arithmetic is done, and what the user is told where torch cannot."""

import copy
import os
import sys
import types
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from spkexp import numerics
from spkexp.compose import compose_config
from spkexp.errors import ConfigError, UserError
from spkexp.models.speaker import SpeakerModel
from spkexp.ops import cuda_scan
from spkexp.sections import Trainer as Settings
from tests.model_tools import relative_error, speaker_model

CPU = torch.device("cpu")


@cache
def default() -> Settings:
    return Settings.model_validate(OmegaConf.to_container(compose_config([]).trainer))


def settings(**changes: bool) -> Settings:
    return default().model_copy(update=changes)


def state() -> list[object]:
    cudnn = torch.backends.cudnn
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tf32": True}, [False, False, True, False, "tf32", "tf32", "tf32"]),
        ({"tf32": False}, [False, False, True, False, "ieee", "ieee", "ieee"]),
        ({"deterministic": True}, [True, False, False, True, "tf32", "tf32", "tf32"]),
    ],
)
def test_a_run_leaves_everything_as_it_was(changes: dict[str, bool], expected: list[object]) -> None:
    before, older = state(), torch.get_float32_matmul_precision()
    with numerics.configure(settings(**changes), CPU):
        assert state() == expected
        with numerics.varying_lengths():
            assert state() == [*expected[:2], False, *expected[3:]]
        assert state() == expected
    assert state() == before
    with pytest.raises(KeyError), numerics.configure(settings(**changes), CPU):
        raise KeyError
    assert state() == before
    assert torch.get_float32_matmul_precision() == older  # torch's older interface can still be asked


def test_cublas_is_told_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with numerics.configure(settings(deterministic=True), torch.device("cuda")):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with numerics.configure(settings(deterministic=False), torch.device("cuda")):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with numerics.configure(settings(deterministic=True), torch.device("cuda")):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


class Putting(nn.Module):
    """An operation that torch has no deterministic implementation of, on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone().put_(torch.tensor([0, 0]), x[:2], accumulate=False)


def test_an_operation_that_differs_from_run_to_run_is_named_with_the_remedy() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Putting())
    with numerics.configure(settings(deterministic=True), CPU), pytest.raises(RuntimeError) as raised:
        module(torch.ones(4))
    told = numerics.explain(raised.value)
    assert isinstance(told, UserError)
    assert str(told).startswith("trainer.deterministic: 'put_' in Putting has no deterministic implementation")
    assert "trainer.deterministic=false" in str(told)
    module(torch.ones(4))  # outside all is as before


def test_explain_takes_only_what_it_knows() -> None:
    assert numerics.explain(RuntimeError("shapes do not fit")) is None
    assert numerics.explain(ValueError("put_ does not have a deterministic implementation")) is None
    assert numerics.explain(KeyboardInterrupt()) is None
    # What torch 2.11 says of a matrix product on a GPU, shortened.
    told = numerics.explain(
        RuntimeError("Deterministic behavior was enabled …, you must set … CUBLAS_WORKSPACE_CONFIG=:4096:8 or …")
    )
    assert told is not None
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8 python -m spkexp.train" in str(told)


@pytest.mark.parametrize("name", ["ecapa_small", "resnet18", "mamba"])
def test_a_deterministic_encoder_trains_the_same_twice(name: str) -> None:
    model = speaker_model(name, **({"d_model": 32} if name == "mamba" else {})).train()
    waveform = torch.randn(3, 6000, generator=torch.Generator().manual_seed(1)) * 0.1
    found = []
    with numerics.configure(settings(deterministic=True), CPU):
        for lengths in (torch.tensor([6000] * 3), torch.tensor([6000, 3000, 500])) * 2:
            model.zero_grad()
            model(waveform, lengths).square().sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, second in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_fused_scan_of_a_gpu_has_no_deterministic_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so before the kernel is called, which this stand-in for the compiled module does not have."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    scan = cuda_scan.load()
    u, A, B = torch.randn(2, 4, 5), -torch.ones(4, 3), torch.randn(2, 1, 3, 5)
    with numerics.configure(settings(deterministic=True), CPU):
        with pytest.raises(UserError, match=r"model\.encoder\.backend=torch"):
            scan(u.requires_grad_(), u, A, B, B, None, None, None, True)
        with torch.no_grad(), pytest.raises(AttributeError, match="fwd"):  # the forward pass alone is exact
            scan(u, u, A, B, B, None, None, None, True)
    with pytest.raises(AttributeError, match="fwd"):
        scan(u, u, A, B, B, None, None, None, True)


def test_nothing_to_compile_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = speaker_model("ecapa_small", channels=16)
    monkeypatch.setenv("CXX", "no such compiler")
    with pytest.raises(ConfigError, match=r"trainer.compile: .*'no such compiler'.*trainer.compile=false"):
        numerics.compile_encoder(model, CPU)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no 'g\+\+'"):
        numerics.compile_encoder(model, CPU)
    if torch.utils._triton.has_triton_package():
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, "triton", raising=False)
    with pytest.raises(ConfigError, match="needs triton"):
        numerics.compile_encoder(model, torch.device("cuda"))


def embed(model: SpeakerModel, features: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Embeddings and the gradient of a weighted sum of them."""
    model.zero_grad()
    embedding = model.embed(features, torch.full((len(features),), features.shape[2]))
    weights = torch.linspace(-1, 1, embedding.numel(), dtype=features.dtype).view_as(embedding)
    (embedding * weights).sum().backward()
    return embedding.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "sizes"),
    [
        # In float64 no ReLU is near enough to zero for rounding to switch it, and with it a part of the gradient.
        ("ecapa_small", torch.float64, {"channels": 32, "aggregation_channels": 48}),
        ("resnet18", torch.float64, {"channels": 16, "num_blocks": [1, 1]}),
        ("ecapa_small", torch.float32, {"channels": 32, "aggregation_channels": 48}),
        ("resnet18", torch.float32, {"channels": 16, "num_blocks": [1, 1]}),
        ("transformer", torch.float32, {"channels": 32, "num_layers": 1, "feedforward_channels": 64, "dropout": 0.0}),
        ("mamba", torch.float32, {"d_model": 32, "num_layers": 1}),  # its kernels are for float32
    ],
)
def test_compiled_is_the_same_network(name: str, dtype: torch.dtype, sizes: dict[str, object]) -> None:
    model = speaker_model(name, **sizes).train().to(dtype)
    compiled = copy.deepcopy(model)
    numerics.compile_encoder(compiled, CPU)
    assert list(compiled.state_dict()) == list(model.state_dict())
    exact = dtype == torch.float64
    counted = graphs()
    for frames in (40, 56):  # each is compiled
        features = torch.randn(4, 80, frames, dtype=dtype, generator=torch.Generator().manual_seed(frames))
        (expected, gradients), (found, its_gradients) = embed(model, features), embed(compiled, features)
        assert graphs() > counted
        counted = graphs()
        assert relative_error(found, expected) < (1e-10 if exact else 1e-5)
        error = sum((a - b).square().sum() for a, b in zip(its_gradients, gradients, strict=True))
        scale = sum(gradient.square().sum() for gradient in gradients)
        assert float(error / scale) ** 0.5 < (1e-10 if exact else 1e-2)
    compiled.load_state_dict(model.state_dict())
    lengths = torch.tensor([30, 17])
    for training in (False, True):  # evaluation, and padded rows: as written, to the bit
        model.train(training), compiled.train(training)
        for frames in range(30, 33):
            features = torch.randn(2, 80, frames, dtype=dtype)
            assert torch.equal(compiled.embed(features, lengths), model.embed(features, lengths))
    assert graphs() == counted
    assert copy.deepcopy(compiled).encoder._compiled_call_impl is None


def graphs() -> int:
    """How many graphs torch has compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
