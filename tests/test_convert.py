"""Conversion: samples against the originals, folders that are gone on with, bad files and disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

from spkexp.data import audio
from spkexp.data.convert import Conversion, Utterance, convert, to_16_bit, trim
from spkexp.data.converted import Order, convert_table, file_names
from spkexp.data.manifest import read_table
from spkexp.errors import AudioError, UserError
from tests.audio_files import RATE, encode, integers, tones

AS_IT_IS = Conversion("wav", RATE, resample=False, mix_channels=False, trim_db=None)


def order(table: pl.DataFrame, output: Path, **changes: object) -> Order:
    settings: dict[str, object] = {"conversion": AS_IT_IS, "pack_bytes": None, "workers": 1, "on_error": "raise"}
    settings |= {"identity": {"corpus": "x"}, "max_bad_fraction": 0.5} | changes
    return Order(table=table, output=output, **settings)  # type: ignore[arg-type]


def corpus(root: Path, speakers: int = 3, utterances: int = 2) -> pl.DataFrame:
    rows = []
    for speaker in range(speakers):
        for i in range(utterances):
            path = root / f"sp ü{speaker}" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, integers(1600 + 100 * i, seed=10 * speaker + i), RATE, subtype="PCM_16")
            rows.append(
                (f"u{speaker}/{i}", str(path), (1600 + 100 * i) / RATE, f"u{speaker}", "train" if speaker else "val")
            )
    return pl.DataFrame(rows, schema=["id", "path", "duration", "speaker", "split"], orient="row")


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_16_bit_audio_comes_back_bit_for_bit(tmp_path: Path, form: str) -> None:
    samples = integers(5000)
    soundfile.write(tmp_path / "a.flac", samples, RATE, subtype="PCM_16")
    conversion = Conversion(form, RATE, False, False, None)  # type: ignore[arg-type]
    outcome = convert(Utterance(str(tmp_path / "a.flac"), None, None), conversion)
    assert outcome.data is not None
    target = tmp_path / f"b.{form}"
    target.write_bytes(outcome.data)
    found, rate = soundfile.read(target, dtype="int16")
    assert (rate, outcome.frames, outcome.clipped) == (RATE, 5000, False)
    np.testing.assert_array_equal(found, samples[:, 0])
    part = convert(Utterance(str(tmp_path / "a.flac"), None, (1000, 700)), conversion)
    target.write_bytes(part.data or b"")
    np.testing.assert_array_equal(soundfile.read(target, dtype="int16")[0], samples[1000:1700, 0])


def test_a_segment_at_another_rate(tmp_path: Path) -> None:
    """start and stop count samples at 16 kHz."""
    soundfile.write(tmp_path / "a.wav", integers(8000), 8000, subtype="PCM_16")
    (tmp_path / "m.csv").write_text("path,speaker,start,stop\na.wav,s,2000,6000\n")
    conversion = Conversion("wav", 8000, resample=False, mix_channels=False, trim_db=None)
    table, _ = convert_table(order(read_table(tmp_path / "m.csv", None), tmp_path / "to", conversion=conversion))
    found = soundfile.read(tmp_path / "to" / table["path"][0], dtype="int16")[0]
    np.testing.assert_array_equal(found, integers(8000)[1000:3000, 0])


def test_m4a_at_another_rate(tmp_path: Path) -> None:
    encode(tmp_path / "a.m4a", tones(1.0, 44_100), 44_100)
    utterance = Utterance(str(tmp_path / "a.m4a"), None, None)
    with pytest.raises(AudioError, match=r"44100 Hz, expected 16000 Hz; set data\.resample=true"):
        convert(utterance, AS_IT_IS)
    outcome = convert(utterance, Conversion("wav", RATE, True, False, None))
    (tmp_path / "b.wav").write_bytes(outcome.data or b"")
    found = audio.read(tmp_path / "b.wav")
    assert abs(len(found) - RATE) <= 1024 * RATE / 44_100 + 1  # AAC codes frames of 1024
    middle = slice(2000, 14_000)
    error = found[middle] - tones(1.0, RATE)[middle]
    assert 10 * np.log10(np.mean(tones(1.0, RATE)[middle] ** 2) / np.mean(error**2)) > 20


def test_channels(tmp_path: Path) -> None:
    samples = integers(3000, channels=2)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="PCM_16")
    with pytest.raises(AudioError, match=r"2 channels, expected 1; set data\.mix_channels=true"):
        convert(Utterance(str(tmp_path / "a.wav"), None, None), AS_IT_IS)
    outcome = convert(Utterance(str(tmp_path / "a.wav"), None, None), Conversion("flac", RATE, False, True, None))
    (tmp_path / "b.flac").write_bytes(outcome.data or b"")
    mean = samples.astype(np.float64).mean(axis=1)
    assert np.abs(soundfile.read(tmp_path / "b.flac", dtype="int16")[0] - mean).max() <= 0.5


def test_trim_by_hand() -> None:
    # Frames of 160 samples: 3 at -60 dB, 1 at 0 dB, 2 at -60 dB, 1 at -30 dB, 2.5 at -60 dB.
    amplitude = np.repeat([1e-3, 1.0, 1e-3, 10**-1.5, 1e-3], [480, 160, 320, 160, 400]).astype(np.float32)
    wave = amplitude * np.tile([1, -1], len(amplitude) // 2).astype(np.float32)
    np.testing.assert_array_equal(trim(wave, RATE, 40), wave[480 : 480 + 160 + 320 + 160])
    np.testing.assert_array_equal(trim(wave, RATE, 20), wave[480:640])
    np.testing.assert_array_equal(trim(wave, RATE, 61), wave)
    np.testing.assert_array_equal(trim(0.01 * wave, RATE, 40), 0.01 * wave[480:1120])  # relative to the peak
    np.testing.assert_array_equal(trim(wave[-50:], RATE, 10), wave[-50:])
    silence = np.zeros(1000, np.float32)
    np.testing.assert_array_equal(trim(silence, RATE, 40), silence)


def test_what_goes_beyond_full_scale_is_clipped_and_said() -> None:
    samples, clipped = to_16_bit(np.array([1.0, -1.0, 0.5, 1.5 / 32768], np.float32))
    assert (samples.tolist(), clipped) == ([32767, -32768, 16384, 2], False)
    samples, clipped = to_16_bit(np.array([1.2, -3.0], np.float32))
    assert (samples.tolist(), clipped) == ([32767, -32768], True)


def test_a_folder_that_can_be_moved(tmp_path: Path) -> None:
    source = corpus(tmp_path / "from")
    table, facts = convert_table(order(source, tmp_path / "to"))
    assert table.columns == ["id", "path", "duration", "speaker", "split"]
    assert table["path"][1] == "wav/u0/1.wav"
    assert (facts["utterances"], facts["speakers"], facts["broken"]) == (6, 3, [])
    assert facts["splits"]["val"]["utterances"] == 2
    shutil.move(tmp_path / "to", tmp_path / "moved ü")
    found = read_table(tmp_path / "moved ü", None)
    assert found.drop("path").rows() == source.drop("path").rows()
    for old, new in zip(source["path"], found["path"], strict=True):
        assert new.startswith(str(tmp_path / "moved ü"))
        np.testing.assert_array_equal(audio.read(new), audio.read(old))


def test_packed(tmp_path: Path) -> None:
    source = corpus(tmp_path / "from", speakers=4, utterances=5)
    table, _ = convert_table(order(source, tmp_path / "to", pack_bytes=20_000, workers=2))
    assert table["id"].to_list() == source["id"].to_list()
    shards = table["path"].unique()
    assert len(shards) > 2
    # Mixed: a shard holds utterances of more than one speaker.
    assert table.group_by("path").agg(pl.col("speaker").n_unique())["speaker"].max() > 1  # type: ignore[operator]
    first = tmp_path / "to" / shards.sort()[0]
    before = first.stat().st_mtime_ns
    (tmp_path / "to" / shards.sort()[-1]).unlink()  # as if it had been killed before the last one
    again, _ = convert_table(order(source, tmp_path / "to", pack_bytes=20_000))
    assert first.stat().st_mtime_ns == before
    assert again.rows() == table.rows()
    for path, offset, size, old in zip(again["path"], again["offset"], again["bytes"], source["path"], strict=True):
        wave = audio.read(tmp_path / "to" / path, part=(offset, size))
        np.testing.assert_array_equal(wave, audio.read(old))


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    source = corpus(tmp_path / "from", speakers=1)
    convert_table(order(source, tmp_path / "to"))
    trimmed = Conversion("wav", RATE, False, False, 40.0)
    with pytest.raises(UserError, match=r"holds a conversion with trim_db=None, and now it is 40\.0; choose another"):
        convert_table(order(source, tmp_path / "to", conversion=trimmed))


def test_bad_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = corpus(tmp_path / "from")
    bad = source["path"][3]
    Path(bad).write_bytes(Path(bad).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"1\.wav: .*data\.on_error=skip leaves it out; what is converted is kept"):
        convert_table(order(source, tmp_path / "to"))
    table, facts = convert_table(order(source, tmp_path / "to", on_error="skip"))
    assert table["id"].to_list() == [name for name in source["id"] if name != source["id"][3]]
    assert [(entry["id"], entry["path"]) for entry in facts["broken"]] == [(source["id"][3], bad)]
    assert f"skipped {source['id'][3]}: {bad}" in caplog.text
    assert json.loads((tmp_path / "to/prepare.json").read_text())["broken"] == facts["broken"]
    with pytest.raises(UserError, match=r"1 of 6 files cannot be used, more than data\.max_bad_fraction=0\.1"):
        convert_table(order(source, tmp_path / "to", on_error="skip", max_bad_fraction=0.1))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source = corpus(tmp_path / "from", speakers=1)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot be written: .*choose another folder with output="):
        convert_table(order(source, tmp_path / "file" / "to"))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "wav").write_text("no folder either")
    with pytest.raises(UserError, match=r"0\.wav: cannot be written: .*make room, or choose"):
        convert_table(order(source, tmp_path / "to"))


def test_audio_that_was_there_before_is_not_taken_for_converted(tmp_path: Path) -> None:
    source = corpus(tmp_path / "from", speakers=1)
    for name in ("wav/u0/0.wav", "flac/x.flac", "shard-000000.tar"):
        output = tmp_path / name.partition(".")[0].replace("/", "-")
        (output / name).parent.mkdir(parents=True)
        (output / name).write_bytes(b"of another")
        with pytest.raises(UserError, match=r"is there already, and not by a conversion .*choose another folder"):
            convert_table(order(source, output))
        assert (output / name).read_bytes() == b"of another"


def test_what_changed_since_is_converted_again(tmp_path: Path) -> None:
    source = corpus(tmp_path / "from", speakers=1)
    convert_table(order(source, tmp_path / "to"))
    convert_table(order(source, tmp_path / "packed", pack_bytes=100_000))
    changed = Path(source["path"][1])
    soundfile.write(changed, integers(900, seed=7), RATE, subtype="PCM_16")
    later = time.time_ns() + 10**10
    os.utime(changed, ns=(later, later))
    kept = (tmp_path / "to/wav/u0/0.wav").stat().st_mtime_ns
    table, _ = convert_table(order(source, tmp_path / "to"))
    assert table["duration"].to_list() == [0.1, 900 / RATE]
    np.testing.assert_array_equal(audio.read(tmp_path / "to" / table["path"][1]), audio.read(changed))
    assert (tmp_path / "to/wav/u0/0.wav").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match=r"1\.wav: changed after it went into .*shard-000000\.tar.*remove that shard"):
        convert_table(order(source, tmp_path / "packed", pack_bytes=100_000))
    changed.unlink()  # what is gone has not changed
    assert len(convert_table(order(source, tmp_path / "packed", pack_bytes=100_000))[0]) == 2


@pytest.mark.parametrize("pack_bytes", [None, 10_000])
def test_losses_are_told_again_by_the_second_call(tmp_path: Path, pack_bytes: int | None) -> None:
    source = corpus(tmp_path / "from", speakers=1)
    soundfile.write(source["path"][0], np.full(800, 1.5, np.float32), RATE, subtype="FLOAT")
    before = {"id": "x", "path": "x.wav", "reason": "x.wav: the file is empty"}
    work = order(source, tmp_path / "to", pack_bytes=pack_bytes, left_out=[before])
    facts = [convert_table(work)[1] for _ in range(2)]
    assert [(fact["clipped"], fact["broken"]) for fact in facts] == [(1, [before])] * 2
    assert (tmp_path / "to/clipped.txt").read_text() == f"{source['id'][0]}\n"


def test_two_ids_of_one_file_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"1 and spk/1 would both be written to wav/spk/1\.wav; rename one"):
        file_names(pl.DataFrame({"id": ["1", "x", "spk/1"], "speaker": ["spk", "spk", "spk"]}), "wav")
    assert file_names(pl.DataFrame({"id": ["a//b", "a/b", "a/%/b"]}), "wav") == [
        "wav/a/%/b.wav",
        "wav/a/b.wav",
        "wav/a/%25/b.wav",
    ]


def test_file_names_stay_below_the_folder_and_apart() -> None:
    ids = ["a/../../x", "/abs/x", "a/%2E%2E/x", "plain", "spk/1", "ü ber/é", "..."]
    table = pl.DataFrame({"id": ids, "speaker": ["s/t", "..", "s", None, "spk", "ü", "s"]})
    names = file_names(table, "wav")
    assert len(set(names)) == len(names)
    for name in names:
        assert os.path.normpath(name) == name.replace("//", "/")
        assert name.startswith("wav/")
    assert names[3:6] == ["wav/plain.wav", "wav/spk/1.wav", "wav/ü/ü ber/é.wav"]


SCRIPT = """
import sys
from pathlib import Path
import polars as pl
from spkexp.data.convert import Conversion
from spkexp.data.converted import Order, convert_table
if __name__ == "__main__":
    convert_table(Order(pl.read_parquet(sys.argv[1]), {"corpus": "x"}, Conversion("wav", 16000, False, False, None),
                        Path(sys.argv[2]), None, 2, "raise", 0.0))
"""


def test_killed_half_way_it_goes_on(tmp_path: Path) -> None:
    flac = tmp_path / "x.flac"
    soundfile.write(flac, integers(RATE), RATE)
    rows = [(f"u{i:04d}", str(flac), 1.0, f"s{i % 5}") for i in range(2000)]
    source = pl.DataFrame(rows, schema=["id", "path", "duration", "speaker"], orient="row")
    source.write_parquet(tmp_path / "source.parquet")
    (tmp_path / "script.py").write_text(SCRIPT)
    output = tmp_path / "to"
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "source.parquet"), str(output)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONPATH": "."})
    while len(list(output.glob("wav/*/*.wav"))) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the workers end with it
    before = {path: path.stat().st_mtime_ns for path in output.glob("wav/*/*.wav")}
    assert 20 <= len(before) < 2000
    time.sleep(0.3)
    assert len(list(output.glob("wav/*/*.wav"))) == len(before)
    assert not (output / "manifest.parquet").exists()
    table, _ = convert_table(order(source, output))
    assert len(table) == 2000
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert {audio.info(output / path).frames for path in table["path"]} == {RATE}
    assert not (output / ".partial").exists()
