"""G.711 against the tables of the standard written out here, and the telephone band against float64 spectra."""

import importlib
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spkexp.augment.augmentation import Signal
from spkexp.augment.telephone import Telephone, a_law, mu_law
from spkexp.counter import item_keys

RATE = 16_000
Array = NDArray[np.float64]

# ITU-T G.711 (11/1988), tables 1a and 2a: decision values at the ends of the segments, and the number and the size of
# the steps between them. The values that come out are the middles of the steps; mu-law's first step is 0 alone.
A_LAW_SEGMENTS = [
    (0, 64, 2),
    (64, 128, 4),
    (128, 256, 8),
    (256, 512, 16),
    (512, 1024, 32),
    (1024, 2048, 64),
    (2048, 4096, 128),
]
MU_LAW_SEGMENTS = [
    (1, 31, 2),
    (31, 95, 4),
    (95, 223, 8),
    (223, 479, 16),
    (479, 991, 32),
    (991, 2015, 64),
    (2015, 4063, 128),
    (4063, 8159, 256),
]


def table(segments: list[tuple[int, int, int]]) -> tuple[Array, Array]:
    """(decision values, values that come out between them), for positive samples."""
    starts = [np.arange(low, high, step) for low, high, step in segments]
    values = [start + step / 2 for start, (_, _, step) in zip(starts, segments, strict=True)]
    return np.concatenate(starts).astype(float), np.concatenate(values)


A_DECISIONS, A_VALUES = table(A_LAW_SEGMENTS)
MU_DECISIONS, MU_VALUES = (np.concatenate([[0.0], part]) for part in table(MU_LAW_SEGMENTS))


def reference(x: Array, decisions: Array, values: Array, scale: float) -> Array:
    """The standard's quantisation by looking every sample up in its table."""
    magnitude = np.abs(x) * scale
    found = values[np.searchsorted(decisions, magnitude, side="right") - 1]
    return np.where(np.signbit(x), -found, found) / scale


def test_the_tables_are_the_standards() -> None:
    """128 values a sign; the standard's own examples from tables 1a and 2a."""
    assert len(A_VALUES) == len(MU_VALUES) == 128
    assert (A_VALUES[0], A_VALUES[15], A_VALUES[32], A_VALUES[112], A_VALUES[127]) == (1, 31, 66, 2112, 4032)
    assert (MU_VALUES[0], MU_VALUES[1], MU_VALUES[15], MU_VALUES[16], MU_VALUES[32]) == (0, 2, 30, 33, 99)
    assert (MU_VALUES[48], MU_VALUES[112], MU_VALUES[127]) == (231, 4191, 8031)


ALL_16_BIT = np.arange(-32_768, 32_768) / 32_768


@pytest.mark.parametrize(
    ("codec", "decisions", "values", "scale"),
    [(a_law, A_DECISIONS, A_VALUES, 4096.0), (mu_law, MU_DECISIONS, MU_VALUES, 8192.0)],
)
def test_every_sample_of_16_bits_and_many_between(codec, decisions, values, scale) -> None:  # type: ignore[no-untyped-def]
    between = np.random.default_rng(0).uniform(-1.2, 1.2, 200_000).astype(np.float32)
    for x in (ALL_16_BIT.astype(np.float32), between):
        out = codec(torch.from_numpy(x))
        assert out.dtype == torch.float32
        expected = reference(x.astype(float), decisions, values, scale)
        wrong = np.flatnonzero(out.numpy() != expected)
        # A sample within a rounding error of a decision value may go to the other side of it.
        near = np.abs(np.abs(x[wrong].astype(float))[:, None] * scale - decisions).min(axis=1, initial=1.0)
        assert (near < 1e-3).all()
        assert len(wrong) < 3
    assert (
        codec(torch.from_numpy(ALL_16_BIT.astype(np.float32))).numpy()
        == reference(ALL_16_BIT, decisions, values, scale)
    ).all()
    codes = codec(torch.linspace(-1, 1, 300_001)).unique()
    assert len(codes) == (256 if codec is a_law else 255)  # mu-law has two zeros


def python_audioop() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module("audioop")
        except ImportError:
            pytest.skip("Python has no audioop any more")


