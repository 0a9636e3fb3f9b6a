"""LoRA: what it computes, what learns, and what is left when it is merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from spkexp import build, checkpoint
from spkexp.compose import compose_config
from spkexp.config import check_node
from spkexp.models import lora
from spkexp.models.lora import LoraLinear
from spkexp.models.self_supervised import SelfSupervised
from tests.model_tools import model_config, relative_error
from tests.test_self_supervised import SILENT, arguments, encoder, randomise, torchaudio_model

MATCH = "layers.*.attention.*_proj|*.feed_forward.*"
LORA: dict[str, Any] = {"lora_rank": 2, "lora_alpha": 6.0, "lora_dropout": 0.0, "lora_match": MATCH}


def adapted(kind: str, trainable: Any = "none", **changed: Any) -> SelfSupervised:
    """The encoder of `encoder(kind)`, with LoRA."""
    torch.manual_seed(0)
    model = SelfSupervised(**arguments(kind, trainable=trainable), **LORA | changed)
    model.load_state_dict(encoder(kind).state_dict(), strict=False)
    return model


def learn_something(model: nn.Module) -> None:
    """B is not 0 any more."""
    for name, parameter in model.named_parameters():
        if name.endswith(lora.B):
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))


def test_layer_by_hand() -> None:
    """In float64: y = W x + b + (α / r) B A x."""
    torch.manual_seed(0)
    plain = nn.Linear(5, 3).double()
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    layer = LoraLinear(plain, rank=2, alpha=7.0, dropout=0.0)
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    assert torch.equal(layer(x), plain(x))  # B is 0
    assert (layer.lora_a.abs() <= 1 / 5**0.5).all()  # U(±1 / √in), Kaiming's with a = √5
    assert layer.lora_a.std() > 0.1
    nn.init.normal_(layer.lora_b)
    expected = torch.empty(4, 6, 3, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            for o in range(3):
                small = [sum(layer.lora_a[r, k] * x[i, j, k] for k in range(5)) for r in range(2)]
                low = sum(layer.lora_b[o, r] * small[r] for r in range(2))
                expected[i, j, o] = sum(weight[o, k] * x[i, j, k] for k in range(5)) + bias[o] + 7.0 / 2 * low
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer(x).square().sum().backward()
    assert [p.grad is None for p in (layer.weight, layer.bias, layer.lora_a, layer.lora_b)] == [
        True,
        True,
        False,
        False,
    ]
    holder = nn.Sequential(layer)
    assert lora.merge(holder) == 1
    assert type(holder[0]) is nn.Linear
    torch.testing.assert_close(holder[0].weight, weight + 7.0 / 2 * layer.lora_b @ layer.lora_a)
    torch.testing.assert_close(holder(x), expected, rtol=1e-12, atol=1e-12)
    assert lora.merge(holder) == 0


def test_dropout_is_of_the_small_matrices_alone() -> None:
    layer = LoraLinear(nn.Linear(64, 8), rank=64, alpha=64.0, dropout=0.5)
    with torch.no_grad():
        layer.lora_a.copy_(torch.eye(64))
        layer.lora_b.fill_(1.0)
        x = torch.ones(1000, 64)
        beside = layer.train()(x) - nn.functional.linear(x, layer.weight, layer.bias)
        # Each of 64 inputs is 0 or 2: twice a binomial sum.
        kept = beside[:, 0] / 2
        assert kept.mean().item() == pytest.approx(32, abs=0.5)
        assert kept.var().item() == pytest.approx(16, abs=3)
        torch.testing.assert_close(layer.eval()(x)[0, 0], layer.weight[0].sum() + layer.bias[0] + 64)


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2_large"])
def test_network_begins_as_it_was_and_can_be_merged(kind: str) -> None:
    before, model = encoder(kind).eval(), adapted(kind).eval()
    adapted_layers = [name for name, module in model.network.named_modules() if isinstance(module, LoraLinear)]
    kinds = {name.partition(".")[2].partition(".")[2] for name in adapted_layers}
    assert kinds == {
        *(f"attention.{part}_proj" for part in ("q", "k", "v", "out")),
        "feed_forward.intermediate_dense", "feed_forward.output_dense",
    }  # fmt: skip
    assert len(adapted_layers) == 3 * 6
    waveform, lengths = torch.randn(2, 1, 700), torch.tensor([700, 400])
    with torch.no_grad():
        assert torch.equal(model(waveform, lengths)[0], before(waveform, lengths)[0])
        learn_something(model)
        expected = model(waveform, lengths)[0]
        assert (expected - before(waveform, lengths)[0]).abs().max() > 0.1
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert lora.merge(model) == 18
        assert relative_error(model(waveform, lengths)[0], expected) < 1e-5
        # The names are those of a model without LoRA, and a state_dict is merged to the same.
        lora.merge_tensors(tensors, LORA["lora_alpha"])
        before.load_state_dict(tensors)
        assert {name for name in tensors if not torch.equal(tensors[name], model.state_dict()[name])} == set()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_frozen_network_learns_by_lora_alone(dropout: float) -> None:
    model = adapted("wavlm", lora_match="layers.1.attention.q_proj", lora_dropout=dropout).train()
    learn_something(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    waveform = torch.randn(3, 1, 700)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    output = model(waveform, None)[0]
    output.square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"layer_weights", *(f"network.layers.1.attention.q_proj.{name}" for name in (lora.A, lora.B))}
    states, again = (model.network(waveform, None)[0] for _ in range(2))
    # Below LoRA there is no graph to keep, and no part of the frozen network draws dropout, but LoRA does.
    assert [state.requires_grad for state in states] == [False, False, True, True]
    assert [torch.equal(a, b) for a, b in zip(states, again, strict=True)] == [True, True, dropout == 0, dropout == 0]
    model.eval()
    assert not any(module.training for module in model.modules())


def test_layers_that_learn_keep_their_other_parameters() -> None:
    model = adapted("wavlm", trainable=1, lora_match="*.q_proj")
    learning = {name for name, p in model.network.named_parameters() if p.requires_grad}
    assert learning >= {f"layers.{i}.attention.q_proj.{part}" for i in range(3) for part in (lora.A, lora.B)}
    top = {name for name, _ in encoder("wavlm").network.named_parameters() if name.startswith("layers.2.")}
    frozen = {f"layers.2.attention.q_proj.{name}" for name in ("weight", "bias")}
    assert {name for name in learning if not lora.is_lora(name)} == top - frozen


def test_published_weights_are_taken_below_lora(tmp_path: Path) -> None:
    theirs = torchaudio_model("wavlm")
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    plain = encoder("wavlm", pretrained=weights)
    plain.load_pretrained(SILENT)
    torch.manual_seed(0)
    model = SelfSupervised(**arguments("wavlm", pretrained=weights), **LORA)
    randomise(model.network)
    own = {name: tensor.clone() for name, tensor in model.network.state_dict().items() if lora.is_lora(name)}
    model.load_pretrained(SILENT)
    after: dict[str, Tensor] = model.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in plain.network.state_dict().items())
    assert all(torch.equal(after[name], tensor) for name, tensor in own.items())


def test_trained_model_has_none_left(tmp_path: Path) -> None:
    """It is published and exported as a model without LoRA, and gives the same embeddings."""
    cfg = compose_config(["model=wavlm"])
    small = {name: value for name, value in arguments("wavlm", trainable="none").items() if name != "in_channels"}
    cfg.model.encoder.update(small | LORA)
    model = build.model(cfg.model).eval()
    learn_something(model)
    checkpoint.save_portable(tmp_path / "run", model, None, cfg, [])
    waveform, lengths = torch.randn(2, 1200), torch.tensor([1200, 800])
    place = tmp_path / "run"
    for _ in range(2):
        found, config, _ = build.trained_model(place)
        assert not any(isinstance(module, LoraLinear) for module in found.modules())
        assert config.model.encoder.lora_rank == 0
        with torch.no_grad():
            assert relative_error(found(waveform, lengths), model(waveform, lengths)) < 1e-5
        place = tmp_path / "published"
        checkpoint.save_portable(place, found, None, config, [])
    assert not any(lora.is_lora(name) for name in checkpoint.load_tensors(place)[0])


def test_mistakes() -> None:
    there = r"there are .*layers.\*.attention.q_proj"
    with pytest.raises(ValueError, match=rf"lora_match: no linear layer is called '\*.qproj'; {there}"):
        adapted("wav2vec2", lora_match="layers.*|*.qproj")
    node = OmegaConf.to_container(model_config("wavlm").encoder)
    assert isinstance(node, dict)
    assert check_node("model.encoder", node) == []
    assert check_node("model.encoder", {**node, "lora_rank": -1, "lora_rnk": 3}) == [
        "model.encoder.lora_rank: must be >= 0, got -1",
        "model.encoder.lora_rnk: SelfSupervised takes no 'lora_rnk'; did you mean 'lora_rank'?",
    ]
