"""Reading audio. Expected samples are those that were put into the file, not what another read gives."""

import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spkexp.data import audio
from spkexp.errors import AudioError

RATE = 16_000


def integers(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise that uses the whole range of 16 bits, (frames, channels)."""
    samples = np.random.default_rng(seed).integers(-32768, 32768, (frames, channels)).astype("<i2")
    samples[:2, 0] = -32768, 32767
    return samples


def tones(seconds: float, rate: int) -> np.ndarray:
    """300 Hz and 1700 Hz at half scale: what survives a lossy codec or a resampler, to compare with."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 300 * time) + 0.2 * np.sin(2 * np.pi * 1700 * time)).astype(np.float32)


def riff(fmt: bytes, data: bytes, before: bytes = b"", size: int | None = None) -> bytes:
    """A wav file by hand, with `before` between the format and the samples."""
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + before
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pcm(rate: int = RATE, channels: int = 1) -> bytes:
    return struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)


def encode(path: Path, wave: np.ndarray, rate: int, codec: str = "aac", form: str | None = None) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything; as somebody else the permissions of a file count."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", ["plain.wav", "mit Leer zeichen.wav", "Zürich-語音-\U0001f399.wav", "a:b.wav"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_crops_are_the_samples_of_the_file(tmp_path: Path, name: str, suffix: str) -> None:
    path = (tmp_path / name).with_suffix(suffix)
    samples = integers(40_000)[:, 0]
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    expected = samples / 32768
    assert audio.info(path) == (RATE, 1, 40_000)
    assert audio.info(path).duration == 2.5
    for start, frames in [(0, None), (0, 1), (1, 32_000), (12_345, 4_096), (39_999, 1), (8_000, None)]:
        crop = audio.read(path, start, frames)
        assert crop.dtype == np.float32
        assert crop.flags.c_contiguous
        np.testing.assert_array_equal(crop, expected[start:][:frames])


def test_wav_headers_of_every_kind(tmp_path: Path) -> None:
    samples = integers(500)
    data = samples.tobytes()
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    extensible = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + guid
    odd = b"note" + struct.pack("<I", 3) + b"abc\0"
    long = b"LIST" + struct.pack("<I", 10_000) + b"data" * 2_500
    files = {
        "odd chunk": riff(pcm(), data, odd),
        "samples past the first page": riff(pcm(), data, long),
        "extensible": riff(extensible, data),
        "chunks after the samples": riff(pcm(), data) + odd,
        "size unknown to the writer": riff(pcm(), data, size=0xFFFFFFFF),
        "size unknown to sox": riff(pcm(), data, size=0x7FFFF000),
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(content)
        assert audio.info(path) == (RATE, 1, 500), name
        np.testing.assert_array_equal(audio.read(path, 7, 400), samples[7:407, 0] / 32768, err_msg=name)


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [("PCM_U8", 2**-7), ("PCM_24", 2**-23), ("PCM_32", 2**-24), ("FLOAT", 0), ("DOUBLE", 2**-24), ("ULAW", 0.02)],
)
def test_other_wav_encodings(tmp_path: Path, subtype: str, tolerance: float) -> None:
    path = tmp_path / "x.wav"
    wave = tones(0.5, RATE)
    soundfile.write(path, wave, RATE, subtype=subtype)
    assert audio.info(path) == (RATE, 1, 8_000)
    np.testing.assert_allclose(audio.read(path, 100, 5_000), wave[100:5_100], rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", ["m4a", "aac", "ogg", "opus", "mp3", "webm"])
def test_lossy_formats(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"ein Wort é.{form}"
    wave = tones(4, RATE) + 0.01 * np.random.default_rng(1).standard_normal(4 * RATE).astype(np.float32)
    if form == "opus":
        soundfile.write(path, wave, RATE, format="OGG", subtype="OPUS")
    elif form == "ogg":
        soundfile.write(path, wave, RATE)
    elif form == "webm":
        encode(path, wave, 48_000, "libopus")
    else:
        encode(path, wave, RATE, "libmp3lame" if form == "mp3" else "aac", "adts" if form == "aac" else None)
    rate = 48_000 if form == "webm" else RATE
    whole = audio.read(path, sample_rate=rate)
    assert audio.info(path) == (rate, 1, len(whole))
    # An encoder pads to whole blocks: 20 ms to 64 ms; bare AAC and webm keep the encoder's delay besides.
    assert 0 <= len(whole) - len(wave) <= 2 * 1_024
    delay = max(range(len(whole) - len(wave) + 1), key=lambda d: float(whole[d:][: len(wave)] @ wave))
    assert delay == 0 or form in ("aac", "webm")
    assert np.corrcoef(whole[delay:][: len(wave)], wave)[0, 1] > 0.99
    # A crop is the same stretch of the whole file, also right behind a seek; Opus never forgets what it decoded.
    tolerance = 5e-3 if form == "opus" else 1e-6
    for start, frames in [(1, 8_000), (1_025, 16_000), (30_001, 32_000), (48_000, len(whole) - 48_000)]:
        crop = audio.read(path, start, frames, sample_rate=rate)
        np.testing.assert_allclose(crop, whole[start:][:frames], rtol=0, atol=tolerance)


def test_channels_are_averaged_only_on_request(tmp_path: Path) -> None:
    samples = integers(3_000, channels=2)
    expected = (samples[:, 0].astype(float) + samples[:, 1]) / 65536
    for suffix in (".wav", ".flac"):
        path = tmp_path / f"stereo{suffix}"
        soundfile.write(path, samples, RATE, subtype="PCM_16")
        assert audio.info(path) == (RATE, 2, 3_000)
        with pytest.raises(AudioError, match=r"stereo.*: 2 channels, expected 1; set data.mix_channels=true"):
            audio.read(path)
        np.testing.assert_allclose(audio.read(path, 10, 2_000, mix_channels=True), expected[10:2_010], atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_other_rates_are_resampled_only_on_request(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, tones(3, rate), rate, subtype="PCM_16")
    with pytest.raises(AudioError, match=rf"x.wav: {rate} Hz, expected 16000 Hz; set data.resample=true"):
        audio.read(path)
    whole = audio.read(path, resample=True)
    assert len(whole) == 3 * RATE == audio.info(path).frames_at(RATE)
    # The tones lie below every Nyquist frequency here, so resampling must give the tones at the new rate.
    np.testing.assert_allclose(whole[800:-800], tones(3, RATE)[800:-800], atol=1e-4)
    for start, frames in [(0, 100), (1, 16_000), (17_777, 20_000), (3 * RATE - 500, 500)]:
        crop = audio.read(path, start, frames, resample=True)
        np.testing.assert_allclose(crop, whole[start : start + frames], atol=3e-6)


def test_the_last_resampled_sample_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    for frames, expected in [(1_000, 334), (1_001, 334), (1_002, 334), (1_003, 335)]:  # ceil(frames / 3)
        soundfile.write(path, np.zeros(frames, np.float32), 48_000, subtype="PCM_16")
        assert len(audio.read(path, resample=True)) == expected == audio.info(path).frames_at(RATE)
        assert len(audio.read(path, expected - 1, 1, resample=True)) == 1


def test_flac_whose_writer_did_not_know_its_length(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    samples = integers(30_000)[:, 0]
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the total are the low end of bytes 18 to 25
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert audio.info(path) == (RATE, 1, 30_000)
    np.testing.assert_array_equal(audio.read(path, 20_000, 10_000), samples[20_000:] / 32768)


def test_broken_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    samples = integers(50_000)[:, 0]
    nan = np.array([0.1, np.nan, 0.2], np.float32)
    soundfile.write(tmp_path / "full.flac", samples, RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "inf.wav", nan * np.float32(np.inf), RATE, subtype="FLOAT")
    flac = (tmp_path / "full.flac").read_bytes()
    damaged = bytearray(flac)
    damaged[50_000:50_100] = bytes(100)
    encode(tmp_path / "full.m4a", tones(3, RATE), RATE)
    m4a = (tmp_path / "full.m4a").read_bytes()
    wav = riff(pcm(), samples.tobytes())
    floats = struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)
    for name, content in {
        "empty.wav": b"",
        "no samples.wav": riff(pcm(), b""),
        "no samples float.wav": riff(floats, b""),
        "half.wav": wav[: len(wav) // 2],
        "half float.wav": riff(floats, bytes(400))[:-100],
        "header.wav": wav[:30],
        "text.wav": b"this is a letter to the editor\n" * 9,
        "text.flac": b"this is a letter to the editor\n" * 9,
        "half.flac": flac[: len(flac) // 2],
        "header.flac": flac[:42],
        "stub.flac": flac[:20],
        "damaged.flac": bytes(damaged),
        "half.m4a": m4a[: len(m4a) // 2],
        "one byte": b"R",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    expected = {
        "missing.wav": "no such file; check data.root",
        "full.flac/x.wav": "cannot be opened: Not a directory",
        "empty.wav": r"the file is empty \(0 bytes\)",
        "no samples.wav": "holds no samples",
        "no samples float.wav": "holds no samples",
        "half.wav": "truncated: its header promises 50000 samples a channel, but the file ends after 24989",
        "half float.wav": "truncated: its header promises 100 samples a channel, but the file ends after 75",
        "header.wav": "truncated: a wav file that ends before its samples",
        "text.wav": "not readable as audio.*begins with b'this is a le",
        "text.flac": "not readable as audio.*begins with b'this is a le",
        "half.flac": "truncated",
        "header.flac": "truncated|not readable",
        "stub.flac": "not readable as audio",
        "damaged.flac": "truncated or corrupt",
        "half.m4a": "not readable as audio",
        "nan.wav": "NaN or infinite",
        "inf.wav": "NaN or infinite",
        "folder.wav": "is a directory",
        "pipe.wav": "is not a regular file",
        "one byte": "not readable as audio",
    }
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for name, message in expected.items():
        with pytest.raises(AudioError, match=message) as caught:
            audio.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: "), name
    if before:
        assert len(os.listdir("/proc/self/fd")) == before, "a file is left open"


def test_half_a_flac_file_gives_its_half_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "half.flac"
    samples = integers(50_000)[:, 0]
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:50_000])
    np.testing.assert_array_equal(audio.read(path, 0, 8_000), samples[:8_000] / 32768)
    for start in (20_000, 24_000, 40_000, 49_000):
        with pytest.raises(AudioError, match="truncated"):
            audio.read(path, start, 1_000 if start > 30_000 else 20_000)


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, integers(100), RATE)
    path.chmod(0)
    with unprivileged(), pytest.raises(AudioError, match=r"x\.wav: cannot be opened: Permission denied"):
        audio.read(path)


def test_more_than_there_is_is_never_a_short_read(tmp_path: Path) -> None:
    for name in ("x.wav", "x.flac"):
        soundfile.write(tmp_path / name, integers(1_000), RATE)
        for start, frames, stop in [(0, 1_001, 1_001), (999, 2, 1_001), (1_000, None, 1_000), (5_000, 10, 5_010)]:
            with pytest.raises(AudioError, match=rf"samples {start} to {stop} asked for, but it has 1000 at 16000 Hz"):
                audio.read(tmp_path / name, start, frames)
        for start, frames in [(-1, 10), (0, 0), (0, -1)]:
            with pytest.raises(ValueError, match="start must be >= 0 and frames >= 1"):
                audio.read(tmp_path / name, start, frames)


def test_durations_keep_the_order_and_null_the_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = []
    for i in range(600):
        path = tmp_path / f"{i}.wav"
        path.write_bytes(riff(pcm(), bytes(2 * (i + 1))))
        paths.append(str(path))
    Path(paths[300]).write_bytes(b"")
    found = audio.durations(paths)
    assert found[300] is None
    assert "300.wav: the file is empty" in caplog.text
    assert [d for i, d in enumerate(found) if i != 300] == [(i + 1) / RATE for i in range(600) if i != 300]


def test_threads_share_nothing(tmp_path: Path) -> None:
    files = {}
    for i in range(4):
        for suffix in (".wav", ".flac"):
            files[tmp_path / f"{i}{suffix}"] = integers(20_000, seed=i)[:, 0]
    for path, samples in files.items():
        soundfile.write(path, samples, RATE, subtype="PCM_16")

    def check(item: int) -> bool:
        path = list(files)[item % len(files)]
        start = item * 97 % 15_000
        return bool((audio.read(path, start, 4_000) == files[path][start : start + 4_000] / 32768).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(400)))
