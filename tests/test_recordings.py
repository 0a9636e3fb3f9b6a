"""Banks of recordings: what is listed, what a crop holds, in memory as from the files, and what cannot be used."""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.counter import item_keys
from spkexp.data.recordings import ImpulseResponses, Recordings
from spkexp.errors import AudioError, UserError

RATE = 16_000


def write(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)


def ramp(number: int, samples: int) -> np.ndarray:
    """Sample i of file `number` is 2000 * number + i + 1, in steps of 16 bits."""
    return (2_000 * number + 1 + np.arange(samples)).astype(np.int16)


def names(bank: Recordings | ImpulseResponses) -> list[str]:
    return [Path(file).relative_to(bank.root).as_posix() for file in bank.files]


@pytest.fixture
def musan(tmp_path: Path) -> Path:
    root = tmp_path / "my musan ü"
    for number, name in enumerate(("noise/free-sound/a.wav", "noise/b [1].wav", "music/c.wav", "speech/us-gov/d.wav")):
        write(root / name, ramp(number, 1_500))
    (root / "noise" / "README").write_text("no audio")
    (root / "noise" / "._a.wav").write_bytes(b"not audio")
    return root


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["noise/**"], ["noise/b [1].wav", "noise/free-sound/a.wav"]),
        (["noise/*"], ["noise/b [1].wav"]),
        (["music/**", "**/d.wav"], ["music/c.wav", "speech/us-gov/d.wav"]),
        (["**/[a]*"], []),
        (["noise/b [1].wa?"], ["noise/b [1].wav"]),
        (["**"], ["noise/b [1].wav", "noise/free-sound/a.wav", "music/c.wav", "speech/us-gov/d.wav"]),
    ],
)
def test_include(musan: Path, include: list[str], expected: list[str]) -> None:
    if not expected:
        with pytest.raises(UserError, match=r"4 audio files below it, none .*this is MUSAN with music, noise, speech"):
            Recordings(str(musan), include, 0, RATE)
        return
    assert sorted(names(Recordings(str(musan), include, 0, RATE))) == sorted(expected)


@pytest.mark.parametrize("memory_mb", [0, 1])
def test_crops_are_stretches_of_files(musan: Path, memory_mb: float) -> None:
    bank = Recordings(str(musan), ["**"], memory_mb, RATE)
    crops = bank.crop(item_keys(0, 0, np.arange(600)), 1_000, [])
    assert crops.dtype == np.float32
    assert crops.shape == (600, 1_000)
    steps = (crops * 2**15).astype(int)
    assert (np.diff(steps) == 1).all()
    number, first = np.divmod(steps[:, 0] - 1, 2_000)
    assert np.bincount(number) == pytest.approx(np.full(4, 150), abs=40)
    assert first.min() < 10
    assert 490 < first.max() <= 500
    assert np.median(first) == pytest.approx(250, abs=40)


def test_memory_and_files_give_the_same(musan: Path) -> None:
    """Also at another rate, of several channels, and of other formats, but for the 16 bits kept in memory."""
    rng = np.random.default_rng(0)
    write(musan / "noise" / "stereo.flac", 0.1 * rng.standard_normal((4_000, 2)))
    write(musan / "noise" / "narrow.wav", 0.1 * rng.standard_normal(3_000), rate=8_000)
    write(musan / "noise" / "loud.wav", 3 * rng.standard_normal(3_000), subtype="FLOAT")
    key = item_keys(2, 0, np.arange(100))
    memory, files = Recordings(str(musan), ["**"], 1, RATE), Recordings(str(musan), ["**"], 0, RATE)
    assert names(memory) == names(files)
    difference = np.abs(memory.crop(key, 2_000, []) - files.crop(key, 2_000, [])).max(axis=1)
    assert difference.max() < 12 * 2.0**-16  # half a step of 16 bits of the loudest file's peak
    assert (difference == 0).sum() > 40  # 16-bit files at their own rate


def test_short_recordings_are_repeated(tmp_path: Path) -> None:
    write(tmp_path / "short.wav", ramp(0, 700))
    for memory_mb in (0, 1):
        (crop,) = Recordings(str(tmp_path), ["**"], memory_mb, RATE).crop(item_keys(0, 0, np.arange(1)), 1_600, [])
        expected = np.concatenate([ramp(0, 700), ramp(0, 700), ramp(0, 200)])
        assert np.array_equal(crop * 2**15, expected)


