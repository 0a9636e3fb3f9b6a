"""Codec round trips: where the sound lies afterwards, how loud it is, and what is lost."""

import threading

import numpy as np
import pytest
import soundfile
import soxr
import torch

from spkexp.augment import codec
from spkexp.augment.augmentation import Signal
from spkexp.augment.codec import CODERS, Codec, round_trip
from spkexp.counter import item_keys

RATE = 16_000
SAMPLES = 2 * RATE
ALL = {
    "mp3": [16, 32, 64],
    "aac": [16, 32, 96],
    "opus": [8, 12, 16, 24, 64],
    "vorbis": [28, 64, 100],
    "amr_nb": [4.75, 7.95, 12.2],
    "gsm": [13],
}
EACH = [pytest.param(name, rate, id=f"{name}-{rate}") for name, rates in ALL.items() for rate in rates]
NARROW = ("amr_nb", "gsm")


@pytest.fixture(autouse=True)
def _machine(request) -> None:
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name in CODERS and CODERS[name].missing():
        pytest.skip(f"this machine has no {name}")


def there() -> dict[str, list[float]]:
    return {name: rates for name, rates in ALL.items() if not CODERS[name].missing()}


@pytest.fixture
def speech(shared_data) -> np.ndarray:
    """(4, samples) two seconds of four recordings, without the rumble below 100 Hz that speech coders take out."""
    files = sorted((shared_data / "LibriSpeech").rglob("*.flac"))
    waves = np.stack([soundfile.read(f, SAMPLES, 8000, dtype="float32")[0] for f in files[:: len(files) // 4][:4]])
    spectrum = np.fft.rfft(waves)
    spectrum[:, np.fft.rfftfreq(SAMPLES, 1 / RATE) < 100] = 0
    return np.fft.irfft(spectrum).astype(np.float32)


def lag(wave: np.ndarray, coded: np.ndarray) -> float:
    """Samples by which `coded` is late, in eighths: the peak of the cross-correlation from 500 to 3000 Hz.

    The filters of speech coders, which take out what lies below 80 Hz, still turn phases at the lowest harmonics.
    """
    size, fine = 1 << 16, 8
    cross = np.fft.rfft(coded.astype(float), size) * np.conj(np.fft.rfft(wave.astype(float), size))
    cross[~band(size, 500, 3000)] = 0
    peak = int(np.fft.irfft(cross, fine * size).argmax())
    return (peak if peak < fine * size // 2 else peak - fine * size) / fine


def band(size: int, low: float, high: float) -> np.ndarray:
    """Which of the frequencies of an rfft of `size` samples lie in the band."""
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    return (frequency > low) & (frequency < high)


def level_db(wave: np.ndarray) -> float:
    """Energy from 100 to 3000 Hz, which every coder here keeps: hiss above is what they save their bits on."""
    return float(10 * np.log10((np.abs(np.fft.rfft(wave)[band(len(wave), 100, 3000)]) ** 2).sum()))


@pytest.mark.parametrize(("name", "bit_rate"), EACH)
def test_speech_stays_in_its_place(speech: np.ndarray, name: str, bit_rate: float) -> None:
    for wave in speech:
        coded = round_trip(wave, RATE, name, bit_rate)
        assert coded.shape == wave.shape
        assert coded.dtype == np.float32
        assert abs(lag(wave, coded)) <= 0.5
        assert abs(level_db(coded) - level_db(wave)) < (2.5 if bit_rate <= 16 else 0.3)
        assert not np.array_equal(coded, wave)


@pytest.mark.parametrize("name", [name for name in ALL if name != "gsm"])
def test_a_burst_stays_in_its_place(name: str) -> None:
    """Independent of any waveform: the middle of the energy of 20 ms of noise, which GSM's predictor would repeat."""
    wave = np.zeros(SAMPLES, np.float32)
    rng = np.random.default_rng(0)
    starts = np.arange(4000, SAMPLES - 2000, 5000)
    for start in starts:
        wave[start : start + 320] = rng.uniform(-0.5, 0.5, 320)
    coded = round_trip(wave, RATE, name, max(ALL[name]))
    for start in starts:
        energy = coded[start - 1000 : start + 1320] ** 2
        assert abs((energy * np.arange(-1160, 1160)).sum() / energy.sum()) < 40  # 2.5 ms


@pytest.mark.parametrize("name", [name for name in ALL if name not in NARROW])
def test_more_bits_lose_less(speech: np.ndarray, name: str) -> None:
    noise = []
    for bit_rate in ALL[name]:
        coded = np.stack([round_trip(wave, RATE, name, bit_rate) for wave in speech])
        noise.append(((coded - speech) ** 2).sum() / (speech**2).sum())
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] < 0.01
    assert noise[0] > 0.003


@pytest.mark.parametrize("name", NARROW)
def test_a_telephone_coder_has_no_band_above_4_khz(name: str) -> None:
    wave = (0.1 * np.random.default_rng(0).standard_normal(SAMPLES)).astype(np.float32)
    power = np.abs(np.fft.rfft(round_trip(wave, RATE, name, ALL[name][-1]))) ** 2
    frequency = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    assert power[frequency > 4100].sum() < 1e-4 * power.sum()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("samples", [1, 100, 3001])
def test_very_short_and_silent_rows(name: str, samples: int) -> None:
    tone = (0.3 * np.sin(np.arange(samples) * 0.2)).astype(np.float32)
    coded = round_trip(tone, RATE, name, ALL[name][-1])
    assert coded.shape == (samples,)
    assert np.isfinite(coded).all()
    if samples > 3000:
        assert (coded**2).mean() > 0.5 * (tone**2).mean()
    assert np.abs(round_trip(np.zeros(samples, np.float32), RATE, name, ALL[name][-1])).max() < 1e-3


@pytest.mark.parametrize("name", ["mp3", "gsm"])
def test_other_sample_rates(speech: np.ndarray, name: str) -> None:
    wave = soxr.resample(speech[0], RATE, 22_050)[:-7]
    coded = round_trip(wave, 22_050, name, ALL[name][-1])
    assert coded.shape == wave.shape
    assert abs(lag(soxr.resample(wave, 22_050, RATE), soxr.resample(coded, 22_050, RATE))) <= 1


def test_rows_draw_formats_and_keep_their_lengths(speech: np.ndarray) -> None:
    augmentation = Codec(0.6, there(), RATE)
    waves = torch.from_numpy(speech).repeat(6, 1)
    lengths = torch.tensor([SAMPLES, 100, 20_001] + [SAMPLES] * 21)
    waves = waves * (torch.arange(SAMPLES) < lengths[:, None])
    key, before = item_keys(0, 0, np.arange(24)), waves.clone()
    whole = augmentation(Signal(waves, lengths, key, np.arange(24)), iter(()))
    assert torch.equal(waves, before)
    assert torch.equal(whole.lengths, lengths)
    for row, length in enumerate(lengths):
        assert not whole.waveform[row, length:].any()
    changed = (whole.waveform != waves).any(dim=1)
    assert 8 < changed.sum() < 21
    # Each row alone and in any company, to the bit.
    for first, last in ((0, 1), (1, 9), (9, 24)):
        part = slice(first, last)
        alone = augmentation(Signal(waves[part], lengths[part], key[part], np.arange(24)[part]), iter(()))
        assert torch.equal(alone.waveform, whole.waveform[part])
    many = item_keys(1, 0, np.arange(4000))
    names, counts = np.unique([name for name, _ in augmentation._chosen(many)], return_counts=True)
    assert set(names) == set(there())
    assert counts.min() > 0.8 * 4000 / len(names)
    drawn = {rate for name, rate in augmentation._chosen(many) if name == "opus"}
    assert drawn == set(there().get("opus", []))


def test_threads_do_not_matter(speech: np.ndarray) -> None:
    augmentation = Codec(1.0, there(), RATE)
    signal = Signal(torch.from_numpy(speech), torch.full((4,), SAMPLES), item_keys(0, 0, np.arange(4)), np.arange(4))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(augmentation(signal, iter(())).waveform)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("bit_rates", "message"),
    [
        ({}, "give a format of mp3, aac"),
        ({"mp3": []}, "each with a bit rate"),
        ({"mp3": None}, "give a format of mp3, aac"),
        ({"mp4": [32]}, "no format 'mp4', but mp3, aac"),
        ({"mp3": [17]}, r"mp3 has 8, 16, .* kbit/s, got 17"),
        ({"opus": [16, 500]}, "opus has 6 to 128 kbit/s, got 500"),
    ],
)
def test_mistakes_are_named(bit_rates: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codec(1.0, bit_rates, RATE)


def test_a_format_that_the_machine_lacks_is_named(monkeypatch) -> None:
    """FFmpeg built without the encoder: a name that no FFmpeg has stands for it."""
    absent = codec.Libav("libmp3lame_absent", "mp3float", RATE)
    monkeypatch.setitem(CODERS, "mp3", codec.Coder(RATE, (16,), absent, absent.missing))
    others = ", ".join(name for name in there() if name != "mp3")
    with pytest.raises(ValueError, match=rf"no FFmpeg's libmp3lame_absent; set mp3 to null; there are {others}"):
        Codec(1.0, {"mp3": [16]}, RATE)


def test_null_leaves_a_format_out(monkeypatch) -> None:
    absent = codec.Libav("libmp3lame_absent", "mp3float", RATE)
    monkeypatch.setitem(CODERS, "mp3", codec.Coder(RATE, (16,), absent, absent.missing))
    assert list(Codec(1.0, {"mp3": None, "gsm": [13]}, RATE).bit_rates) == ["gsm"]


def test_rows_are_coded_at_once_whatever_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun torch has one thread. Four rows can only pass the barrier together."""
    barrier = threading.Barrier(4)

    def together(wave: np.ndarray, sample_rate: int, name: str, bit_rate: float) -> np.ndarray:
        barrier.wait(timeout=5)
        return wave

    monkeypatch.setattr(codec, "round_trip", together)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    signal = Signal(torch.rand(4, 100), torch.full((4,), 100), item_keys(0, 0, np.arange(4)), np.arange(4))
    assert torch.equal(Codec(1.0, {"gsm": [13]}, RATE)(signal, iter([])).waveform, signal.waveform)
