"""The four systems of experiments/seeds: their configs hold the numbers of the recipes that they are called after."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build
from spkexp.augment.augmentation import Material, Signal
from spkexp.compose import compose_config
from spkexp.config import check, config_folder
from spkexp.counter import item_keys
from spkexp.data.sampler import SpeakerSampler
from spkexp.schedule import Cyclic

FOLDER = config_folder().parent / "experiments" / "seeds"
AT = ["data.root=/corpora/x", "augment.musan=/corpora/musan", "augment.rirs=/corpora/rirs"]
NEEDS = {"speaker_id_template": AT[:2], "librispeech_classifiers": AT[:1], "pyannote_sinctdnn": AT[:2]}
ADAM, SGD = "torch.optim.Adam", "torch.optim.SGD"

# What each recipe says, key by key.
RECIPES: dict[str, dict[str, Any]] = {
    "speaker_id_template": {
        "data.corpus._target_": "spkexp.data.corpora.mini_librispeech.MiniLibriSpeech",
        "data.split": {"by": "utterance", "fractions": [0.8, 0.1, 0.1], "seed": 0},
        "model.features.num_mels": 23,
        "model.encoder._target_": "spkexp.models.xvector.XVector",
        "model.encoder.channels": [512, 512, 512, 512, 1500],
        "model.encoder.kernel_sizes": [5, 3, 3, 1, 1],
        "model.encoder.dilations": [1, 2, 3, 1, 1],
        "model.embedding_size": 512,
        "loss._target_": "spkexp.losses.softmax.Softmax",
        "augment.speeds": [0.95, 1.05],
        "augment.speed_label": "same",
        "augment.waveform.keep_original": True,
        "augment.waveform.branches.augmented.steps.noise.probability": 1.0,
        "augment.waveform.branches.augmented.steps.noise.kinds.noise.snr_db": [0, 15],
        "augment.waveform.branches.augmented.steps.frequency_drop.count": [0, 3],
        "augment.waveform.branches.augmented.steps.chunk_drop.count": [0, 5],
        "augment.waveform.branches.augmented.steps.chunk_drop.seconds": [1000 / 16_000, 2000 / 16_000],
        "trainer.optimizer._target_": ADAM,
        "trainer.optimizer.lr": 1e-3,
        "trainer.schedule": {"_target_": "spkexp.schedule.Linear", "final": 0.1, "warmup_epochs": 0.0},
        "trainer.epochs": 15,
        "trainer.batch_size": 16,
    },
    "librispeech_classifiers": {
        "data.corpus.closed_set": True,
        "data.split.by": "utterance",
        "model.features.num_mels": 80,
        "augment.waveform": None,
        "augment.speeds": [],
        "loss._target_": "spkexp.losses.softmax.Softmax",
        "loss.class_weights": "inverse_frequency",
        "trainer.optimizer._target_": "torch.optim.AdamW",
        "trainer.optimizer.lr": 1e-4,
        "trainer.optimizer.weight_decay": 1e-5,
        "trainer.schedule._target_": "spkexp.schedule.Constant",
        "trainer.clip_norm": 1.0,
        "trainer.epochs": 10,
    },
    "pyannote_sinctdnn": {
        "model.features._target_": "spkexp.features.Waveform",
        "model.features.sample_rate": 16_000,
        "model.encoder._target_": "spkexp.models.sinctdnn.SincTDNN",
        "model.encoder.sinc_stride": 5,
        "model.embedding_size": 512,
        "data.crop_seconds": 2.0,
        "data.sampler.utterances_per_speaker": 1,
        "data.sampler.epoch_hours": 5 * 24.0,
        "augment.waveform.kinds.noise.snr_db": [5, 15],
        "augment.waveform.kinds.music.snr_db": [5, 15],
        "loss._target_": "spkexp.losses.margin.AAMSoftmax",
        "loss.margin": 0.05,
        "loss.scale": 10.0,
        "trainer.optimizer._target_": SGD,
        "trainer.optimizer.lr": 0.01,
        "trainer.schedule": {"_target_": "spkexp.schedule.Constant", "warmup_epochs": 0.0},
        "trainer.batch_size": 256,
    },
    "voxceleb_ecapa": {
        "model.features.num_mels": 80,
        "model.encoder.channels": 1024,
        "model.encoder.aggregation_channels": 3072,
        "model.encoder.kernel_sizes": [5, 3, 3, 3],
        "model.encoder.dilations": [1, 2, 3, 4],
        "model.pooling.attention_channels": 128,
        "model.embedding_size": 192,
        "data.crop_seconds": 3.0,
        "loss._target_": "spkexp.losses.margin.AAMSoftmax",
        "loss.margin": 0.2,
        "loss.scale": 30.0,
        "augment.speeds": [],
        "augment.waveform.keep_original": True,
        "augment.waveform.branches.noise.kinds.noise.snr_db": [0, 15],
        "trainer.optimizer._target_": ADAM,
        "trainer.optimizer.lr": 1e-3,
        "trainer.optimizer.weight_decay": 2e-6,
        "trainer.schedule": {"_target_": "spkexp.schedule.Cyclic", "floor": 1e-5, "half_cycle_steps": 65_000},
        "trainer.batch_size": 32,
    },
}


def composed(name: str, *overrides: str) -> DictConfig:
    return compose_config([f"experiments=seeds/{name}", *NEEDS.get(name, AT), *overrides])


def test_every_system_has_a_recipe_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_holds_the_numbers_of_its_recipe(name: str) -> None:
    cfg = composed(name)
    check(cfg)
    for key, value in RECIPES[name].items():
        found = OmegaConf.select(cfg, key, throw_on_missing=True)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value, key


def test_the_classifiers_are_four_and_of_the_study_s_sizes() -> None:
    swept = OmegaConf.load(FOLDER / "librispeech_classifiers.yaml").hydra.sweeper.params
    assert dict(swept) == {"model": "conv1d,conv2d,mamba,transformer"}
    sizes = {
        "mamba": {"num_layers": 3, "d_model": 512, "d_state": 32, "d_conv": 4},
        "transformer": {"num_layers": 3, "attention_heads": 4, "channels": 512},
    }
    for model in swept.model.split(","):
        cfg = composed("librispeech_classifiers", f"model={model}")
        check(cfg)
        assert cfg.model.pooling._target_ == "spkexp.models.pooling.MeanPooling"
        assert cfg.model.features.num_mels == 80
        assert {key: cfg.model.encoder[key] for key in sizes.get(model, {})} == sizes.get(model, {})


def test_parameters_are_those_of_the_published_networks() -> None:
    """ECAPA's number is that of SpeechBrain's ECAPA_TDNN(80, …); the x-vector's is worked out by hand."""
    layers = ((23, 512, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (512, 1500, 1))
    xvector = sum(before * after * kernel + 3 * after for before, after, kernel in layers) + (2 * 1500 + 1) * 512
    for name, count in (("voxceleb_ecapa", 20_767_552), ("speaker_id_template", xvector)):
        model = build.model(composed(name).model)
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_ecapa_ends_at_the_bottom_of_a_cycle() -> None:
    trainer = composed("voxceleb_ecapa").trainer
    rate = Cyclic(trainer.schedule.floor, trainer.schedule.half_cycle_steps, trainer.max_steps, 1)
    assert trainer.max_steps % (2 * trainer.schedule.half_cycle_steps) == 0
    assert trainer.optimizer.lr * rate(65_000) == pytest.approx(1e-3)
    assert trainer.optimizer.lr * rate(trainer.max_steps) == pytest.approx(1e-8)
    steps = trainer.epochs * (1_092_009 // trainer.batch_size)  # utterances of VoxCeleb2
    assert 0 <= steps - trainer.max_steps < 0.05 * steps


def test_sinctdnn_s_batches_have_as_many_speakers_as_utterances() -> None:
    cfg = composed("pyannote_sinctdnn")
    label = np.repeat(np.arange(5_994, dtype=np.int32), 3)
    sampler = SpeakerSampler(label, cfg.trainer.batch_size, cfg.data.crop_seconds, 1, cfg.data.sampler.epoch_hours)
    assert sampler.steps_per_epoch == 5 * 24 * 3600 // (2 * 256)
    assert all(len(np.unique(label[batch])) == 256 for batch in sampler.epoch(0, 0))


def test_the_template_s_batch_is_the_original_and_one_augmented_copy(tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise/n.wav", 0.1 * np.random.default_rng(0).standard_normal(40_000), 16_000)
    cfg = composed("speaker_id_template", f"augment.musan='{tmp_path}'")
    augmentation = build.augmentation(cfg.augment.waveform, "augment.waveform", 16_000)
    rows, keys, material = torch.rand(16, 24_000) - 0.5, item_keys(0, 0, np.arange(16)), Material()
    augmentation.read(keys, 24_000, material)
    out = augmentation(Signal(rows, torch.full((16,), 24_000), keys, np.arange(16)), iter(material.tensors))
    assert out.source.tolist() == [*range(16)] * 2
    assert torch.equal(out.waveform[:16], rows)
    assert (out.waveform[16:] != rows).any(dim=1).all()
