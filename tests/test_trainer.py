"""What a trainer takes up from a checkpoint."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from spkexp import checkpoint
from spkexp.meter import BadFiles
from spkexp.sections import Trainer as Settings
from spkexp.trainer import Trainer

CONFIG = OmegaConf.create({"model": {"_target_": "x"}, "seed": 0})


def trainer(folder: Path, banks: dict[str, str]) -> Trainer:
    step = nn.Module()
    step.model, step.head = nn.Linear(2, 2), nn.Linear(2, 2)
    settings = Settings.model_construct(precision="fp32")
    return Trainer(
        train_step=step,  # type: ignore[arg-type]
        optimizer=SimpleNamespace(param_groups=[], state_dict=dict, load_state_dict=lambda state: None),  # type: ignore[arg-type]
        schedule=lambda step: 1.0,
        batches=lambda step: iter(()),
        validate=None,
        settings=settings,
        meter=None,  # type: ignore[arg-type]
        bad_files=BadFiles("skip", 1.0, 10),
        tracker=None,  # type: ignore[arg-type]
        config=CONFIG,
        labels=["a", "b"],
        data_digest="d",
        bank_digests=banks,
        folder=folder,
        device=torch.device("cpu"),
        steps_per_epoch=5,
        total_steps=10,
    )


def test_a_bank_with_other_files_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = trainer(tmp_path, {"augment.waveform.noise": "1", "augment.waveform.rooms": "2"})
    state = {
        "step": 3, "data_digest": "d", "steps_per_epoch": 5, "bank_digests": first.bank_digests, "validated": 0,
        "best": {}, "seconds": 0.0, "bad_files": first.bad_files.state(), "optimizer": first.optimizer.state_dict(),
        "scaler": first.scaler.state_dict(),
    }  # fmt: skip
    checkpoint.save(tmp_path / "last", first.train_step.model, first.train_step.head, CONFIG, ["a", "b"], state)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, first.bank_digests).load(tmp_path / "last")
        assert caplog.records == []
        other = trainer(tmp_path, {"augment.waveform.noise": "1", "augment.waveform.rooms": "3"})
        other.load(tmp_path / "last")
    (record,) = caplog.records
    assert record.message.startswith("resume: augment.waveform.rooms has other files than the run began with")
    assert other.step == 3
