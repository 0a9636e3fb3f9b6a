"""The losses and presets of conf/, as a command line composes them."""

from pathlib import Path

import polars as pl
import pytest
import torch

from spkexp import build
from spkexp.compose import compose_config
from spkexp.config import check, config_folder
from spkexp.data.utterances import Utterances
from spkexp.errors import ConfigError, UserError
from spkexp.losses.combined import Combined
from spkexp.losses.head import Loss
from spkexp.losses.triplet import Triplet

LOSSES = sorted(file.stem for file in Path(config_folder(), "loss").glob("*.yaml"))
COUNT, SIZE = 8, 4


def built(*overrides: str) -> Loss:
    cfg = compose_config([*overrides])
    check(cfg)
    names = [f"u{index}" for index in range(COUNT)]
    table = pl.DataFrame({"id": names, "path": names, "duration": [2.0] * COUNT, "speaker": names})
    return build.loss(cfg, Utterances.of(table, "speaker"), SIZE, steps_per_epoch=10)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_built_and_has_a_gradient(name: str) -> None:
    loss = built(f"loss={name}")
    x = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss(x, torch.tensor([0, 1, 0, 1, 2, 2]), 0).loss.backward()
    assert x.grad.abs().sum() > 0
    classifier = loss.classifier
    assert classifier is None or classifier.scores(x).shape == (6, COUNT)


def test_parts_of_a_combination_are_exchanged_and_added() -> None:
    more = ["loss@loss.losses.ge2e=triplet", "loss.losses.ge2e.mining=hardest", "loss.weights.ge2e=0.5"]
    loss = built("loss=aam_ge2e", *more, "+loss@loss.losses.more=supervised_contrastive", "+loss.weights.more=2")
    assert isinstance(loss, Combined)
    assert loss.weights == {"aam": 1.0, "ge2e": 0.5, "more": 2.0}
    assert isinstance(loss.losses["ge2e"], Triplet)


def test_mistakes_of_a_part_are_named() -> None:
    with pytest.raises(ConfigError, match=r"loss\.losses\.aam\.margin: must be >= 0, got -1"):
        built("loss=aam_ge2e", "loss.losses.aam.margin=-1")
    with pytest.raises(ConfigError, match=r"loss\.losses\.ge2e\.varant: GE2E takes no 'varant'; did you mean"):
        built("loss=aam_ge2e", "+loss.losses.ge2e.varant=softmax")
    with pytest.raises(UserError, match=r"loss: weights must be given for aam, ge2e, got aam"):
        built("loss=aam_ge2e", "~loss.weights.ge2e")
    with pytest.raises(UserError, match=r"loss: top_k=9: of 8 classes 7 are others; choose fewer"):
        built("loss=inter_topk_aam", "loss.top_k=9")


def test_large_margin_preset() -> None:
    cfg = compose_config(
        ["preset=large_margin", "init_from=a_run", "augment=wespeaker", "augment.musan=m", "augment.rirs=r"]
    )
    check(cfg)
    assert (cfg.data.crop_seconds, cfg.augment.speeds, cfg.trainer.epochs) == (6.0, [], 5)
    assert (cfg.loss.margin, cfg.loss.initial_margin, cfg.loss.ramp_epochs) == (0.5, 0.5, [0, 0])
    assert cfg.trainer.optimizer == {
        "_target_": "torch.optim.SGD", "lr": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4,
        "fused": True,
    }  # fmt: skip
    schedule = build.build(cfg.trainer.schedule, "trainer.schedule", total_steps=500, steps_per_epoch=100)
    assert 1e-4 * schedule(499) == pytest.approx(2.5e-5)
    assert schedule(0) == pytest.approx(0.01)


def test_the_command_line_wins_over_a_preset() -> None:
    cfg = compose_config(["preset=large_margin", "trainer/optimizer=adam", "loss.margin=0.3", "trainer.epochs=2"])
    check(cfg)
    assert (cfg.trainer.optimizer._target_, cfg.loss.margin, cfg.trainer.epochs) == ("torch.optim.Adam", 0.3, 2)
