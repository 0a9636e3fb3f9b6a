"""Containers and encodings, whole and broken. Expected samples are those that were put into the file."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spkexp.data import audio, decoders
from spkexp.errors import AudioError
from tests.audio_files import RATE, encode, integers, pcm, riff, tones


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


@pytest.mark.parametrize("form", ["m4a", "mp4"])
def test_a_video_without_sound_is_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"stumm é.{form}"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for function in (audio.info, audio.read):
        with pytest.raises(AudioError, match=rf"^{path}: holds no audio stream$"):
            function(path)


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


@pytest.mark.parametrize("form", ["wav", "float.wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "webm"])
@pytest.mark.parametrize("whole_bytes", [1 << 20, 1_000])  # decoded from memory, or through a window
def test_a_file_inside_another_is_read_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, whole_bytes: int
) -> None:
    monkeypatch.setattr(decoders, "WHOLE_BYTES", whole_bytes)
    path = tmp_path / f"x.{form}"
    rate = 48_000 if form == "webm" else RATE
    wave = tones(4, rate) + 0.05 * np.random.default_rng(1).standard_normal(4 * rate).astype(np.float32)
    if form == "opus":
        soundfile.write(path, wave, RATE, format="OGG", subtype="OPUS")
    elif form in ("wav", "float.wav", "flac", "ogg"):
        soundfile.write(path, wave, RATE, subtype="FLOAT" if form == "float.wav" else None)
    else:
        codecs = {"webm": "libopus", "mp3": "libmp3lame"}
        encode(path, wave, rate, codecs.get(form, "aac"), "adts" if form == "aac" else None)
    content = path.read_bytes()
    shard = tmp_path / "ein Teil é.tar"
    # Its neighbours are audio too: what reads beyond its end would find samples there.
    shard.write_bytes(content[: len(content) // 2] + content + content)
    part = (len(content) // 2, len(content))
    assert audio.info(shard, part) == audio.info(path)
    whole = audio.read(path, sample_rate=rate)
    np.testing.assert_array_equal(audio.read(shard, part=part, sample_rate=rate), whole)
    for position in (0.0, 0.4, 0.999):
        expected = audio.read_crop(path, 32_000, position, sample_rate=rate)
        np.testing.assert_array_equal(audio.read_crop(shard, 32_000, position, part=part, sample_rate=rate), expected)
    with pytest.raises(AudioError, match=rf"ein Teil é.tar\[{part[0]}:{sum(part)}\]: samples 5 to .* asked for"):
        audio.read(shard, 5, len(whole), part=part, sample_rate=rate)


def test_a_broken_file_inside_another_is_named_with_its_place(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    content = riff(pcm(), integers(500).tobytes())
    shard.write_bytes(bytes(512) + content + content)
    end = 512 + len(content)
    for part, message in [
        ((512, len(content) - 2), rf"x.tar\[512:{end - 2}\]: truncated: its header promises 500 .* ends after 499"),
        ((512, 40), r"x.tar\[512:552\]: truncated: a wav file that ends before its samples"),
        ((512, 0), r"x.tar\[512:512\]: the file is empty"),
        ((0, 512), r"x.tar\[0:512\]: not readable as audio"),
        ((end, len(content) + 1), rf"x.tar: its bytes {end} to {end + len(content) + 1} .*the shard changed since"),
        ((-1, 10), r"x.tar: its bytes -1 to 9 are asked for"),
    ]:
        with pytest.raises(AudioError, match=message):
            audio.read(shard, part=part)
