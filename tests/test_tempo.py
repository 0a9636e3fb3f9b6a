"""Tempo and pitch: frequencies by FFT, onsets by level, and a slow WSOLA in float64 beside the fast one."""

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from spkexp.augment.augmentation import RowAugmentation, Signal
from spkexp.augment.pitch import Pitch, resample
from spkexp.augment.tempo import Tempo, stretch
from spkexp.counter import item_keys

RATE = 16_000
SAMPLES = 2 * RATE


def run(augmentation: RowAugmentation, waveform: Tensor, lengths: list[int] | None = None) -> Signal:
    rows, samples = waveform.shape
    key = item_keys(0, 0, np.arange(rows))
    sizes = torch.tensor(lengths if lengths is not None else [samples] * rows)
    return augmentation(Signal(waveform, sizes, key, np.arange(rows)), iter(()))


def harmonics(pitch: float) -> Tensor:
    """(samples,) a tone with ten harmonics that fall by 1 / n."""
    time = np.arange(SAMPLES) / RATE
    return torch.from_numpy(sum(0.2 / n * np.sin(2 * np.pi * n * pitch * time + n) for n in range(1, 11))).float()


def peaks(wave: Tensor, pitch: float, count: int) -> np.ndarray:
    """Frequencies (Hz) of the largest values of the spectrum within 6 % of each harmonic of `pitch`."""
    size = 1 << 18
    values = wave.double().numpy()
    spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values)), size))
    frequency = np.arange(len(spectrum)) * RATE / size
    near = [np.abs(frequency - n * pitch) < 0.06 * pitch for n in range(1, count + 1)]
    return np.array([frequency[mask][spectrum[mask].argmax()] for mask in near])


def onsets(wave: Tensor) -> np.ndarray:
    """Times in seconds at which the level rises above a fifth of its maximum after 100 ms below."""
    loud = np.flatnonzero(np.abs(wave.numpy()) > 0.2 * np.abs(wave.numpy()).max())
    return loud[np.diff(loud, prepend=-SAMPLES) > 0.1 * RATE] / RATE


