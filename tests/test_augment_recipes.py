"""Every recipe of conf/augment on a small MUSAN and RIRS_NOISES: built, read for, and run on a batch."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from spkexp import build
from spkexp.augment.augmentation import Augmentation, Material, Signal
from spkexp.augment.chain import OneOf, Parallel, Sequence, prepared
from spkexp.augment.codec import CODERS
from spkexp.compose import compose_config
from spkexp.config import check
from spkexp.counter import item_keys
from spkexp.errors import UserError
from spkexp.train import with_absolute_paths
from tests.test_chain import Add, run
from tests.test_chain import signal as chain_signal

RATE, SAMPLES = 16_000, 12_000
MUSAN = ("noise/free-sound/noise-free-sound-0030", "noise/sound-bible/n", "music/fma/m", "speech/us-gov/s")
RIRS = (
    "simulated_rirs/smallroom/Room001/Room001-00001",
    "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_angla",
    "real_rirs_isotropic_noises/air_type1_air_binaural_aula_carolina_1_1_90_3",
    "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1",
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root, rng = tmp_path_factory.mktemp("my ü"), np.random.default_rng(0)
    for corpus, names in (("musan", MUSAN), ("RIRS_NOISES", RIRS)):
        for name in names:
            wave = 0.1 * rng.standard_normal(8_000) * (np.exp(-np.arange(8_000) / 500) if corpus != "musan" else 1)
            (root / corpus / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / corpus / f"{name}.wav", wave, RATE)
    return [f"augment.musan='{root}/musan'", f"augment.rirs='{root}/RIRS_NOISES'"]


# How many rows come of one, and the banks that are drawn from
RECIPES = {
    "full": (1, 5),
    "wespeaker": (1, 4),
    "speechbrain": (5, 3),
    "pyannote": (1, 2),
    "noise_reverb": (1, 5),
    "simulated": (1, 0),
}


def batch(rows: int) -> Signal:
    waveform = 0.1 * torch.randn(rows, SAMPLES, generator=torch.Generator().manual_seed(1))
    lengths = torch.full((rows,), SAMPLES)
    lengths[1::2] = SAMPLES // 2
    waveform[1::2, SAMPLES // 2 :] = 0
    return Signal(waveform, lengths, item_keys(0, 0, np.arange(rows)), np.arange(rows))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(corpora: list[str], name: str) -> None:
    cfg = compose_config([f"augment={name}", *(corpora if name != "simulated" else [])])
    for missing in (coder for coder, there in CODERS.items() if there.missing() and name == "full"):
        cfg.augment.waveform.steps.channel.choices.codec.bit_rates[missing] = None
    check(cfg)
    times, banks = RECIPES[name]
    augmentation, rows = build.augmentation(cfg.augment.waveform, "augment.waveform", RATE), 24
    assert len(augmentation.banks) == banks
    assert all(bank.place.startswith("augment.waveform.") for bank in augmentation.banks)
    signal, material = batch(rows), Material()
    keys = augmentation.read(signal.key, SAMPLES, material)
    assert material.bad == []
    left = iter(material.tensors)
    out = augmentation(signal, left)
    assert list(left) == []
    assert np.array_equal(out.key, keys)
    assert out.source.tolist() == list(range(rows)) * times
    assert out.waveform.shape == (times * rows, SAMPLES)
    assert out.waveform.isfinite().all()
    behind = torch.arange(SAMPLES) >= out.lengths[:, None]
    assert not out.waveform[behind].any()
    assert (out.lengths[0::2] > 0.8 * SAMPLES).all()  # tempo up to 1.1
    assert out.lengths[1::2] == pytest.approx(SAMPLES // 2, rel=0.12)
    changed = (out.waveform != signal.waveform.repeat(times, 1)).any(dim=1).float().mean()
    assert 0.4 < changed <= 1
    if cfg.augment.features is not None:
        features = torch.rand(rows, 80, 75) + 1
        masked = build.augmentation(cfg.augment.features, "augment.features", RATE)(features, None, out.key)
        assert ((masked == 0) | (masked == features)).all()
        assert (masked == 0).any()


def test_measured_rooms_are_drawn_as_often_as_simulated_ones(corpora: list[str]) -> None:
    for name, key in (("noise_reverb", "steps"), ("full", "steps"), ("speechbrain", "branches")):
        cfg = compose_config([f"augment={name}", *corpora])
        reverb = build.augmentation(cfg.augment.waveform[key].reverb, "augment.waveform", RATE)
        assert isinstance(reverb, OneOf)
        drawn = np.bincount(reverb._drawn(item_keys(0, 0, np.arange(4_000))), minlength=3)
        assert drawn[0] == pytest.approx(drawn[1], rel=0.1)
        assert [Path(file).parts[-2] for file in reverb.banks[1].files] == ["real_rirs_isotropic_noises"] * 2


def test_null_leaves_a_part_out(corpora: list[str]) -> None:
    steps = "augment.waveform.steps"
    cfg = compose_config(
        ["augment=full", *corpora]
        + [f"{steps}.{part}=null" for part in ("voice", "noise.kinds.music", "channel.choices.codec", "reverb")]
    )
    check(cfg)
    augmentation = build.augmentation(cfg.augment.waveform, "augment.waveform", RATE)
    assert len(list(augmentation.steps)) == 4
    kinds = f"{steps}.noise.kinds"
    assert [bank.place for bank in augmentation.banks] == [f"{kinds}.noise.source", f"{kinds}.babble.source"]
    assert len(augmentation(batch(4), iter(read(augmentation, 4))).waveform) == 4
    cfg = compose_config(["augment=speechbrain", *corpora, "augment.waveform.branches.noise=null"])
    check(cfg)
    assert len(build.augmentation(cfg.augment.waveform, "augment.waveform", RATE).branches) == 3


def read(augmentation: Augmentation, rows: int) -> list[torch.Tensor]:
    material = Material()
    augmentation.read(batch(rows).key, SAMPLES, material)
    return material.tensors


NODE = "{_target_: spkexp.augment.%s}"
GAIN = NODE % "level.Gain, probability: 1, gain_db: [0, 1]"


@pytest.mark.parametrize(
    ("key", "node", "message"),
    [
        ("steps.noise.kinds.coloured", "null", "augment.waveform.steps.noise: kinds: give at least one kind"),
        ("steps.noise.kinds.coloured", GAIN, r"augment.waveform.steps.noise: kinds.coloured: must be a Kind .*Gain is"),
        (
            "steps.noise.kinds.coloured.source",
            GAIN,
            r"kinds.coloured: source: must be a Source .*but Gain is none",
        ),
        ("steps.reverb.source", GAIN, r"augment.waveform.steps.reverb: source: must be a Rooms .*but Gain is none"),
        (
            "steps.reverb",
            NODE % "noise.ColouredNoise, exponent: [0, 1]",
            "steps.reverb: must be an Aug",
        ),
        ("", "${augment.features}", r"augment.waveform: must be an Augmentation .*but SpecAugment is none"),
        ("steps.reverb", "${augment.features}", r"augment.waveform: steps.reverb: must be .*but SpecAugment is none"),
    ],
)
def test_what_does_not_belong_there_is_named(key: str, node: str, message: str) -> None:
    full = compose_config(["augment=full", "augment.musan=x", "augment.rirs=x"]).augment.features
    cfg = compose_config(["augment=simulated"])
    cfg.augment.features = full
    OmegaConf.set_struct(cfg, False)
    value = OmegaConf.create(f"a: {node}").a if "$" not in node else full
    OmegaConf.update(cfg, f"augment.waveform.{key}".rstrip("."), value, merge=False)
    with pytest.raises(UserError, match=message):
        build.augmentation(cfg.augment.waveform, "augment.waveform", RATE)


def test_a_waveform_augmentation_is_none_of_features() -> None:
    with pytest.raises(UserError, match=r"augment.features: must be a FeatureAugmentation .*but Gain is none"):
        build.augmentation(OmegaConf.create(GAIN), "augment.features", RATE)


@pytest.mark.parametrize("memory_mb", [0, 1])
def test_a_bank_without_sound_is_named_by_its_key(tmp_path: Path, memory_mb: int) -> None:
    """In memory it is found when it is built, else when the first row draws from it."""
    soundfile.write(tmp_path / "zeros.wav", np.zeros(RATE), RATE)
    cfg = compose_config(["augment=simulated", "augment.waveform.steps.noise.probability=1"])
    node = OmegaConf.create(OmegaConf.to_container(cfg.augment.waveform))
    node.steps.noise.kinds.coloured.source = {
        "_target_": "spkexp.data.recordings.Recordings",
        "root": str(tmp_path),
        "include": ["**"],
        "memory_mb": memory_mb,
    }
    with pytest.raises(UserError, match=r"another folder as augment.waveform.steps.noise.kinds.coloured.source.root,"):
        read(build.augmentation(node, "augment.waveform", RATE), 2)


def test_folders_of_banks_become_absolute(corpora: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that augment.musan and augment.rirs do not name: a run is resumed from wherever its user stands."""
    monkeypatch.chdir(tmp_path)
    source = "augment.waveform.steps.noise.kinds.music.source"
    cfg = with_absolute_paths(compose_config(["augment=noise_reverb", *corpora, f"{source}.root=my/songs"]))
    kinds = cfg.augment.waveform.steps.noise.kinds
    assert kinds.music.source.root == f"{tmp_path}/my/songs"
    assert kinds.noise.source.root == cfg.augment.musan
    with_absolute_paths(compose_config(["augment=none"]))


