"""MUSAN and RIRS_NOISES in their own layouts, built in small, as augmentation finds them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.data.corpora.noises import corpus_folder
from spkexp.data.recordings import ImpulseResponses, Recordings
from spkexp.errors import UserError

ROOMS = "real_rirs_isotropic_noises"
RESPONSES = ["simulated_rirs/**", f"{ROOMS}/*_rir_*", f"{ROOMS}/air_type1_air_*"]  # of conf/augment


def add(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, np.full(100, 0.1), 16_000, subtype="PCM_16")
    return [str(root / name) for name in names]


def recordings(root: Path, *include: str) -> list[str]:
    return Recordings(str(root), list(include), 0, 16_000).files


def test_musan_and_the_folder_that_holds_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "rauschen ü/musan"
    noise = add(folder, "noise/free-sound/noise-free-sound-0000.wav", "noise/sound-bible/noise-sound-bible-0000.wav")
    music = add(folder, "music/fma/music-fma-0000.wav")
    add(folder, "noise/free-sound/._noise-free-sound-0000.wav")
    (folder / "README").write_text("about")
    for root in (folder, folder.parent):
        assert recordings(root, "noise/**") == noise
        assert recordings(root, "music/**") == music
    for part in ("noise: 2 of 930", "music: 1 of 660", "speech: 0 of 426"):
        assert f"MUSAN {part} files" in caplog.text
    assert caplog.text.count("MUSAN noise") == 1  # however many banks draw from it
    with pytest.raises(UserError, match=r"3 audio files below it, none of which matches include=\['speech/\*\*'\]"):
        recordings(folder, "speech/**")


def test_whole_musan_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, count in {"noise": 930, "music": 660, "speech": 426}.items():
        (tmp_path / part / "x").mkdir(parents=True)
        for number in range(count):
            (tmp_path / part / "x" / f"{number}.wav").touch()
    with caplog.at_level("INFO"):
        assert len(recordings(tmp_path, "**")) == 2_016
    assert "MUSAN music: 660 of 660 files" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_rirs_noises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "RIRS_NOISES"
    simulated = add(folder, "simulated_rirs/smallroom/Room002/Room002-00001.wav")
    add(folder, "pointsource_noises/noise-free-sound-0000.wav", f"{ROOMS}/RVB2014_type1_noise_largeroom1_1.wav")
    real = add(
        folder,
        f"{ROOMS}/RVB2014_type1_rir_largeroom1_far_angla.wav",
        f"{ROOMS}/air_type1_air_binaural_aula_carolina_1_1_45_3.wav",
    )
    for root in (folder, tmp_path):
        assert sorted(ImpulseResponses(str(root), RESPONSES, 0, 16_000).files) == sorted([*simulated, *real])
    assert "RIRS_NOISES simulated_rirs: 1 of 60,000 files; partly extracted?" in caplog.text
    assert f"RIRS_NOISES {ROOMS}: 3 of 417 files" in caplog.text


def test_another_corpus_is_named(tmp_path: Path) -> None:
    add(tmp_path, "vox/wav/id10001/video/00001.wav", "mine/a.wav")
    with pytest.raises(UserError, match=r"vox: 1 audio files .*; this is VoxCeleb1 with wav; give another folder"):
        recordings(tmp_path / "vox", "noise/**")
    assert corpus_folder(tmp_path / "mine") == (tmp_path / "mine", None)
    assert recordings(tmp_path / "mine", "**") == [f"{tmp_path}/mine/a.wav"]


def test_a_folder_of_ones_own_rooms_is_taken_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = add(tmp_path / "my rooms", "kitchen.wav", "stairs/a.wav")
    with caplog.at_level("INFO"):
        assert ImpulseResponses(str(tmp_path / "my rooms"), RESPONSES, 0, 16_000).files == files
    assert "all 2 are taken" in caplog.text
    # But not of noise, whose kinds are told apart by their folders, and not of another corpus.
    with pytest.raises(UserError, match="none of which matches"):
        recordings(tmp_path / "my rooms", "noise/**")
    add(tmp_path, "vox/wav/id10001/video/00001.wav")
    with pytest.raises(UserError, match="this is VoxCeleb1"):
        ImpulseResponses(str(tmp_path / "vox"), RESPONSES, 0, 16_000)