def test_a_bank_beyond_memory_mb_is_read_by_crop(musan: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Four files of 1,500 samples: 12,000 bytes."""
    with caplog.at_level(logging.INFO):
        Recordings(str(musan), ["**"], 0.0119, RATE)
        Recordings(str(musan), ["**"], 0.012, RATE)
    first, second = [record.message for record in caplog.records if record.levelname == "INFO"]
    assert "4 recordings, read by crop" in first
    assert "4 recordings, in memory" in second


def test_a_row_depends_on_its_key_alone(musan: Path) -> None:
    write(musan / "noise" / "silent.wav", np.zeros(3_000))
    key = item_keys(0, 3, np.arange(40))
    bank = Recordings(str(musan), ["**"], 0, RATE)
    whole = bank.crop(key, 300, [])
    assert np.array_equal(bank.crop(key[::-3], 300, []), whole[::-3])


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    write(tmp_path / "good.wav", ramp(0, 3_000))
    write(tmp_path / "zeros.wav", np.zeros(3_000))
    write(tmp_path / "no samples.wav", np.zeros(0))
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.flac").write_text("this is not audio")
    write(tmp_path / "cut.flac", np.random.default_rng(0).standard_normal(30_000) * 0.1)
    whole = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 20])
    return tmp_path


REASONS = {
    "zeros.wav": "silent",
    "no samples.wav": "holds no samples",
    "empty.wav": "0 bytes",
    "text.flac": "not readable as audio",
    "cut.flac": "truncated",
}


def test_unusable_files_are_left_out_of_memory_and_named(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    bank = Recordings(str(broken), ["**"], 1, RATE)
    assert names(bank) == ["good.wav"]
    found = {Path(file).name: reason for file, reason in bank.bad}
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reason in found[name]
        assert f"{name}: " in caplog.text
    bad: list[tuple[str, str]] = []
    bank.crop(item_keys(0, 0, np.arange(20)), 1_000, bad)
    assert bad == []


def test_unusable_files_of_a_bank_beyond_memory_mb_are_named_when_drawn(broken: Path) -> None:
    bank = Recordings(str(broken), ["**"], 0.001, RATE)
    assert len(bank.files) == 6
    assert bank.bad == []
    bad: list[tuple[str, str]] = []
    bank.crop(item_keys(0, 0, np.arange(60)), 1_000, bad)
    assert {Path(file).name for file, _ in bad} == REASONS.keys()


def test_a_bank_of_which_most_cannot_be_used_serves(tmp_path: Path) -> None:
    """Nine of ten: ten draws would fail for one row in three."""
    write(tmp_path / "good.wav", ramp(0, 300))
    for number in range(9):
        (tmp_path / f"{number}.wav").write_bytes(b"RIFF")
    bank = Recordings(str(tmp_path), ["**"], 0, RATE)
    bad: list[tuple[str, str]] = []
    assert (bank.crop(item_keys(0, 0, np.arange(100)), 300, bad) == ramp(0, 300) * 2.0**-15).all()
    assert len(bad) == pytest.approx(900, rel=0.4)


def test_of_a_bank_beyond_memory_mb_hardly_a_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes tell: 200 files of 4,000 bytes of samples are clearly more than half a megabyte."""
    for number in range(200):
        write(tmp_path / f"{number}.wav", ramp(0, 2_000))
    looked_at: list[str] = []
    frames = Recordings._frames
    monkeypatch.setattr(Recordings, "_frames", lambda self, path: looked_at.append(path) or frames(self, path))
    assert Recordings(str(tmp_path), ["**"], 0.5, RATE)._memory is None
    assert len(looked_at) < 10
    assert Recordings(str(tmp_path), ["**"], 0.8, RATE)._memory is not None


def test_the_digest_is_that_of_the_names(musan: Path) -> None:
    whole, noise = (Recordings(str(musan), include, 0, RATE) for include in (["**"], ["noise/**"]))
    moved = musan.rename(musan.parent / "elsewhere")
    assert Recordings(str(moved), ["**"], 0, RATE).digest == whole.digest != noise.digest
    (moved / "music" / "c.wav").rename(moved / "music" / "e.wav")
    assert Recordings(str(moved), ["**"], 0, RATE).digest != whole.digest


def test_unusable_files_met_on_the_way_are_replaced_and_named(broken: Path) -> None:
    for number in range(8):
        write(broken / f"other{number}.wav", ramp(0, 3_000))
    bank = Recordings(str(broken), ["**"], 0, RATE)
    bad: list[tuple[str, str]] = []
    crops = bank.crop(item_keys(0, 0, np.arange(200)), 20_000, bad)
    assert (np.abs(crops).max(axis=1) > 0.09).all()  # the top of the ramp
    found = {Path(file).name: reason for file, reason in bad}
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reason in found[name]
        assert str(broken) not in found[name]


def test_silent_stretch_of_a_recording_is_replaced(tmp_path: Path) -> None:
    wave = np.zeros(20_000)
    wave[10_000:] = 0.1
    write(tmp_path / "half.wav", wave)
    for memory_mb in (0, 1):
        bad: list[tuple[str, str]] = []
        crops = Recordings(str(tmp_path), ["**"], memory_mb, RATE).crop(item_keys(0, 0, np.arange(50)), 1_000, bad)
        assert (np.abs(crops).max(axis=1) > 0.09).all()
        assert len(bad) > 10
        assert {reason for _, reason in bad} == {"the stretch that was drawn is silent"}


def test_a_file_that_vanishes_is_replaced_and_named(musan: Path) -> None:
    bank = Recordings(str(musan), ["**"], 0, RATE)
    (musan / "music" / "c.wav").unlink()
    bad: list[tuple[str, str]] = []
    assert len(bank.crop(item_keys(0, 0, np.arange(40)), 500, bad)) == 40
    assert {Path(file).name for file, _ in bad} == {"c.wav"}
    assert "no such file" in bad[0][1]


@pytest.mark.parametrize("memory_mb", [0, 1])
def test_a_folder_of_zeros_is_refused(tmp_path: Path, memory_mb: float) -> None:
    folder = tmp_path / "speech-length zeros"
    for number in range(3):
        write(folder / f"{number}.wav", np.zeros(RATE))
    with pytest.raises(AudioError, match=r"speech-length zeros: none of .*[012]\.wav: .*silent; .*augment.….root"):
        Recordings(str(folder), ["**"], memory_mb, RATE).crop(item_keys(0, 0, np.arange(4)), 1_000, [])


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; .*augment.….root"):
        Recordings(str(tmp_path / "nowhere"), ["**"], 10, RATE)
    with pytest.raises(UserError, match="no audio below it"):
        Recordings(str(tmp_path), ["**"], 10, RATE)


def test_responses_are_the_first_channel_at_the_rate_asked_for(tmp_path: Path) -> None:
    response = 0.5 * np.sin(np.arange(2_000) / 9) * np.exp(-np.arange(2_000) / 300)
    write(tmp_path / "array.wav", np.stack([response, -response], axis=1), subtype="FLOAT")
    for memory_mb in (0, 1):
        bank = ImpulseResponses(str(tmp_path), ["**"], memory_mb, RATE)
        (found,) = bank.responses(item_keys(0, 0, np.arange(1)), 1.0, [])
        assert found == pytest.approx(response, abs=2e-5)
        (half,) = ImpulseResponses(str(tmp_path), ["**"], memory_mb, 8_000).responses(
            item_keys(0, 0, np.arange(1)), 1.0, []
        )
        assert half == pytest.approx(response[::2], abs=0.01)


def test_layout_of_rirs_noises(tmp_path: Path) -> None:
    """The folder of measured rooms holds noises as well; conf/augment/noise_reverb.yaml tells them apart."""
    for name in (
        "simulated_rirs/smallroom/Room001/Room001-00001.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_angla.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav",
        "real_rirs_isotropic_noises/air_type1_air_binaural_aula_carolina_1_1_90_3.wav",
        "pointsource_noises/noise-free-sound-0000.wav",
    ):
        write(tmp_path / name, ramp(0, 100))
    include = ["simulated_rirs/**", "real_rirs_isotropic_noises/*_rir_*", "real_rirs_isotropic_noises/air_type1_air_*"]
    found = names(ImpulseResponses(str(tmp_path), include, 0, RATE))
    assert len(found) == 3
    assert not any("noise_" in name or "noise-" in name for name in found)
