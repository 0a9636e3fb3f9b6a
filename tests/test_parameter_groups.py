"""Which parameters learn, how fast and from when on."""

import copy
import io
import math
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spkexp import build, distributed
from spkexp.config import ConfigError
from spkexp.errors import UserError
from spkexp.parameter_groups import Freezing, check_optimizer, parameter_groups
from spkexp.sections import ParamGroup
from tests.model_tools import NAMES, model_config, speaker_model


class Step(nn.Module):
    """A model and a head under the names that a TrainStep gives them."""

    def __init__(self, model: nn.Module, classes: int = 4) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(int(model.embedding_size), classes)  # type: ignore[arg-type]  # of any module, says torch


def group(match: str, **settings: Any) -> ParamGroup:
    return ParamGroup(match=match, **settings)


def transformer_step() -> Step:
    return Step(speaker_model("transformer", channels=16, num_layers=2, feedforward_channels=8, dropout=0.0))


def ecapa_step() -> Step:
    return Step(speaker_model("ecapa_small", channels=16, aggregation_channels=24, se_channels=4))


def names_of(step: nn.Module, entry: Mapping[str, Any]) -> set[str]:
    members = {id(parameter) for parameter in entry["params"]}
    return {name for name, parameter in step.named_parameters() if id(parameter) in members}


def test_without_groups_only_weight_decay_tells_parameters_apart() -> None:
    step = Step(speaker_model("mamba", d_model=32, num_layers=1))
    decayed, exempt = parameter_groups(step, {}, None, 1e-3)
    assert {name.rpartition(".")[2] for name in names_of(step, exempt)} == {"A_log", "D"}
    assert (exempt["weight_decay"], exempt["name"], decayed["name"]) == (0.0, "default.no_decay", "default")
    assert set(decayed) == {"params", "name"}  # the optimizer's own settings
    assert names_of(step, decayed) | names_of(step, exempt) == {name for name, _ in step.named_parameters()}
    assert [id(p) for p in decayed["params"]] == [
        id(p) for name, p in step.named_parameters() if name.rpartition(".")[2] not in ("A_log", "D")
    ]


def test_groups_have_settings_of_their_own() -> None:
    step = Step(speaker_model("mamba", d_model=32, num_layers=1))
    groups = {
        "front": group("model.encoder.subsampling", lr=0.5),
        "core": group("model.encoder.layers.*|model.encoder.*norm*", weight_decay=0.3),
        "gone": None,
        "head": group("head.*", lr=2.0, weight_decay=0.0),
        "stays": group("model.embedding", frozen_epochs="all"),
    }
    found = {entry["name"]: entry for entry in parameter_groups(step, groups, None, 1e-3)}
    assert list(found) == ["default", "front", "core", "core.no_decay", "head"]
    settings = {name: {k: v for k, v in e.items() if k in ("lr", "weight_decay")} for name, e in found.items()}
    assert settings == {
        "default": {},
        "front": {"lr": 0.5},
        "core": {"weight_decay": 0.3},
        "core.no_decay": {"weight_decay": 0.0},  # A_log and D, whatever the group says
        "head": {"lr": 2.0, "weight_decay": 0.0},
    }
    assert names_of(step, found["front"]) == {
        "model.encoder.subsampling.projection.weight",
        "model.encoder.subsampling.projection.bias",
    }
    assert {"model.encoder.norms.0.weight", "model.encoder.last_norm.weight"} < names_of(step, found["core"])
    assert names_of(step, found["head"]) == {"head.weight", "head.bias"}
    everything = [name for entry in found.values() for name in names_of(step, entry)]
    assert sorted([*everything, "model.embedding.weight", "model.embedding.bias"]) == sorted(
        name for name, _ in step.named_parameters()
    )
    optimizer = torch.optim.SGD(list(found.values()), lr=0.1, weight_decay=0.01)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.1, 0.01), (0.5, 0.01), (0.1, 0.3), (0.1, 0.0), (2.0, 0.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"a": group("model.encodr.*")},
            r"trainer.param_groups.a.match: no parameter or module is called 'model.encodr.\*'; the closest are "
            "model.encoder",
        ),
        ({"a": group("head.*|nothing")}, "no parameter or module is called 'nothing'"),
        ({"a": group("head|")}, "no parameter or module is called ''"),
        ({"a": group("qqqq")}, "names begin with model.encoder, model.pooling, .*head.weight"),
        (
            {"a": group("model.*"), "b": group("*.bias")},
            r"b.match: '\*.bias' matches .* and \d+ more, which trainer.param_groups.a.match matches too",
        ),
        ({"default": group("head")}, "param_groups.default: .*take another name"),
        ({"a": group("*", frozen_epochs=1)}, "nothing to train"),
        ({"a": group("model", frozen_epochs="all"), "b": group("head", frozen_epochs=0.5)}, "nothing to train"),
    ],
)
def test_what_cannot_be_grouped(groups: dict[str, ParamGroup | None], message: str) -> None:
    step = ecapa_step()
    with pytest.raises(ConfigError, match=message):
        parameter_groups(step, groups, None, 1e-3)
    with pytest.raises(ConfigError, match=message):
        Freezing(step, groups, 10)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parameter_groups(ecapa_step(), {"a": group("x.y"), "b": group("head"), "c": group("head.bias")}, None, 1e-3)
    assert len(error.value.mistakes) == 2