def test_pythons_own_codec_agrees() -> None:
    """audioop (until Python 3.12) rounds negative samples down, so they are taken in the middle of its steps."""
    audioop = python_audioop()
    positive = np.arange(0, 32_768)
    for name, ours, step in (("ulaw", mu_law, 4), ("alaw", a_law, 8)):
        negative = -(np.arange(0, 32_768 - step, step) + step // 2) if name == "alaw" else -np.arange(4, 32_768, 4)
        samples = np.concatenate([positive, negative]).astype("<i2")
        codes = getattr(audioop, f"lin2{name}")(samples.tobytes(), 2)
        theirs = np.frombuffer(getattr(audioop, f"{name}2lin")(codes, 2), "<i2") / 32_768
        assert np.array_equal(ours(torch.from_numpy(samples / np.float32(32_768)).float()).numpy(), theirs)


@pytest.mark.parametrize(("codec", "lowest", "highest"), [(mu_law, 36.5, 39.0), (a_law, 36.5, 39.0)])
def test_signal_to_noise_of_a_loud_gaussian(codec, lowest, highest) -> None:  # type: ignore[no-untyped-def]
    """G.712: about 38 dB for speech-like levels; the theory of 16 steps an octave gives the same."""
    x = 0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    error = codec(x) - x
    assert lowest < 10 * torch.log10(x.square().sum() / error.square().sum()) < highest


def through(telephone: Telephone, wave: Array | torch.Tensor, lengths: list[int] | None = None) -> torch.Tensor:
    batch = torch.as_tensor(wave, dtype=torch.float32)
    rows, samples = batch.shape
    own = torch.full((rows,), samples) if lengths is None else torch.tensor(lengths)
    out = telephone(Signal(batch, own, item_keys(0, 0, np.arange(rows)), np.arange(rows)), iter(()))
    assert out.waveform.shape == batch.shape
    assert torch.equal(out.lengths, own)
    return out.waveform


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("band", [[300, 3400], [0, 3000]])
def test_the_band_from_the_response_to_an_impulse(rate: int, band: list[float]) -> None:
    impulse = np.zeros((1, rate + 1))
    impulse[0, rate // 2] = 1.0
    out = through(Telephone(1.0, "none", band, rate), impulse)[0].double().numpy()
    size = 8 * rate
    frequency = np.fft.rfftfreq(size, 1 / rate)
    spectrum = np.fft.rfft(np.roll(out, -(rate // 2)), n=len(out))
    assert np.abs(spectrum.imag).max() < 2e-2  # nothing is delayed: the response is symmetric
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(out, n=size)) + 1e-9)
    low, high = band
    if rate > 8000:
        inside = (frequency > (low + 110 if low else 0)) & (frequency < high - 110)
        outside = (frequency > high + 110) & (frequency < rate / 2)
        assert np.abs(gain_db[inside]).max() < 0.05
        assert gain_db[outside].max() < -50
        assert gain_db[np.abs(frequency - high).argmin()] == pytest.approx(-6, abs=0.3)
    if low:
        assert gain_db[frequency < low - 110].max() < -50
        assert gain_db[np.abs(frequency - low).argmin()] == pytest.approx(-6, abs=0.3)


def test_the_whole_path_against_a_slow_reference_at_8_khz() -> None:
    """A sum of tones of whole cycles is known at 8 kHz exactly; quantised there, and interpolated by its DFT."""
    samples = 8000
    time = np.arange(samples) / RATE
    tones = [(500, 0.3, 0.1), (1250, 0.1, 1.0), (2900, 0.05, 2.0)]
    wave = sum(a * np.sin(2 * np.pi * f * time + p) for f, a, p in tones)
    out = through(Telephone(1.0, "mu_law", [300, 3400], RATE), np.atleast_2d(wave + 0.2 * np.sin(2e4 * np.pi * time)))
    slow = reference(wave[::2], MU_DECISIONS, MU_VALUES, 8192.0)
    spectrum = np.zeros(samples // 2 + 1, complex)
    spectrum[: samples // 4] = np.fft.rfft(slow)[:-1]
    expected = 2 * np.fft.irfft(spectrum, n=samples)
    # Away from the ends, where the filter sees silence; a sample near a decision value may fall to its other side.
    difference = (out[0].double().numpy() - expected)[1000:-1000]
    assert np.sqrt(np.mean(difference**2)) < 0.15 * np.sqrt(np.mean((expected - wave)[1000:-1000] ** 2))
    noise_db = 10 * np.log10(np.mean(wave**2) / np.mean((out[0].double().numpy() - wave)[1000:-1000] ** 2))
    assert 35 < noise_db < 43


def test_at_8_khz_every_sample_is_a_value_of_the_table() -> None:
    wave = 0.2 * np.random.default_rng(0).standard_normal((2, 4000))
    for codec, values, scale in (("mu_law", MU_VALUES, 8192), ("a_law", A_VALUES, 4096)):
        out = through(Telephone(1.0, codec, [300, 3400], 8000), wave).double().numpy()  # type: ignore[arg-type]
        assert np.isin(np.abs(out) * scale, values).all()


def test_lengths_silence_and_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(5, 5000, generator=generator)
    lengths = [5000, 3000, 1, 0, 4999]
    wave = torch.where(torch.arange(5000) < torch.tensor(lengths)[:, None], wave, 0.0)
    telephone = Telephone(1.0, "a_law", [300, 3400], RATE)
    out = through(telephone, wave, lengths)
    for row, length in zip(out, lengths, strict=True):
        assert (row[length:] == 0).all()
    torch.testing.assert_close(through(telephone, wave[1:2], lengths[1:2]), out[1:2], atol=2e-3, rtol=0)
    assert torch.equal(through(Telephone(1.0, "mu_law", [300, 3400], RATE), torch.zeros(2, 300)), torch.zeros(2, 300))
    assert torch.equal(through(Telephone(0.0, "a_law", [300, 3400], RATE), wave, lengths), wave)


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"band_hz: .*\[300, 4100\]"):
        Telephone(1.0, "none", [300, 4100], RATE)
    with pytest.raises(ValueError, match=r"band_hz: .*\[3400, 300\]"):
        Telephone(1.0, "none", [3400, 300], RATE)
    with pytest.raises(ValueError, match="6000 Hz"):
        Telephone(1.0, "none", [300, 2900], 6000)