def slow_stretch(wave: np.ndarray, factor: float, width: int) -> np.ndarray:
    """WSOLA by loops in float64: segments of 800 samples, cross-fades of 160, 200 starts compared."""
    padded = np.concatenate([np.zeros(100), wave, np.zeros(4000)])
    start, output = 100, np.zeros(width + 800)
    output[:800] = padded[start : start + 800]
    for number in range(1, -(-width // 800)):
        continuation = padded[start + 800 : start + 960]
        asked = min(round(number * 800 * factor), len(wave))
        scores = []
        for shift in range(200):
            there = padded[asked + shift : asked + shift + 160]
            norm = np.sqrt(max((there**2).sum(), 160e-8))
            scores.append(there @ continuation / norm * (1 - 0.01 * abs(shift - 100) / 200))
        start = asked + int(np.argmax(scores))
        fade = (np.arange(160) + 0.5) / 160
        output[number * 800 : number * 800 + 800] = padded[start : start + 800]
        output[number * 800 : number * 800 + 160] *= fade
        output[number * 800 : number * 800 + 160] += (1 - fade) * continuation
    return output[:width]


@pytest.fixture
def speech(shared_data) -> Tensor:
    """(4, samples) two seconds of four recordings."""
    files = sorted((shared_data / "LibriSpeech").rglob("*.flac"))[:4]
    return torch.stack([torch.from_numpy(soundfile.read(f, SAMPLES, 8000, dtype="float32")[0]) for f in files])


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_tempo_leaves_the_pitch(factor: float) -> None:
    result = run(Tempo(1.0, (factor, factor), RATE), torch.stack([harmonics(200), harmonics(97)]))
    expected = min(SAMPLES, round(SAMPLES / factor))
    assert result.lengths.tolist() == [expected, expected]
    # At .8 the row's last fifth is cut off, so all that is left is full.
    for wave, pitch in zip(result.waveform[:, : expected - 1000], (200, 97), strict=True):
        np.testing.assert_allclose(peaks(wave, pitch, 8), pitch * np.arange(1, 9), rtol=0.005)
        assert wave.square().mean() == pytest.approx(0.5 * sum((0.2 / n) ** 2 for n in range(1, 11)), rel=0.1)
    assert (result.waveform[:, expected:] == 0).all()


@pytest.mark.parametrize("factor", [0.85, 0.9, 1.1, 1.2])
def test_tempo_moves_every_event(factor: float) -> None:
    times = np.arange(0.1, 1.6, 0.25)
    wave = torch.zeros(1, SAMPLES)
    rng = np.random.default_rng(0)
    for time in times:
        start = round(time * RATE)
        wave[0, start : start + 960] = torch.from_numpy(rng.uniform(-0.5, 0.5, 960)).float()
    result = run(Tempo(1.0, (factor, factor), RATE), wave)
    heard = onsets(result.waveform[0])
    assert len(heard) == len(times)
    # A segment is taken up to half a search (6 ms) from where it should be, and an event lies anywhere in its 50 ms.
    assert np.abs(heard - times / factor).max() < 0.02


@pytest.mark.parametrize("factor", [0.7, 0.93, 1.0, 1.07, 1.6])
def test_tempo_is_wsola(speech: Tensor, factor: float) -> None:
    # A little noise, so that no two starts fit almost alike: float32 may choose another one of those.
    speech = speech + 0.01 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    fast = stretch(speech, np.full(4, factor), SAMPLES, RATE)
    for row in range(4):
        np.testing.assert_allclose(fast[row], slow_stretch(speech[row].double().numpy(), factor, SAMPLES), atol=1e-6)
    if factor == 1.0:
        torch.testing.assert_close(fast, speech, atol=1e-7, rtol=0)


def test_rows_have_factors_of_their_own(speech: Tensor) -> None:
    waves = speech.repeat(8, 1)
    result = run(Tempo(1.0, (0.8, 1.25), RATE), waves)
    # Uniform over the range: about half are above 1.025.
    ratio = SAMPLES / result.lengths.numpy()
    assert ratio.min() >= 1.0
    assert ratio.max() <= 1.2501
    assert len(set(result.lengths.tolist())) > 12
    assert 8 <= (ratio > 1.025).sum() <= 24


@pytest.mark.parametrize(
    "augmentation", [Tempo(0.7, (0.85, 1.2), RATE), Pitch(0.7, (-3.0, 3.0), RATE)], ids=["tempo", "pitch"]
)
def test_a_row_is_the_same_in_any_batch(speech: Tensor, augmentation: RowAugmentation) -> None:
    waves, key = speech.repeat(3, 1), item_keys(3, 1, np.arange(12))
    lengths = torch.tensor([SAMPLES, 20_000, 100, 1, 801] + [SAMPLES] * 7)
    waves = waves * (torch.arange(SAMPLES) < lengths[:, None])
    before = waves.clone()
    whole = augmentation(Signal(waves, lengths, key, np.arange(12)), iter(()))
    again = augmentation(Signal(waves, lengths, key, np.arange(12)), iter(()))
    assert torch.equal(whole.waveform, again.waveform)
    assert torch.equal(waves, before)
    changed = (whole.waveform != waves).any(dim=1)
    assert 0 < changed.sum() < 12
    for size in (1, 5):
        for first in range(0, 12, size):
            rows = slice(first, first + size)
            part = augmentation(Signal(waves[rows], lengths[rows], key[rows], np.arange(12)[rows]), iter(()))
            assert torch.equal(part.lengths, whole.lengths[rows])
            # An FFT of one row and of many may round differently.
            torch.testing.assert_close(part.waveform, whole.waveform[rows], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "augmentation", [Tempo(1.0, (1.1, 1.1), RATE), Pitch(1.0, (2.0, 2.0), RATE)], ids=["tempo", "pitch"]
)
def test_padding_changes_nothing(speech: Tensor, augmentation: RowAugmentation) -> None:
    length = 20_000
    alone = run(augmentation, speech[:1, :length])
    padded = speech[:1] * (torch.arange(SAMPLES) < length)
    together = run(augmentation, padded, [length])
    assert together.lengths.tolist() == alone.lengths.tolist()
    torch.testing.assert_close(together.waveform[:, :length], alone.waveform, atol=2e-6, rtol=0)
    assert (together.waveform[:, length:] == 0).all()


@pytest.mark.parametrize(
    "augmentation", [Tempo(1.0, (0.8, 1.3), RATE), Pitch(1.0, (-4.0, 4.0), RATE)], ids=["tempo", "pitch"]
)
def test_silent_and_very_short_rows(augmentation: RowAugmentation) -> None:
    assert not run(augmentation, torch.zeros(3, SAMPLES)).waveform.any()
    short = 0.1 * torch.sin(torch.arange(100) * 0.3).repeat(5, 1)
    result = run(augmentation, short)
    assert result.waveform.shape == (5, 100)
    assert result.waveform.isfinite().all()
    assert result.waveform.abs().max() < 0.15
    assert result.waveform[:, :50].square().mean() > 0.001


@pytest.mark.parametrize("semitones", [-5.0, -2.0, 1.0, 4.0])
def test_pitch_moves_all_harmonics(semitones: float) -> None:
    tones = torch.stack([harmonics(200), harmonics(97)])
    result = run(Pitch(1.0, (semitones, semitones), RATE), tones)
    assert result.lengths.tolist() == [SAMPLES, SAMPLES]
    for wave, before, pitch in zip(result.waveform, tones, (200, 97), strict=True):
        moved = pitch * 2 ** (semitones / 12)
        np.testing.assert_allclose(peaks(wave, moved, 8), moved * np.arange(1, 9), rtol=0.005)
        assert 10 * abs(torch.log10(wave.square().mean() / before.square().mean())) < 0.5
        # To the end: the time taken out by the resampling is put back.
        assert wave[-800:].square().mean() > 0.5 * before[-800:].square().mean()


def test_pitch_keeps_speech_in_its_place(speech: Tensor) -> None:
    """Levels of 50 ms follow those of the original; the energy is about the same."""
    result = run(Pitch(1.0, (2.0, 2.0), RATE), speech).waveform
    for wave, before in zip(result, speech, strict=True):
        assert 10 * abs(torch.log10(wave.square().mean() / before.square().mean())) < 1.0
        levels = [torch.log(part.reshape(40, 800).square().mean(dim=1) + 1e-6) for part in (wave, before)]
        assert torch.corrcoef(torch.stack(levels))[0, 1] > 0.9


def test_resample_reads_between_the_samples() -> None:
    """Sines at times that are no samples, against the sines themselves: a cubic spline leaves -58 dB at 5 kHz."""
    frequency, phase = np.array([130.0, 700.0, 2300.0, 5000.0]), np.array([0.1, 1.0, 2.0, 3.0])

    def sines(time: np.ndarray) -> np.ndarray:
        return 0.2 * np.sin(2 * np.pi * frequency[:, None] * time + phase[:, None]).sum(axis=0)

    wave = torch.from_numpy(sines(np.arange(SAMPLES) / RATE)).float()
    ratio = np.array([0.7, 0.943, 1.0, 1.189, 1.4])
    result = resample(wave.repeat(5, 1), ratio)
    assert result.shape[1] == int(np.ceil(SAMPLES / 0.7))
    for row, factor in zip(result.double().numpy(), ratio, strict=True):
        middle = np.arange(2000, int(SAMPLES / factor) - 2000)
        np.testing.assert_allclose(row[middle], sines(middle * factor / RATE), atol=1e-3)
        assert np.abs(row[int(SAMPLES / factor) + 40 :]).max(initial=0) < 0.01


def test_resample_leaves_nothing_to_alias() -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * 6500 * torch.arange(SAMPLES, dtype=torch.float64) / RATE).float()
    moved = resample(tone[None], np.array([1.4]))[0, 2000:20_000]  # 9.1 kHz, which would be heard at 6.9
    assert moved.abs().max() < 1e-3


@pytest.mark.parametrize("factors", [(1.1, 0.9), (0.4, 1.0), (1.0, 2.5)])
def test_tempo_names_a_wrong_range(factors: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="factors"):
        Tempo(1.0, factors, RATE)


@pytest.mark.parametrize("semitones", [(2.0, -2.0), (-13.0, 0.0), (0.0, 13.0)])
def test_pitch_names_a_wrong_range(semitones: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="semitones"):
        Pitch(1.0, semitones, RATE)