def test_a_group_of_what_the_model_froze_itself_is_a_mistake() -> None:
    step = ecapa_step()
    step.model.encoder.first.requires_grad_(False)
    with pytest.raises(ConfigError, match="trains nothing of what"):
        parameter_groups(step, {"a": group("model.encoder.first", lr=1.0)}, None, 1e-3)


def test_a_weight_decay_that_nobody_looks_at() -> None:
    groups = {"a": group("head", weight_decay=0.1), "b": group("model", lr=0.1)}
    parameters = [nn.Parameter(torch.zeros(1))]
    check_optimizer(torch.optim.AdamW(parameters), groups)
    with pytest.raises(ConfigError, match=r"param_groups.a.weight_decay: Rprop has no weight decay"):
        check_optimizer(torch.optim.Rprop(parameters), groups)


def test_layer_decay_by_hand() -> None:
    step = transformer_step()
    groups = {"biases": group("model.encoder.layers.0.*.bias", lr=10.0)}
    rates = {
        name: entry["lr"]
        for entry in parameter_groups(step, groups, 0.5, 0.8)
        for name in names_of(step, entry)
    }  # fmt: skip
    assert set(rates) == {name for name, _ in step.named_parameters()}
    for name, rate in rates.items():
        expected = 0.8  # pooling, embedding, head
        if name.startswith(("model.encoder.layers.1.", "model.encoder.norm.")):
            expected = 0.8
        elif name.startswith("model.encoder.layers.0."):
            expected = 5.0 if name.endswith(".bias") else 0.4
        elif name.startswith("model.encoder.subsampling."):
            expected = 0.2
        assert math.isclose(rate, expected), name


def test_layer_decay_of_an_encoder_that_does_not_tell_its_layers() -> None:
    class Outside(nn.Linear):
        pass

    step = ecapa_step()
    step.model.encoder = Outside(2, 2)
    assert parameter_groups(step, {}, None, 1e-3)
    with pytest.raises(UserError, match=r"trainer.layer_decay: Outside .*layers_from_input"):
        parameter_groups(step, {}, 0.9, 1e-3)


def test_layer_decay_needs_a_rate() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.optimizer\.lr"):
        parameter_groups(ecapa_step(), {}, 0.9, None)


