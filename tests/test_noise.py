"""Noise against slow float64 references: the ratio of each row, the powers of what is summed, the colour."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spkexp.augment.augmentation import Augmentation, Material, Signal
from spkexp.augment.chain import OneOf, Sequence, prepared
from spkexp.augment.noise import ColouredNoise, Kind, Noise
from spkexp.counter import Keys, item_keys
from spkexp.data.audio import read
from spkexp.data.recordings import Recordings

RATE = 16_000
WHITE = ColouredNoise([0.0, 0.0], RATE)


def augmented(augmentation: Augmentation, signal: Signal) -> Signal:
    material = Material()
    augmentation.read(signal.key, signal.waveform.shape[1], material)
    left = iter(material.tensors)
    result: Signal = augmentation(signal, left)
    assert next(left, None) is None  # what was brought was taken
    return result


def batch(lengths: list[int], samples: int, epoch: int = 0) -> Signal:
    """Rows of pulsing noise at levels 60 dB apart, zero behind their lengths."""
    rng = np.random.default_rng(3)
    wave = rng.standard_normal((len(lengths), samples)) * (1.2 + np.sin(np.arange(samples) / 900))
    wave *= 10.0 ** -rng.uniform(0.5, 3.5, (len(lengths), 1))
    wave *= np.arange(samples) < np.array(lengths)[:, None]
    rows = np.arange(len(lengths))
    return Signal(torch.from_numpy(wave.astype(np.float32)), torch.tensor(lengths), item_keys(1, epoch, rows), rows)


def ratios_db(before: Signal, after: Signal) -> np.ndarray:
    """Speech to what was added, over each row's own samples, in float64."""
    result = []
    for clean, noisy, length in zip(before.waveform, after.waveform, before.lengths, strict=True):
        speech = clean[:length].double().numpy()
        noise = noisy[:length].double().numpy() - speech
        result.append(10 * np.log10(np.sum(speech**2) / np.sum(noise**2)))
    return np.array(result)


def test_each_row_has_the_ratio_that_was_drawn() -> None:
    before = batch([16_000, 9_000, 401, 16_000, 4_000, 12_345], 16_000)
    for target in (-5.0, 0.0, 20.0):
        noise = prepared(Noise(1.0, {"white": Kind(1, [target, target], [1, 1], WHITE)}))
        after = augmented(noise, before)
        assert ratios_db(before, after) == pytest.approx(np.full(6, target), abs=0.01)
        for row, length in enumerate(before.lengths):
            assert not after.waveform[row, length:].any()
        assert torch.equal(after.lengths, before.lengths)


def test_ratios_are_uniform_in_the_range_of_the_kind() -> None:
    before = batch([2_000] * 1_500, 2_000)
    kinds = {"loud": Kind(3, [0, 10], [1, 1], WHITE), "faint": Kind(1, [30, 40], [1, 1], WHITE)}
    ratios = ratios_db(before, augmented(prepared(Noise(1.0, kinds)), before))
    loud = ratios[ratios < 20]
    assert len(loud) == pytest.approx(1_125, abs=60)  # three of four, and 3.5 standard deviations
    assert loud.min() == pytest.approx(0, abs=0.1)
    assert loud.max() == pytest.approx(10, abs=0.1)
    assert np.quantile(loud, [0.25, 0.5, 0.75]) == pytest.approx([2.5, 5, 7.5], abs=0.6)
    assert ratios[ratios > 20].min() == pytest.approx(30, abs=0.2)


def test_rows_that_are_not_chosen_or_silent_stay_as_they_are() -> None:
    before = batch([3_000] * 400, 3_000)
    before.waveform[::7] = 0
    after = augmented(prepared(Noise(0.3, {"white": Kind(1, [5, 5], [1, 1], WHITE)})), before)
    same = (after.waveform == before.waveform).all(dim=1)
    assert same[::7].all()
    changed = (~same).sum().item() / (400 - len(range(0, 400, 7)))
    assert changed == pytest.approx(0.3, abs=0.09)
    assert after.waveform.isfinite().all()


