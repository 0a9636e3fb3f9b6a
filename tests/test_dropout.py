"""Bands and chunks: what is dropped, against float64 spectra and slow loops, and that it is each row's own."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from spkexp.augment.augmentation import Signal
from spkexp.augment.dropout import ChunkDrop, FrequencyDrop
from spkexp.counter import Keys, item_keys

RATE = 16_000


def keys(count: int, epoch: int = 0) -> Keys:
    return item_keys(0, epoch, np.arange(count))


def signal_of(waveform: Tensor, key: Keys, lengths: Tensor | None = None) -> Signal:
    full = torch.full((len(waveform),), waveform.shape[1])
    return Signal(waveform, full if lengths is None else lengths, key, np.arange(len(waveform)))


def nothing() -> Iterator[Tensor]:
    return iter(())


def noise(rows: int, samples: int) -> Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [300, 800])
def test_the_spectrum_of_dropped_bands(width: float) -> None:
    """Response to an impulse, in float64: -50 dB in the inner half of every band, untouched half a width outside."""
    drop = FrequencyDrop(1.0, [2, 3], [500, 7500], width, RATE)
    key = keys(40)
    impulse = torch.zeros(40, 8001)
    impulse[:, 4000] = 1.0
    out = drop(signal_of(impulse, key), nothing()).waveform.double().numpy()
    frequency = np.fft.rfftfreq(1 << 16, 1 / RATE)
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(out, n=1 << 16)) + 1e-12)
    inner = outer = 0
    for row, bands in enumerate(drop.bands(key)):
        bands = bands[bands[:, 1] > bands[:, 0]]
        assert len(bands) in (2, 3)
        centre = bands.mean(axis=1)
        distance = np.abs(frequency[:, None] - centre).min(axis=1)
        assert gain_db[row, distance <= width / 4].max() < -50
        beyond = distance >= width
        assert np.abs(gain_db[row, beyond]).max() < 0.02
        inner, outer = inner + len(centre), outer + beyond.sum()
        for one in bands:  # -6 dB at the edges, wherever no other band is near
            for edge in one:
                if np.sort(np.abs(centre - edge))[1] > 1.5 * width:
                    assert gain_db[row, np.abs(frequency - edge).argmin()] == pytest.approx(-6.02, abs=0.3)
    assert inner > 80
    assert outer > 40 * 10_000


def test_a_row_is_convolved_with_its_filter_and_not_delayed() -> None:
    """Against numpy's direct convolution in float64; rows whose blocks overlap, and one shorter than the filter."""
    drop = FrequencyDrop(1.0, [1, 3], [0, 8000], 400, RATE)
    key = keys(3)
    taps = drop.taps(key, torch.device("cpu")).double().numpy()
    assert np.abs(taps - taps[:, ::-1]).max() < 1e-7
    for samples in (32_000, 5_001, 100, 1):
        wave = noise(3, samples)
        out = drop(signal_of(wave, key), nothing()).waveform
        assert out.shape == wave.shape
        half = taps.shape[1] // 2
        expected = [np.convolve(w, t)[half : half + samples] for w, t in zip(wave.double().numpy(), taps, strict=True)]
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_tones_in_and_beside_a_band() -> None:
    drop = FrequencyDrop(1.0, [1, 1], [3000, 3000], 800, RATE)
    time = torch.arange(16_000) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * hz * time) for hz in (3000, 2850, 2200, 3800)])
    out = drop(signal_of(tones, keys(4)), nothing()).waveform[:, 1000:-1000]
    level = 20 * np.log10(out.square().mean(dim=1).sqrt().numpy() * np.sqrt(2))
    assert level[0] < -55
    assert level[1] < -55
    assert level[2:] == pytest.approx([0, 0], abs=0.02)


def test_numbers_and_centres_of_bands_are_uniform() -> None:
    bands = FrequencyDrop(1.0, [0, 3], [1000, 5000], 100, RATE).bands(keys(8000))
    there = bands[..., 1] > bands[..., 0]
    shares = np.bincount(there.sum(axis=1), minlength=4) / 8000
    assert shares == pytest.approx([0.25] * 4, abs=0.02)
    centre = bands.mean(axis=2)[there]
    assert 1000 <= centre.min() < 1010
    assert 4990 < centre.max() < 5000
    assert np.histogram(centre, bins=4, range=(1000, 5000))[0] / len(centre) == pytest.approx([0.25] * 4, abs=0.02)
    assert np.abs(np.corrcoef(bands.mean(axis=2).T) - np.eye(3)).max() < 0.05


def test_no_band_changes_nothing() -> None:
    wave = noise(4, 4000)
    out = FrequencyDrop(1.0, [0, 0], [0, 8000], 800, RATE)(signal_of(wave, keys(4)), nothing()).waveform
    assert torch.equal(out, wave)
    # Drawn beside rows that have bands, a row without comes out as it was, but for the rounding of the FFT.
    drop = FrequencyDrop(1.0, [0, 1], [0, 8000], 800, RATE)
    key = keys(16)
    none = np.flatnonzero(np.ptp(drop.bands(key), axis=2).max(axis=1) == 0)
    assert 0 < len(none) < 16
    wave = noise(16, 4000)
    np.testing.assert_allclose(drop(signal_of(wave, key), nothing()).waveform[none], wave[none], atol=2e-6)


