"""The Mamba layers against a slow float64 reading of the papers; backends, directions, official names and shapes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp import build, checkpoint
from spkexp.cost.macs import count_macs
from spkexp.cost.workload import Workload
from spkexp.models.mamba import BiMamba, Mamba, Mamba2
from spkexp.models.mamba_encoder import MambaEncoder
from spkexp.parameter_groups import parameter_groups
from spkexp.step import TrainStep
from tests.conftest import Corpus
from tests.model_tools import count, relative_error, speaker_model
from tests.test_train import run

BACKENDS = ["torch", "fused"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (T, C), weight (C, 1, k): each frame from itself and the k - 1 before it."""
    taps = weight.shape[2]
    frames = []
    for t in range(len(x)):
        value = bias.clone()
        for j in range(taps):
            if t - taps + 1 + j >= 0:
                value = value + weight[:, 0, j] * x[t - taps + 1 + j]
        frames.append(silu(value))
    return torch.stack(frames)


def slow_mamba(state: dict[str, Tensor], x: Tensor, d_state: int) -> Tensor:
    """One utterance (T, d_model) through figure 3 of Gu and Dao 2023, from the tensors of an official layer."""
    x, gate = (state["in_proj.weight"] @ x.T).T.chunk(2, dim=1)
    u = convolved(x, state["conv1d.weight"], state["conv1d.bias"])
    rank = state["dt_proj.weight"].shape[1]
    a = -state["A_log"].exp()
    h = torch.zeros_like(a)
    ys = []
    for frame in u:
        dt, b, c = (state["x_proj.weight"] @ frame).split([rank, d_state, d_state])
        step = softplus(state["dt_proj.weight"] @ dt + state["dt_proj.bias"])
        h = torch.exp(step[:, None] * a) * h + (step * frame)[:, None] * b
        ys.append(h @ c + state["D"] * frame)
    return (state["out_proj.weight"] @ (torch.stack(ys) * silu(gate)).T).T