def test_parameters_and_buffers_are_refused() -> None:
    class Filtered(Add):
        def __init__(self) -> None:
            super().__init__(1.0, 1.0)
            self.filter = torch.nn.Conv1d(1, 1, 3, bias=False)

    class Buffered(Add):
        def __init__(self) -> None:
            super().__init__(1.0, 1.0)
            self.register_buffer("taps", torch.zeros(3))

    for part, name in ((Filtered(), "Filtered: .* has filter.weight;"), (Buffered(), "Buffered: .* has taps;")):
        with pytest.raises(ValueError, match=name):
            prepared(Sequence({"first": Add(1.0, 1.0), "inner": OneOf(1.0, {"x": part}, None)}))


def test_none_leaves_a_part_out() -> None:
    parts = {"a": Add(1.0, 1.0), "b": None, "c": Add(1.0, 2.0)}
    assert (run(prepared(Sequence(parts)), chain_signal(1)).waveform == 3).all()
    assert len(run(prepared(Parallel(True, parts)), chain_signal(2)).waveform) == 6
    drawn = run(prepared(OneOf(1.0, parts, {"a": 1.0, "b": 100.0, "c": 1.0})), chain_signal(1000)).waveform[:, 0] % 1000
    assert set(drawn.tolist()) == {1.0, 2.0}
    assert (drawn == 1).float().mean() == pytest.approx(0.5, abs=0.06)
    with pytest.raises(ValueError, match="weights must be given for a, c, got a, b"):
        OneOf(1.0, parts, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="weights must be given for a, c, got a, c, d"):
        OneOf(1.0, parts, {"a": 1.0, "c": 1.0, "d": 1.0})
    with pytest.raises(ValueError, match=r"steps.a: must be an Augmentation .*but Linear is none"):
        Sequence({"a": torch.nn.Linear(1, 1)})  # type: ignore[dict-item]