def test_chunks_are_silent_and_the_rest_is_as_it_was() -> None:
    """Against a loop over the chunks; numbers, lengths and places as they were asked for."""
    drop = ChunkDrop(1.0, [0, 5], [0.0625, 0.125], RATE)
    key, wave = keys(64), noise(64, 32_000)
    before = wave.clone()
    out = drop(signal_of(wave, key), nothing()).waveform
    assert torch.equal(wave, before)
    chunks = drop.chunks(np.full(64, 32_000), key)
    expected = before.numpy().copy()
    for row, start, size in chunks:
        assert 1000 <= size <= 2000
        assert 0 <= start <= 32_000 - size
        expected[row, start : start + size] = 0
    assert np.array_equal(out.numpy(), expected)
    assert set(np.bincount(chunks[:, 0], minlength=64)) == {0, 1, 2, 3, 4, 5}
    # Without knowing the chunks: a row has at most five silences, and lost at most 10,000 samples.
    lost = (out == 0) & (before != 0)
    assert lost.sum(dim=1).max() <= 10_000
    assert 64 * 2.5 * 1200 < lost.sum() < 64 * 2.5 * 1800


def test_chunk_lengths_and_places_are_uniform() -> None:
    chunks = ChunkDrop(1.0, [1, 3], [0.01, 0.02], RATE).chunks(np.full(9000, 1000), keys(9000))
    shares = np.bincount(np.bincount(chunks[:, 0], minlength=9000), minlength=4) / 9000
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.02)
    size, start = chunks[:, 2], chunks[:, 1]
    assert (size.min(), size.max(), start.min(), (start + size).max()) == (160, 320, 0, 1000)
    assert size.mean() == pytest.approx(240, abs=2)
    assert (start / (1000 - size)).mean() == pytest.approx(0.5, abs=0.01)


def test_chunks_of_short_rows() -> None:
    """No chunk lies behind a row's length, none takes more than half of it; a row of one sample keeps it."""
    drop = ChunkDrop(1.0, [5, 5], [0.0625, 0.125], RATE)
    lengths = np.array([32_000, 3000, 100, 2, 1, 0] * 8)
    chunks = drop.chunks(lengths, keys(48))
    assert (chunks[:, 1] + chunks[:, 2] <= lengths[chunks[:, 0]]).all()
    assert (chunks[:, 2] <= lengths[chunks[:, 0]] // 2).all()
    assert (np.bincount(chunks[:, 0], minlength=48) == np.where(lengths > 1, 5, 0)).all()
    wave = torch.zeros(48, 32_000)
    for row, length in zip(wave, lengths, strict=True):
        row[:length] = 1.0
    out = drop(signal_of(wave, keys(48), torch.from_numpy(lengths)), nothing()).waveform
    assert (out.sum(dim=1).numpy()[lengths == 1] == 1).all()
    assert (out.sum(dim=1).numpy()[lengths == 100] < 100).all()


@pytest.mark.parametrize(
    "drop", [FrequencyDrop(0.7, [0, 3], [0, 8000], 800, RATE), ChunkDrop(0.7, [0, 5], [0.02, 0.05], RATE)]
)
def test_a_row_depends_on_its_key_alone(drop: FrequencyDrop | ChunkDrop) -> None:
    wave, key = noise(12, 6000), keys(12)
    lengths = torch.tensor([6000, 4000, 3000] * 4)
    wave = torch.where(torch.arange(6000) < lengths[:, None], wave, 0.0)
    whole = drop(signal_of(wave, key, lengths), nothing()).waveform
    parts = [drop(signal_of(wave[i : i + 5], key[i : i + 5], lengths[i : i + 5]), nothing()) for i in (0, 5, 10)]
    torch.testing.assert_close(torch.cat([part.waveform for part in parts]), whole, atol=1e-6, rtol=0)
    assert (whole[torch.arange(6000) >= lengths[:, None]] == 0).all()
    other = drop(signal_of(wave, keys(12, epoch=1), lengths), nothing()).waveform
    assert not torch.equal(other, whole)
    same = (whole == wave).all(dim=1)
    assert 1 <= same.sum() < 9


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"count: .*\[3, 1\]"):
        FrequencyDrop(1.0, [3, 1], [0, 8000], 800, RATE)
    with pytest.raises(ValueError, match="8000 Hz, half"):
        FrequencyDrop(1.0, [0, 3], [0, 8001], 800, RATE)
    with pytest.raises(ValueError, match="at most 62"):
        FrequencyDrop(1.0, [0, 63], [0, 8000], 800, RATE)
    with pytest.raises(ValueError, match="at most 31"):
        ChunkDrop(1.0, [0, 32], [0.1, 0.2], RATE)
    with pytest.raises(ValueError, match=r"seconds: .*\[0.2, 0.1\]"):
        ChunkDrop(1.0, [0, 3], [0.2, 0.1], RATE)