# One of each class; `make test-slow` has the others, which differ in size.
FAMILIES = {"xvector", "ecapa_small", "resnet18", "res2net", "eres2netv2", "campplus", "conformer", "transformer"}
FAMILIES |= {"conv1d", "conv2d", "redimnet_b0", "mamba", "mamba2", "mamba_ecapa", "rawnet3", "sinctdnn", "wavlm"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in NAMES]
)
def test_layers_are_those_that_forward_goes_through(name: str) -> None:
    cfg = model_config(name)
    features = build.build(cfg.features, "model.features")
    # Without data where their constructor allows it.
    device = "cpu" if "mamba" in name or name in ("rawnet3", "sinctdnn") else "meta"
    waveform = features.out_channels == 1
    with torch.device(device):
        encoder = build.build(cfg.encoder, "model.encoder", in_channels=features.out_channels).eval()
        dummy = torch.zeros(1, features.out_channels, 16_000 if waveform else 120)
    layers = encoder.layers_from_input
    assert len(layers) >= 3
    parts = [part for layer in layers for part in layer]
    called: list[nn.Module] = []
    for part in parts:
        if isinstance(part, nn.Module):
            part.register_forward_hook(lambda module, inputs, output: called.append(module))
    with torch.device(device), torch.no_grad():
        encoder(dummy, None)
    assert called == [part for part in parts if isinstance(part, nn.Module)]
    members = [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
    everything = {id(parameter) for parameter in encoder.parameters()}
    assert len({id(parameter) for parameter in members}) == len(members)
    assert {id(parameter) for parameter in members} <= everything
    covered = sum(p.numel() for p in members) / sum(p.numel() for p in encoder.parameters())
    assert covered > 0.85, "most of the network must be in its layers"


def batch(step: int) -> Tensor:
    return torch.randn(4, 80, 40, generator=torch.Generator().manual_seed(step))


def one_step(module: Step, optimizer: torch.optim.Optimizer, freezing: Freezing, step: int) -> bool:
    """As the training loop does it; validation before it has put everything into training mode."""
    module.eval()
    module.train()
    changed = freezing.apply(step)
    torch.manual_seed(step)
    optimizer.zero_grad(set_to_none=True)
    embedding = module.model.embed(batch(step), torch.full((4,), 40))
    nn.functional.cross_entropy(module.head(embedding), torch.arange(4)).backward()
    optimizer.step()
    return changed


GROUPS = {
    "front": group("model.encoder.first|model.encoder.blocks.0", frozen_epochs=1.5),
    "last": group("head", lr=0.1),
}
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, fused=True)


def test_frozen_parameters_and_statistics_stay_until_their_epoch() -> None:
    module = ecapa_step()
    optimizer = adamw(parameter_groups(module, GROUPS, None, 1e-2))
    freezing = Freezing(module, GROUPS, steps_per_epoch=2)  # frozen for the steps 0, 1 and 2
    for step in range(5):
        before = copy.deepcopy(module.state_dict())
        assert one_step(module, optimizer, freezing, step) == (step in (0, 3))
        stayed = {name for name, value in module.state_dict().items() if torch.equal(value, before[name])}
        frozen = {name for name in before if name.startswith(("model.encoder.first.", "model.encoder.blocks.0."))}
        assert any("running_mean" in name for name in frozen)
        assert any("num_batches_tracked" in name for name in frozen)
        features = {name for name in before if name.startswith("model.features.")}
        assert stayed == features | (frozen if step < 3 else set())
    assert all(norm.training for norm in module.modules())


def test_freezing_goes_by_the_step_alone() -> None:
    module = ecapa_step()
    freezing = Freezing(module, GROUPS, steps_per_epoch=2)
    frozen = module.model.encoder.first.conv.weight
    frozen.grad = torch.ones_like(frozen)
    assert [freezing.apply(step) for step in (0, 2, 3, 9, 1, 1, 3)] == [True, False, True, False, True, False, True]
    assert frozen.grad is None  # a gradient from before must move nothing
    norm = module.model.encoder.first.norm
    freezing.apply(0)
    assert (frozen.requires_grad, norm.training) == (False, False)
    freezing.apply(3)
    assert (frozen.requires_grad, norm.training) == (True, True)


