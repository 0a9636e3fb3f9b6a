"""Reading audio. Expected samples are those that were put into the file, not what another read gives."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.data import audio, part
from spkexp.errors import AudioError
from tests.audio_files import RATE, integers, pcm, riff, tones


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
    with pytest.raises(AudioError, match=rf"x.wav: sampled at {rate} Hz, expected 16000 Hz; set data.resample=true"):
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


def test_crop_position_covers_every_place_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    samples = integers(1_000)[:, 0]
    soundfile.write(path, samples, RATE)
    wave = samples / 32768
    # 1000 - 400 + 1 = 601 places: 0 to 600.
    for position, start in [(0.0, 0), (0.5, 300), (1 - 2**-53, 600)]:
        np.testing.assert_array_equal(audio.read_crop(path, 400, position), wave[start:][:400])
    # In samples 100 to 300: 200 - 50 + 1 = 151 places from 100 on.
    for position, start in [(0.0, 100), (0.5, 175), (1 - 2**-53, 250)]:
        np.testing.assert_array_equal(audio.read_crop(path, 50, position, segment=(100, 300)), wave[start:][:50])
    np.testing.assert_array_equal(audio.read_crop(path, 2_000, 0.9), wave)
    np.testing.assert_array_equal(audio.read_crop(path, 2_000, 0.9, segment=(100, 300)), wave[100:300])
    with pytest.raises(AudioError, match="samples 900 to 1100 asked for, but it has 1000"):
        audio.read_crop(path, 200, 0.0, segment=(900, 1_200))


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


def test_more_shards_than_stay_open_and_forked_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "MAX_OPEN_SHARDS", 3)
    contents = {tmp_path / f"s{n}.tar": integers(300, seed=n) for n in range(6)}
    for path, samples in contents.items():
        path.write_bytes(bytes(100) + riff(pcm(), samples.tobytes()))

    def all_good(rounds: int) -> bool:
        place = (100, 44 + 600)
        good = [
            np.array_equal(audio.read(path, part=place), samples[:, 0] / 32768)
            for _ in range(rounds)
            for path, samples in contents.items()
        ]
        return all(good)

    assert all_good(1)
    opened = len(os.listdir("/proc/self/fd"))
    # Threads evict what others are reading from; forks happen while they hold the lock.
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(all_good, 60) for _ in range(4)]
        for _ in range(8):
            child = os.fork()
            if child == 0:
                os._exit(0 if all_good(2) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert all(future.result() for future in running)
    assert len(os.listdir("/proc/self/fd")) <= opened + 3