def test_noise_that_is_silent_where_the_row_has_samples_adds_nothing() -> None:
    class Late:
        def crop(self, key: Keys, samples: int, bad: list[tuple[str, str]]) -> np.ndarray:
            noise = np.zeros((len(key), samples), dtype=np.float32)
            noise[:, samples // 2 :] = 0.1
            return noise

    before = batch([500, 1_000], 1_000)
    after = augmented(prepared(Noise(1.0, {"late": Kind(1, [0, 0], [1, 1], Late())})), before)
    assert torch.equal(after.waveform[0], before.waveform[0])
    added = (after.waveform[1] - before.waveform[1]).double()
    assert added.square().sum().item() == pytest.approx(before.waveform[1].double().square().sum().item(), rel=1e-3)


def test_voices_of_a_babble_have_the_same_power(tmp_path: Path) -> None:
    """Tones of whole periods are orthogonal: the amplitude of each in the sum shows its power."""
    samples, time = 1_600, np.arange(1_600) / RATE
    tones = [300, 700, 1_100]
    for tone, level in zip(tones, (0.9, 0.05, 0.002), strict=True):
        wave = level * np.sin(2 * np.pi * tone * time)
        soundfile.write(tmp_path / f"{tone}.wav", wave, RATE, subtype="FLOAT")
    babble = prepared(Noise(1.0, {"babble": Kind(1, [0, 0], [2, 4], Recordings(str(tmp_path), ["**"], 1, RATE))}))
    material = Material()
    babble.read(item_keys(0, 0, np.arange(200)), samples, material)
    spectrum = np.abs(np.fft.rfft(material.tensors[0].double().numpy()))[:, [tone // 10 for tone in tones]]
    voices = spectrum / (samples / 2) / np.sqrt(2)  # 1 for each time that a tone is in the sum
    assert voices == pytest.approx(np.rint(voices), abs=5e-3)
    assert set(np.rint(voices).sum(axis=1)) == {2, 3, 4}


def test_a_row_is_the_same_in_any_batch() -> None:
    before = batch([5_000, 3_000, 5_000, 5_000, 4_000, 5_000, 100, 5_000], 5_000)
    kinds = {
        "white": Kind(1, [0, 15], [1, 1], WHITE),
        "babble": Kind(1, [10, 20], [3, 7], ColouredNoise([0.5, 2.0], RATE)),
    }
    chain = prepared(Sequence({"first": Noise(0.5, kinds), "one": OneOf(0.8, {"second": Noise(0.9, kinds)}, None)}))
    whole = augmented(chain, before)
    assert torch.equal(whole.waveform, augmented(chain, before).waveform)
    for rows in (np.arange(3), np.array([7]), np.array([6, 4, 3, 5])):
        part = augmented(chain, Signal(before.waveform[rows], before.lengths[rows], before.key[rows], rows))
        torch.testing.assert_close(part.waveform, whole.waveform[rows], rtol=1e-5, atol=1e-7)
    other = augmented(chain, batch(before.lengths.tolist(), 5_000, epoch=1))
    assert not torch.equal(other.waveform, whole.waveform)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour(exponent: float) -> None:
    """Over a whole period of the transform each frequency has its power to the precision of float32."""
    noise = ColouredNoise([exponent, exponent], RATE).crop(item_keys(0, 0, np.arange(3)), 32_768, [])
    power = np.abs(np.fft.rfft(noise.astype(np.float64))) ** 2
    frequency = np.fft.rfftfreq(32_768, 1 / RATE)
    heard = (frequency >= 20) & (frequency < 8_000)
    flat = (power * frequency**exponent)[:, heard]
    assert flat / flat.mean() == pytest.approx(np.ones_like(flat), rel=0.02)
    assert power[:, frequency < 20].sum() < 1e-8 * power.sum()
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("samples", [1, 50, 4_097])
def test_coloured_noise_of_few_samples(samples: int) -> None:
    noise = ColouredNoise([0.0, 2.0], RATE).crop(item_keys(0, 0, np.arange(20)), samples, [])
    assert noise.shape == (20, samples)
    assert np.isfinite(noise).all()
    assert len(np.unique(noise[:, 0])) == 20


def test_white_noise_is_gaussian() -> None:
    noise = ColouredNoise([0.0, 0.0], RATE).crop(item_keys(0, 0, np.arange(10)), 30_000, []).astype(np.float64)
    unit = noise / noise.std()
    assert (unit**4).mean() == pytest.approx(3, abs=0.05)
    assert (np.abs(unit) < 1).mean() == pytest.approx(0.6827, abs=0.005)


def test_real_noise_on_real_speech(shared_data: Path) -> None:
    speech = sorted((shared_data / "LibriSpeech" / "test-other").rglob("*.flac"))[:4]
    wave = torch.from_numpy(np.stack([read(path, 0, 32_000) for path in speech]))
    lengths = torch.tensor([32_000, 20_000, 32_000, 17_001])
    wave[torch.arange(32_000) >= lengths[:, None]] = 0
    before = Signal(wave, lengths, item_keys(0, 0, np.arange(4)), np.arange(4))
    for memory_mb in (0, 100):
        bank = Recordings(str(shared_data), ["noise/**"], memory_mb, RATE)
        after = augmented(prepared(Noise(1.0, {"noise": Kind(1, [5, 5], [1, 2], bank)})), before)
        assert ratios_db(before, after) == pytest.approx(np.full(4, 5.0), abs=0.01)


def test_ranges_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"snr_db: .*\[15, 0\]"):
        Kind(1, [15, 0], [1, 1], WHITE)
    with pytest.raises(ValueError, match=r"count: .*\[7, 3\]"):
        Kind(1, [0, 15], [7, 3], WHITE)
    with pytest.raises(ValueError, match=r"count: .*at least 1"):
        Kind(1, [0, 15], [0, 1], WHITE)
    with pytest.raises(ValueError, match=r"exponent: .*\[2, 1\]"):
        ColouredNoise([2, 1], RATE)
    with pytest.raises(ValueError, match="kinds: give at least one"):
        Noise(0.5, {})
    with pytest.raises(ValueError, match="probability"):
        Noise(1.5, {"white": Kind(1, [0, 0], [1, 1], WHITE)})
