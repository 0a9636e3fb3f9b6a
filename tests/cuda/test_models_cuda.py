"""On a GPU: layers with fused kernels, every model of conf/model, features, and the commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spkexp import checkpoint
from spkexp.features import LogMel
from spkexp.models.mamba_encoder import BiMambaEncoder, Mamba2Encoder, MambaEncoder
from spkexp.ops import causal_conv, selective_scan, ssd
from tests.model_tools import NAMES, randomise_norms, relative_error, speaker_model

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def fused_kernels() -> None:
    for module in (causal_conv, selective_scan, ssd):
        found, reason = module._fused._load(DEVICE)
        if found is None:
            pytest.skip(reason)


def mamba(backend: str) -> nn.Module:
    return MambaEncoder(12, 2, 36, 16, 4, 2, 1, "rms_norm", 0.0, backend)  # type: ignore[arg-type]


def bimamba(backend: str) -> nn.Module:
    return BiMambaEncoder(12, 2, 36, 16, 4, 1, 1, "rms_norm", 0.0, backend)  # type: ignore[arg-type]


def mamba2(backend: str) -> nn.Module:  # three heads: rows of [gate, x, B, C, dt] begin at no multiple of eight
    return Mamba2Encoder(12, 2, 96, 64, 4, 2, 64, 1, 1, "rms_norm", 0.0, backend)  # type: ignore[arg-type]


# The largest difference of outputs and of gradients, in float32. Mamba-2's kernels multiply in TF32.
ENCODERS = [(mamba, 1e-4, 1e-3), (bimamba, 1e-4, 1e-3), (mamba2, 5e-3, 2e-2)]
LENGTHS = (257, 31, 1)


@pytest.mark.usefixtures("fused_kernels")
@pytest.mark.parametrize(("make", "value_limit", "gradient_limit"), ENCODERS)
def test_fused_and_torch_are_one_model(
    make: Callable[[str], nn.Module], value_limit: float, gradient_limit: float
) -> None:
    torch.manual_seed(0)
    fused, plain = make("fused").to(DEVICE), make("torch").to(DEVICE)
    plain.load_state_dict(fused.state_dict())
    features, lengths = torch.randn(3, 12, max(LENGTHS), device=DEVICE), torch.tensor(LENGTHS, device=DEVICE)

    def run(encoder: nn.Module, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
            hidden, _ = encoder(features, lengths)
        valid = torch.cat([hidden[row, :, :length] for row, length in enumerate(LENGTHS)], dim=1).float()
        weight = torch.randn(valid.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        names = dict(encoder.named_parameters())
        gradients = torch.autograd.grad(valid, list(names.values()), weight)
        return valid.detach(), dict(zip(names, gradients, strict=True))

    expected, gradients = run(plain, torch.float32)
    for dtype, value, gradient in (
        (torch.float32, value_limit, gradient_limit),
        (torch.bfloat16, 0.05, 0.15),
    ):
        got, got_gradients = run(fused, dtype)
        errors = {key: relative_error(got_gradients[key], gradients[key]) for key in gradients}
        print(dtype, relative_error(got, expected), errors)  # pytest -rP shows how far the limits are
        assert relative_error(got, expected) < value, dtype
        assert max(errors.values()) < gradient, (dtype, errors)


@pytest.mark.usefixtures("fused_kernels")
@pytest.mark.parametrize("make", [mamba, bimamba, mamba2])
def test_padding_changes_no_frame(make: Callable[[str], nn.Module]) -> None:
    torch.manual_seed(0)
    encoder = make("fused").to(DEVICE).eval()
    features, lengths = torch.randn(3, 12, max(LENGTHS), device=DEVICE), torch.tensor(LENGTHS, device=DEVICE)
    with torch.no_grad():
        together, _ = encoder(features, lengths)
        for row, length in enumerate(LENGTHS):
            alone, _ = encoder(features[row : row + 1, :, :length], None)
            # The same kernel for another length adds up in another order; TF32 rounds what goes into a product.
            assert relative_error(together[row, :, :length], alone[0]) < (1e-3 if make is mamba2 else 1e-5), length


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_the_one_of_the_cpu(name: str) -> None:
    model = speaker_model(name).eval()
    randomise_norms(model)
    waveform, lengths = torch.randn(3, 16000) * 0.1, torch.tensor([16000, 9000, 300])
    with torch.no_grad():
        expected = model(waveform, lengths)
        model.to(DEVICE)
        for given in (lengths, lengths.to(DEVICE)):
            exact = model(waveform.to(DEVICE), given)
            assert exact.device.type == DEVICE
            assert relative_error(exact.cpu(), expected) < 1e-4
        full = model(waveform[:1].to(DEVICE), lengths[:1])
        assert relative_error(full[0], exact[0]) < 1e-4
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            rough = model(waveform.to(DEVICE), lengths).float().cpu()
    print(name, relative_error(exact.cpu(), expected), relative_error(rough, expected))
    assert rough.isfinite().all()
    assert relative_error(rough, expected) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_in_bf16(name: str) -> None:
    model = speaker_model(name).to(DEVICE).train()
    waveform, lengths = torch.randn(3, 8000, device=DEVICE) * 0.1, torch.tensor([8000, 5000, 400])
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        embedding = model(waveform, lengths)
    embedding.float().square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("normalise", ["none", "mean", "mean_variance"])
@pytest.mark.parametrize("window", ["povey", "hamming"])
def test_features_are_those_of_the_cpu(window: str, normalise: str) -> None:
    features = LogMel(16000, 80, 25.0, 10.0, 20.0, 0.0, window, 0.97, 32768.0, normalise)  # type: ignore[arg-type]
    waveform = torch.randn(4, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    waveform[3] = 0.0  # digital silence
    lengths = torch.tensor([16000, 7777, 100, 16000])
    expected, expected_lengths = features(waveform, lengths)
    features.to(DEVICE)
    for given in (lengths, lengths.to(DEVICE)):
        got, got_lengths = features(waveform.to(DEVICE), given)
        assert got_lengths.device == given.device
        assert torch.equal(got_lengths.cpu(), expected_lengths)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-3)


# --- the commands

SMALL = [
    "augment=none",
    "data.corpus.train_speakers=4",
    "data.corpus.val_speakers=4",
    "data.corpus.test_speakers=4",
    "data.corpus.train_utterances=4",
    "data.corpus.eval_utterances=4",
    "data.num_workers=0",
    "data.crop_seconds=1.0",
    "trainer.batch_size=8",
    "trainer.epochs=10",
    "trainer/schedule=constant",
    "trainer.log_every=1",
    "tracking.wandb=off",
    "scoring.bootstrap=50",
]
# As `python -m spkexp.X`, with what torch can do to compute the same twice.
DETERMINISTIC = (
    "import runpy, sys, torch; torch.use_deterministic_algorithms(True, warn_only=True); "
    "module = sys.argv.pop(1); sys.argv[0] = module; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def run(module: str, *arguments: str, deterministic: bool = False, **environment: str) -> None:
    start = ["-c", DETERMINISTIC] if deterministic else ["-m"]
    done = subprocess.run(
        [sys.executable, *start, f"spkexp.{module}", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def scores(file: Path) -> dict[tuple[str, str], float]:
    return {(e, t): float(score) for e, t, score, _ in (line.split() for line in file.read_text().splitlines())}


@pytest.mark.parametrize(
    ("model", "precision", "limit"),
    [("mamba", "fp32", 1e-3), ("bimamba", "bf16", 0.05), ("mamba2", "bf16", 0.05), ("ecapa_small", "bf16", 0.05)],
)
def test_trained_on_the_gpu_and_evaluated_on_the_cpu(
    model: str, precision: str, limit: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The scores, cosines, agree but for what TF32 in convolutions and the precision of evaluation leave."""
    small: list[str] = []
    if "mamba" in model:
        request.getfixturevalue("fused_kernels")
        small = ["model.encoder.num_layers=2", "model.encoder.d_model=64"]
    folder, output = tmp_path / "run", tmp_path / "cpu"
    run(
        "train",
        f"model={model}",
        *small,
        *SMALL,
        f"data.root={tmp_path / 'voices'}",
        f"run_dir={folder}",
        f"trainer.precision={precision}",
        "trainer.max_steps=2",
        f"trainer.device={DEVICE}",
    )
    assert json.loads((folder / "environment.json").read_text())["gpus"]
    run("evaluate", f"model={folder}", f"output={output}", CUDA_VISIBLE_DEVICES="")
    lists = sorted(path.name for path in (folder / "scores").iterdir())
    assert lists
    for name in lists:
        here, there = scores(output / "scores" / name), scores(folder / "scores" / name)
        assert here.keys() == there.keys()
        assert max(abs(here[trial] - there[trial]) for trial in there) < limit, name


def test_resumed_on_the_gpu_is_bit_for_bit_the_unbroken_run(tmp_path: Path) -> None:
    def train(name: str, steps: int) -> dict[str, Any]:
        folder = tmp_path / name
        new = ["model=xvector", "model.encoder.padding=zeros", *SMALL, f"data.root={tmp_path / 'voices'}"]
        new += [f"run_dir={folder}", f"trainer.device={DEVICE}", "trainer.checkpoint_steps=1"]
        arguments = [f"resume={folder}"] if folder.exists() else new
        run("train", *arguments, f"trainer.max_steps={steps}", deterministic=True)
        model, head = checkpoint.load_tensors(folder / "checkpoints" / "last")
        return {**model, **{f"head.{key}": value for key, value in head.items()}}

    def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
        assert a.keys() == b.keys()
        return [key for key in a if not torch.equal(a[key], b[key])]

    whole = train("whole", 4)
    assert different(whole, train("again", 4)) == [], "two unbroken runs differ: what is compared here has atomics"
    two = train("broken", 2)
    assert different(whole, two) != []
    assert different(whole, train("broken", 4)) == []