@pytest.mark.parametrize("make", [adamw, lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, fused=True)])
@pytest.mark.parametrize("cut", [2, 3, 4])
def test_a_resumed_run_is_the_same_bit_for_bit(make: MakeOptimizer, cut: int) -> None:
    def fresh() -> tuple[Step, torch.optim.Optimizer, Freezing]:
        module = ecapa_step()
        optimizer = make(parameter_groups(module, GROUPS, 0.7, 1e-2))
        return module, optimizer, Freezing(module, GROUPS, steps_per_epoch=2)

    module, optimizer, freezing = fresh()
    saved = io.BytesIO()
    for step in range(6):
        if step == cut:
            torch.save((module.state_dict(), optimizer.state_dict()), saved)
        one_step(module, optimizer, freezing, step)
    resumed, its_optimizer, its_freezing = fresh()
    weights, state = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
    resumed.load_state_dict(weights)
    its_optimizer.load_state_dict(state)
    for step in range(cut, 6):
        one_step(resumed, its_optimizer, its_freezing, step)
    expected = module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_what_is_frozen_for_good_is_not_the_optimizers() -> None:
    groups = {"body": group("model.encoder", frozen_epochs="all")}
    module = ecapa_step()
    entries = parameter_groups(module, groups, None, 1e-2)
    members = {name for entry in entries for name in names_of(module, entry)}
    assert members
    assert not any(name.startswith("model.encoder.") for name in members)
    freezing = Freezing(module, groups, steps_per_epoch=2)
    assert [freezing.apply(step) for step in (0, 10**9)] == [True, False]
    assert not any(parameter.requires_grad for parameter in module.model.encoder.parameters())
    assert not any(m.training for m in module.model.encoder.modules() if isinstance(m, nn.BatchNorm1d))
    assert module.model.pooling_norm.training


def test_what_the_model_froze_itself_stays_frozen() -> None:
    module = ecapa_step()
    first = module.model.encoder.first
    first.conv.requires_grad_(False)
    freezing = Freezing(module, GROUPS, steps_per_epoch=1)
    freezing.apply(0)
    assert freezing.apply(100)
    assert not first.conv.weight.requires_grad
    assert first.norm.weight.requires_grad


def test_a_normalisation_without_parameters_goes_with_the_module_around_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)
            self.half = nn.BatchNorm1d(3)

    module = nn.Module()
    module.a, module.b, module.head = Block(), Block(), nn.Linear(3, 2)
    groups = {"a": group("a", frozen_epochs=1), "b": group("b.half.weight", frozen_epochs=1)}
    freezing = Freezing(module, groups, steps_per_epoch=1)
    freezing.apply(0)
    modes = {name: m.training for name, m in module.named_modules() if isinstance(m, nn.BatchNorm1d)}
    assert modes == {"a.norm": False, "a.half": False, "b.norm": True, "b.half": True}
    freezing.apply(1)
    assert all(m.training for m in module.modules())


def test_frozen_parameters_and_a_scaled_loss() -> None:
    """An overflow leaves the step out for all; what is frozen has no say in it."""
    module = ecapa_step()
    optimizer = adamw(parameter_groups(module, GROUPS, None, 1e-2))
    freezing = Freezing(module, GROUPS, steps_per_epoch=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []
    for step, spoil in enumerate([False, True, False, False]):
        freezing.apply(step)
        before = copy.deepcopy(module.head.state_dict())
        optimizer.zero_grad(set_to_none=True)
        embedding = module.model.embed(batch(step), torch.full((4,), 40))
        loss = nn.functional.cross_entropy(module.head(embedding), torch.arange(4)) * (float("inf") if spoil else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before["weight"], module.head.weight) == spoil
        scales.append(scaler.get_scale())
    assert scales == [1024.0, 512.0, 512.0, 512.0]
    assert all(p.isfinite().all() for p in module.parameters())


def train_in_a_process(rank: int, port: int, static_graph: bool, results: str) -> None:
    """Of two, with half of every batch, as the training loop does it: wrapped anew when what is trained changes."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed.processes("cpu"):
        torch.save(train_thawing(rank, 2, static_graph), f"{results}/{rank}")


def train_thawing(rank: int, processes: int, static_graph: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    groups = {
        "a": group("0", frozen_epochs=2),
        "b": group("2", frozen_epochs=1),
        "c": group("4.bias", frozen_epochs="all"),
    }
    optimizer = torch.optim.AdamW(parameter_groups(module, groups, None, None), lr=0.1, fused=True)
    freezing = Freezing(module, groups, steps_per_epoch=3)
    wrapped: nn.Module | None = None
    for step in range(9):
        if freezing.apply(step) or wrapped is None:
            wrapped = distributed.wrap(module, static_graph)
        optimizer.zero_grad(set_to_none=True)
        x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        wrapped(x[rank::processes]).square().mean().backward()
        optimizer.step()
    return module.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("static_graph", [False, True])
def test_thawing_in_two_processes(static_graph: bool, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_in_a_process, (port, static_graph, str(tmp_path)), nprocs=2)
    expected = train_thawing(0, 1, static_graph)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