def slow_mamba2(state: dict[str, Tensor], x: Tensor, d_state: int, headdim: int, groups: int) -> Tensor:
    """One utterance (T, d_model) through figure 6 of Dao and Gu 2024, from the tensors of an official layer."""
    channels = state["out_proj.weight"].shape[1]
    heads = channels // headdim
    projected = (state["in_proj.weight"] @ x.T).T
    gate, xbc, dt = projected.split([channels, channels + 2 * groups * d_state, heads], dim=1)
    xbc = convolved(xbc, state["conv1d.weight"], state["conv1d.bias"])
    values, b, c = xbc.split([channels, groups * d_state, groups * d_state], dim=1)
    h = x.new_zeros(heads, headdim, d_state)
    ys = []
    for t in range(len(x)):
        y = []
        for i in range(heads):
            group = slice(i * groups // heads * d_state, (i * groups // heads + 1) * d_state)
            step = softplus(dt[t, i] + state["dt_bias"][i])
            value = values[t, i * headdim : (i + 1) * headdim]
            h[i] = torch.exp(-step * state["A_log"][i].exp()) * h[i] + step * value[:, None] * b[t, group]
            y.append(h[i] @ c[t, group] + state["D"][i] * value)
        ys.append(torch.cat(y))
    gated = (torch.stack(ys) * silu(gate)).view(len(x), groups, -1)
    normed = (gated / (gated.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()).flatten(1) * state["norm.weight"]
    return (state["out_proj.weight"] @ normed.T).T


def double(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().double() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_mamba_against_a_slow_reference(backend: str) -> None:
    torch.manual_seed(0)
    layer = Mamba(d_model=24, d_state=5, d_conv=4, expand=2, backend=backend)  # type: ignore[arg-type]
    x = torch.randn(2, 40, 24)
    expected = torch.stack([slow_mamba(double(layer), row.double(), 5) for row in x])
    assert relative_error(layer(x, None).double(), expected) < 1e-6


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_against_a_slow_reference(groups: int) -> None:
    torch.manual_seed(0)
    layer = Mamba2(d_model=16, d_state=6, d_conv=4, expand=2, headdim=8, ngroups=groups, backend="torch")
    nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
    x = torch.randn(2, 70, 16)
    expected = torch.stack([slow_mamba2(double(layer), row.double(), 6, 8, groups) for row in x])
    assert relative_error(layer(x, None).double(), expected) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_bimamba_is_two_mambas_before_one_gate(backend: str) -> None:
    """Backwards it is the same layer on the reversed utterance; the gate and the projections are shared."""
    torch.manual_seed(0)
    layer = BiMamba(d_model=16, d_state=4, d_conv=4, expand=2, backend=backend)  # type: ignore[arg-type]
    state = double(layer)

    def direction(name: str) -> dict[str, Tensor]:
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        return own | {key: state[key] for key in ("in_proj.weight", "out_proj.weight")}

    x = torch.randn(30, 16)
    ahead = slow_mamba(direction("forwards"), x.double(), 4)
    # The gate belongs to the frame: with out_proj linear and the gate applied to each, the directions simply add.
    back = slow_mamba(direction("backwards"), x.double().flip(0), 4).flip(0)
    assert relative_error(layer(x[None], None)[0].double(), ahead + back) < 1e-6
    # Every frame hears the last one.
    y = x.clone()
    y[-1] += 1.0
    assert ((layer(y[None], None) - layer(x[None], None)).abs().amax(dim=2) > 0).all()


def test_a_checkpoint_does_not_depend_on_the_backend() -> None:
    torch.manual_seed(0)
    one, other = (
        MambaEncoder(12, 2, 32, 8, 4, 2, 1, "rms_norm", 0.0, backend)
        for backend in ("fused", "torch")  # type: ignore[arg-type]
    )
    other.load_state_dict(one.state_dict())
    features = torch.randn(3, 12, 50)
    outputs, gradients = [], []
    for encoder in (one, other):
        hidden, _ = encoder(features, torch.tensor([50, 31, 1]))
        valid = torch.cat([hidden[row, :, :length] for row, length in enumerate((50, 31, 1))], dim=1)
        outputs.append(valid)
        gradients.append(torch.autograd.grad(valid.square().sum(), list(encoder.parameters())))
    assert relative_error(outputs[0], outputs[1]) < 1e-5
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("name", ["mamba", "mamba2", "bimamba"])
def test_a_strided_front_end_ignores_padding(name: str, factor: int) -> None:
    encoder = speaker_model(name, subsampling=factor, d_model=64, num_layers=2).encoder.eval()
    lengths = torch.tensor([90, 41, 7, 1])
    features = torch.randn(4, 80, 90)
    for row, length in enumerate(lengths):
        features[row, :, length:] = 1e3  # garbage
    hidden, frames = encoder(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = encoder(features[row : row + 1, :, :length], None)
        assert int(frames[row]) == alone.shape[2]
        assert relative_error(hidden[row, :, : frames[row]], alone[0]) < 1e-5


def test_official_names_and_shapes() -> None:
    """Of mamba_ssm.Mamba(256) and mamba_ssm.Mamba2(256), read from their source."""
    mamba = Mamba(256, 16, 4, 2, "torch")
    assert {key: tuple(value.shape) for key, value in mamba.state_dict().items()} == {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 256),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (16 + 2 * 16, 512),
        "dt_proj.weight": (512, 16),
        "dt_proj.bias": (512,),
        "out_proj.weight": (256, 512),
    }
    mamba2 = Mamba2(256, 128, 4, 2, 64, 1, "torch")
    assert {key: tuple(value.shape) for key, value in mamba2.state_dict().items()} == {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (2 * 512 + 2 * 128 + 8, 256),
        "conv1d.weight": (512 + 2 * 128, 1, 4),
        "conv1d.bias": (512 + 2 * 128,),
        "norm.weight": (512,),
        "out_proj.weight": (256, 512),
    }


def test_official_initialisation() -> None:
    torch.manual_seed(0)
    mamba = Mamba(256, 16, 4, 2, "torch")
    assert torch.equal(mamba.A_log[3], torch.arange(1.0, 17.0).log())
    assert (mamba.D == 1).all()
    assert float(mamba.dt_proj.weight.detach().abs().max()) <= 16**-0.5
    for bias in (mamba.dt_proj.bias, Mamba2(256, 64, 4, 2, 64, 1, "torch").dt_bias):
        steps = F.softplus(bias).detach()
        assert float(steps.min()) >= 1e-3 * 0.999
        assert float(steps.max()) <= 0.1 * 1.001
    steps = F.softplus(mamba.dt_proj.bias).detach()
    # Log-uniform: a quarter of the steps lies below the first quarter of the logarithm's range.
    assert abs(float((steps < 1e-3 * 100**0.25).float().mean()) - 0.25) < 0.06
    decay = Mamba2(4096, 8, 4, 2, 8, 1, "torch").A_log.detach().exp()
    assert abs(float(decay.mean()) - 8.5) < 0.5
    assert float(decay.min()) >= 1
    assert float(decay.max()) <= 16
    shallow, deep = (MambaEncoder(8, n, 64, 4, 4, 2, 1, "rms_norm", 0.0, "torch") for n in (1, 16))
    ratio = shallow.layers[0].out_proj.weight.std() / deep.layers[0].out_proj.weight.std()
    assert abs(ratio.item() - 4) < 0.2


def test_number_of_parameters() -> None:
    """Counted from the papers' figures."""
    d, inner, taps = 512, 1024, 4
    rank = math.ceil(d / 16)

    def direction(n: int) -> int:
        return inner * (taps + 1) + inner * (rank + 2 * n) + (rank + 1) * inner + inner * n + inner

    projections = 2 * d * inner + inner * d
    mamba2 = d * (2 * inner + 2 * 64 + 16) + (inner + 2 * 64) * (taps + 1) + 3 * 16 + inner + inner * d
    ends = 80 * d + d + d  # the front end and the last norm
    for name, layer in (
        ("mamba", projections + direction(32)),
        ("bimamba", projections + 2 * direction(16)),
        ("mamba2", mamba2),
    ):
        assert count(speaker_model(name).encoder) == ends + 3 * (layer + d), name
    c, rank = 512, 32  # mamba_ecapa: the blocks of ECAPA around a bidirectional Mamba with as many channels inside
    both = 3 * c * c + 2 * (c * 5 + c * (rank + 32) + (rank + 1) * c + c * 16 + c)
    block = 2 * (c * c + 3 * c) + both + 2 * c * 128 + c + 128
    assert count(speaker_model("mamba_ecapa").encoder) == 80 * c * 5 + 3 * c + 3 * block + 3 * c * 1536 + 1536


def test_multiply_accumulates() -> None:
    """Of 100 frames by hand: matrix products, 4 taps a channel, and 3 a state for the scan."""
    d, inner, n, frames = 512, 1024, 32, 100
    layer = d * 2 * inner + 4 * inner + inner * (32 + 2 * n) + 32 * inner + 3 * inner * n + inner * d
    ends = 80 * d + d * 128 + 128 * d  # the front end, the attention of the pooling
    once = 2 * d * 128 + 2 * d * 192  # its view of the utterance, the embedding
    seconds = (25 + 10 * (frames - 1)) / 1000
    model = speaker_model("mamba", backend="torch")
    # The convolution's zeros before the first frame are multiplied too.
    padding = 3 * 3 * 4 * inner
    counted = count_macs(Workload(model, seconds, "fp32"))
    assert counted.declared == {"selective_scan": 3 * 3 * inner * n * frames}
    assert 0 <= counted.model - (frames * (3 * layer + ends) + once) <= padding


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match=r"expand \* d_model = 96 must be a multiple of headdim=64"):
        Mamba2(48, 16, 4, 2, 64, 1, "torch")


def test_weight_decay_spares_what_is_marked() -> None:
    model = speaker_model("mamba", d_model=32)
    head = nn.Linear(model.embedding_size, 2)
    step = TrainStep(model, head, None, None)  # type: ignore[arg-type]
    groups = parameter_groups(step, {}, None, lr=0.1)
    spared = {id(parameter) for parameter in groups[1]["params"]}
    names = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if id(parameter) in spared}
    assert names == {"A_log", "D"}
    assert groups[1]["weight_decay"] == 0.0
    counted = len(groups[0]["params"]) + len(groups[1]["params"])
    assert counted == len(list(model.parameters())) + len(list(head.parameters()))


@pytest.mark.slow
def test_a_run_resumes_and_its_model_does_not_ask_for_the_kernel_it_was_trained_with(
    make_corpus: Corpus, tmp_path: Path
) -> None:
    """Two groups of parameters in the optimizer; backend=fused in the run's config, torch where it is loaded."""
    settings = ["data=manifest", f"data.manifest='{make_corpus()}'", "model=mamba", "augment=none"]
    settings += ["model.encoder.d_model=32", "model.encoder.num_layers=1", "model.encoder.backend=fused"]
    settings += ["trainer.batch_size=8", "data.crop_seconds=0.4", "scoring.bootstrap=20"]
    settings += ["trainer/schedule=constant"]
    for folder, steps in (("whole", 4), ("parts", 2)):
        done = run("train", *settings, f"trainer.max_steps={steps}", f"run_dir='{tmp_path / folder}'")
        assert done.returncode == 0, done.stderr
    done = run("train", f"resume={tmp_path / 'parts'}", "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    whole, parts = (checkpoint.load_tensors(tmp_path / f / "checkpoints/last")[0] for f in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    model, _, _ = build.trained_model(tmp_path / "whole")
    assert model.encoder.layers[0].backend == "auto"
