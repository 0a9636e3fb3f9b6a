"""MUSAN and RIRS_NOISES in their own layouts, built in small."""

from pathlib import Path

import pytest

from spkexp.data.corpora.noises import musan, rirs_noises
from spkexp.errors import UserError


def add(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"RIFF")
    return [str(root / name) for name in names]


def test_musan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "rauschen ü/musan"
    noise = add(folder, "noise/free-sound/noise-free-sound-0000.wav", "noise/sound-bible/noise-sound-bible-0000.wav")
    music = add(folder, "music/fma/music-fma-0000.wav")
    speech = add(folder, "speech/us-gov/speech-us-gov-0000.wav")
    add(folder, "README", "noise/free-sound/LICENSE", "noise/free-sound/._noise-free-sound-0000.wav")
    for root in (folder, folder.parent):
        assert musan(root) == {"noise": noise, "music": music, "speech": speech}
    assert "MUSAN noise: 2 of 930 files; partly extracted?" in caplog.text
    (folder / "speech/us-gov/speech-us-gov-0000.wav").unlink()
    assert musan(folder)["speech"] == []
    assert "MUSAN speech: 0 of 426 files; partly extracted?" in caplog.text


def test_whole_musan_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, count in {"noise": 930, "music": 660, "speech": 426}.items():
        add(tmp_path, *(f"{part}/x/{i}.wav" for i in range(count)))
    with caplog.at_level("INFO"):
        assert sum(map(len, musan(tmp_path).values())) == 2_016
    assert "MUSAN music: 660 of 660 files" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


ROOMS = "real_rirs_isotropic_noises"


def test_rirs_noises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "RIRS_NOISES"
    simulated = add(
        folder,
        "simulated_rirs/largeroom/Room001/Room001-00001.wav",
        "simulated_rirs/smallroom/Room002/Room002-00001.wav",
    )
    points = add(folder, "pointsource_noises/noise-free-sound-0000.wav")
    real = add(
        folder,
        f"{ROOMS}/RVB2014_type1_rir_largeroom1_far_angla.wav",
        f"{ROOMS}/air_type1_air_binaural_aula_carolina_1_1_45_3.wav",
    )
    rooms = add(folder, f"{ROOMS}/RVB2014_type1_noise_largeroom1_1.wav")
    for root in (folder, tmp_path):
        # By their names alone.
        assert rirs_noises(root) == {"simulated": simulated, "real": real, "noise": sorted(points + rooms)}
    # The corpus's lists have the last word.
    odd = add(folder, f"{ROOMS}/a_noise_that_is_a_response.wav", f"{ROOMS}/hum.wav")
    (folder / ROOMS / "rir_list").write_text(
        f"--rir-id 00001 --room-id r1 RIRS_NOISES/{ROOMS}/a_noise_that_is_a_response.wav\n"
    )
    (folder / ROOMS / "noise_list").write_text(
        f"--noise-id n1 --noise-type isotropic --room-linkage r1 RIRS_NOISES/{ROOMS}/hum.wav\n\n"
    )
    found = rirs_noises(folder)
    assert found["real"] == sorted([*real, odd[0]])
    assert found["noise"] == sorted([*points, *rooms, odd[1]])
    assert "RIRS_NOISES simulated_rirs: 2 of 60,000 files; partly extracted?" in caplog.text
    assert "RIRS_NOISES real_rirs_isotropic_noises: 5 of 417 files" in caplog.text


def test_another_corpus_is_named(tmp_path: Path) -> None:
    add(tmp_path, "RIRS_NOISES/pointsource_noises/x.wav")
    add(tmp_path, "musan/noise/x/a.wav", "musan/music/x/a.wav", "vox/wav/id10001/video/00001.wav", "mine/a.wav")
    with pytest.raises(UserError, match=r"MUSAN=.*RIRS_NOISES: this is RIRS_NOISES, expected MUSAN: noise/, music/"):
        musan(tmp_path / "RIRS_NOISES")
    with pytest.raises(UserError, match="this is MUSAN, expected RIRS_NOISES: simulated_rirs/"):
        rirs_noises(tmp_path / "musan")
    with pytest.raises(UserError, match="this is VoxCeleb1, expected MUSAN"):
        musan(tmp_path / "vox")
    with pytest.raises(UserError, match=r"not a MUSAN tree; expected noise/.*; found a\.wav"):
        musan(tmp_path / "mine")
    with pytest.raises(UserError, match="nowhere: no such folder; expected RIRS_NOISES"):
        rirs_noises(tmp_path / "nowhere")
    (tmp_path / "empty/noise").mkdir(parents=True)
    (tmp_path / "empty/music").mkdir()
    with pytest.raises(UserError, match="MUSAN's folders are there, but no audio file is"):
        musan(tmp_path / "empty")
