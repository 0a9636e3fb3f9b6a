"""`python -m spkexp.describe`: its numbers against values worked out by hand, and the command as a user meets it."""

import json
import math
import re
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch

from spkexp import __main__, describe
from spkexp.data.levels import MelRange, levels_of, mel_range, sample_rows, signal_to_noise
from spkexp.data.quantiles import quantiles
from spkexp.report.data_page import _edges
from tests.audio_files import RATE
from tests.conftest import Run


@pytest.fixture
def run(run_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(ARGUMENT, …) is `python -m spkexp.describe ARGUMENT …` in the folder `here`."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return partial(run_command, "describe")


def sine(amplitude: float, seconds: float, rate: int = RATE) -> np.ndarray:
    """A whole number of periods of a quarter of the sample rate over 40, with samples at the crests."""
    return (amplitude * np.sin(2 * np.pi * np.arange(round(seconds * rate)) / 160)).astype(np.float32)


def manifest(folder: Path, rows: list[dict[str, Any]], name: str = "my talks.csv") -> str:
    pl.DataFrame(rows).write_csv(folder / name)
    return f"data.manifest='{folder / name}'"


def corpus(folder: Path) -> str:
    """Seven utterances: speakers a (3 utterances of 1, 2 and 3 s) and b (1 of 4 s) in train, c (3 of 1 s) in test."""
    rows = []
    for number, (speaker, seconds, split) in enumerate(
        [("a", 1, "train"), ("a", 2, "train"), ("a", 3, "train"), ("b", 4, "train"), *[("c", 1, "test")] * 3]
    ):
        file = folder / f"é {number}.wav"
        soundfile.write(file, sine(0.5, seconds), RATE, subtype="PCM_16")
        word = "yes" if number % 2 else "no"
        rows.append({"id": str(number), "path": file.name, "speaker": speaker, "split": split, "word": word})
    return manifest(folder, rows)


def found(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    return facts


def png_size(file: Path) -> tuple[int, int]:
    """From the header of the file (ISO/IEC 15948, 11.2.2)."""
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_levels_of_a_sine() -> None:
    levels = levels_of(sine(0.5, 1.0), RATE)
    assert levels.rms_db == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=1e-5)
    assert levels.peak_db == pytest.approx(-6.0206, abs=1e-4)
    assert levels.dc_offset == pytest.approx(0, abs=1e-7)
    assert (levels.samples, levels.at_full_scale, levels.clipped, levels.silent) == (RATE, 0, False, False)
    assert levels.snr_db == pytest.approx(0, abs=0.1)  # every frame has the same level
    shifted = levels_of(sine(0.5, 1.0) + np.float32(0.25), RATE)
    assert shifted.dc_offset == pytest.approx(0.25, abs=1e-6)
    assert shifted.rms_db == pytest.approx(10 * math.log10(0.125 + 0.0625), abs=1e-5)


def test_clipping_takes_three_samples_in_a_row() -> None:
    # |sin(2 pi k / 160)| >= 0.5 at k = 14 to 66 of each half period of 80 (14/160 turns are 31.5 degrees): 53 samples.
    clipped = levels_of(np.clip(sine(2.0, 1.0), -1, 32767 / 32768), RATE)
    assert clipped.at_full_scale == 53 * 200
    assert clipped.clipped
    # At full scale alone the crests are single samples: loud, not clipped.
    loud = levels_of(np.clip(sine(1.0, 1.0), -1, 32767 / 32768), RATE)
    crests = int((np.abs(np.sin(2 * np.pi * np.arange(160) / 160)) >= 32767 / 32768).sum()) * 100
    assert (loud.at_full_scale, loud.clipped) == (crests, False)


def test_silence_has_a_floor() -> None:
    levels = levels_of(np.zeros(RATE, dtype=np.float32), RATE)
    assert (levels.silent, levels.snr_db) == (True, 0.0)
    assert levels.rms_db == levels.peak_db == pytest.approx(20 * math.log10(2**-16))


def test_signal_to_noise() -> None:
    """Half of the frames at 0.5, half at 0.005: 40 dB apart. Too few frames say nothing."""
    wave = np.concatenate([sine(0.5, 1.0), sine(0.005, 1.0)])
    assert signal_to_noise(wave, RATE) == pytest.approx(40, abs=0.2)
    assert math.isnan(signal_to_noise(wave[: 10 * 400 - 1], RATE))
    assert not math.isnan(signal_to_noise(wave[: 10 * 400], RATE))


def test_quantiles() -> None:
    values = quantiles([4.0, 1.0, 3.0, 2.0, 5.0])
    assert values == {
        "min": 1,
        "p01": 1.04,
        "p05": 1.2,
        "p25": 2,
        "median": 3,
        "p75": 4,
        "p95": 4.8,
        "p99": 4.96,
        "max": 5,
        "mean": 3,
    }
    assert quantiles([]) is None


def test_mel_ranges_of_two_utterances() -> None:
    class Two(torch.nn.Module):
        """Two bins: the samples, and twice the samples."""

        def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.stack([waveform, 2 * waveform], dim=1), lengths

    first = mel_range(np.array([1, 2, 3], dtype=np.float32), Two())
    both = first.joined(mel_range(np.array([-4], dtype=np.float32), Two()))
    assert isinstance(both, MelRange)
    assert both.facts() == {
        "min": -8,
        "mean": 0.75,  # of 1 2 3 -4 the mean is 0.5, of the doubles 1
        "max": 6,
        "bins": {"min": [-4, -8], "mean": [0.5, 1], "max": [3, 6]},
    }


def test_a_sample_depends_on_ids_not_on_their_order() -> None:
    table = pl.DataFrame({"id": [f"u{number:03d}" for number in range(200)]})
    drawn = sample_rows(table, 50, 0)
    assert drawn.equals(sample_rows(table.reverse(), 50, 0))
    assert drawn["id"].n_unique() == 50
    assert not drawn.equals(sample_rows(table, 50, 1))
    assert len(sample_rows(table, None, 0)) == len(sample_rows(table, 500, 0)) == 200
    assert len(sample_rows(table, 0, 0)) == 0


@pytest.mark.parametrize(
    "values",
    [
        np.array([3]),
        np.array([2.5]),
        np.array([0.0, 0.0]),
        np.array([1, 2, 2, 41]),
        np.array([1, 45, 30]),
        np.array([1, 3, 7, 10_000]),
        np.array([0, 500]),
        np.array([0.1, 3.0, 1e4]),
        np.random.default_rng(0).lognormal(1, 2, 5000),
        -np.random.default_rng(0).lognormal(1, 2, 5000),
    ],
)
def test_histograms_hold_every_value(values: np.ndarray) -> None:
    edges, _ = _edges(values)
    assert (np.diff(edges) > 0).all()
    assert 3 <= len(edges) <= 45
    assert np.histogram(values, edges)[0].sum() == len(values)


def test_the_numbers_of_a_small_corpus(run: Run, tmp_path: Path) -> None:
    table = corpus(tmp_path)
    cache = f"data.cache_dir='{tmp_path / 'cache'}'"
    done = run("data=manifest", table, cache, "workers=3")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    output = tmp_path / "here" / "description-my talks"
    assert sorted(file.name for file in output.iterdir()) == ["description.json", "description.png"]
    assert png_size(output / "description.png")[0] == 1800
    facts = found(output)
    assert (facts["data"], facts["label"], facts["skipped"]) == ("my talks", "speaker", 0)
    assert facts["speakers_in_several_splits"] == 0
    assert facts["extensions"] == {"wav": 7}
    train, test, whole = facts["splits"]["train"], facts["splits"]["test"], facts["all"]
    assert list(facts["splits"]) == ["train", "test"]
    counts = [
        (group["utterances"], group["speakers"], group["hours"], group["shorter_than_crop"])
        for group in (train, test, whole)
    ]
    # 10 s and 3 s; three of test and one of train are shorter than the crop of 2 s.
    assert counts == [(4, 2, round(10 / 3600, 4), 1), (3, 1, round(3 / 3600, 4), 3), (7, 3, round(13 / 3600, 4), 4)]
    assert (train["seconds"]["min"], train["seconds"]["median"], train["seconds"]["max"]) == (1, 2.5, 4)
    assert (train["utterances_per_class"]["min"], train["utterances_per_class"]["max"]) == (1, 3)
    assert (train["seconds_per_class"]["min"], train["seconds_per_class"]["max"]) == (4, 6)
    sample = facts["sample"]
    assert (sample["utterances"], sample["unreadable"], sample["full_scale_share"]) == (7, 0, 0)
    assert (sample["sample_rates"], sample["channels"]) == ({"16000": 7}, {"1": 7})
    for statistic in ("min", "median", "max"):
        assert sample["rms_db"][statistic] == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=1e-3)
    none, mean = sample["log_mel"]["none"], sample["log_mel"]["mean"]
    assert len(none["bins"]["max"]) == 80
    # A steady tone of 100 Hz: strongest in a bin near it, and constant, so that nothing is left without its mean.
    assert int(np.argmax(none["bins"]["max"])) in range(1, 5)
    assert max(abs(mean["max"]), abs(mean["min"])) < max(none["bins"]["max"]) / 4
    assert abs(mean["mean"]) < 1e-3
    # Another order of rows and one thread: the same to the last digit.
    pl.read_csv(tmp_path / "my talks.csv").reverse().write_csv(tmp_path / "my talks.csv")
    again = run("data=manifest", table, cache, "workers=1", "output=again")
    assert again.code == 0, again.err
    assert found(tmp_path / "here" / "again") == facts


def test_another_label_a_crop_of_whole_utterances_and_no_sample(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out ü"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "description.json").write_text("old")
    arguments = ["data=manifest", corpus(tmp_path), "data.label=word", "data.crop_seconds=null", "sample=0"]
    done = run(*arguments, f"output={output}", f"data.cache_dir='{tmp_path / 'cache'}'")
    assert done.code == 0, done.err
    facts = found(output)
    assert facts["sample"] is None
    # no: utterances 0 2 4 6, of 1 + 3 + 1 + 1 s; yes: 1 3 5, of 2 + 4 + 1 s
    assert (facts["all"]["classes"], facts["all"]["speakers"], facts["all"]["shorter_than_crop"]) == (2, 3, None)
    assert facts["all"]["utterances_per_class"]["min"] == 3
    assert facts["all"]["seconds_per_class"] == quantiles([6.0, 7.0])
    assert re.search(r"train +2 +2 +4 +0\.00\n", done.out)
    assert (output / "notes.txt").read_text() == "mine"
    assert png_size(output / "description.png") == (1800, 600)


def test_one_utterance_without_a_speaker(run: Run, tmp_path: Path) -> None:
    """It cannot be split; 0.1 s of stereo at 8 kHz is measured as it is, for a model without mel features."""
    soundfile.write(tmp_path / "a.flac", np.stack([sine(0.5, 0.1, 8000), sine(0.1, 0.1, 8000)], axis=1), 8000)
    table = manifest(tmp_path, [{"path": "a.flac", "emotion": "joy"}])
    cache = f"data.cache_dir='{tmp_path / 'cache'}'"
    done = run("data=manifest", table, "data.label=emotion", "model=rawnet3", "output=o", cache)
    assert done.code == 0, done.err
    assert "A model of 16000 Hz mono needs data.resample=true and data.mix_channels=true." in " ".join(done.out.split())
    facts = found(tmp_path / "here" / "o")
    assert (facts["all"]["speakers"], facts["all"]["classes"], facts["speakers_in_several_splits"]) == (None, 1, None)
    sample = facts["sample"]
    assert (sample["sample_rates"], sample["channels"], sample["log_mel"]) == ({"8000": 1}, {"2": 1}, {})
    assert sample["peak_db"]["max"] == pytest.approx(20 * math.log10(0.3), abs=1e-3)  # the average of the two
    assert sample["snr_db"] is None


def test_a_test_set_alone_keeps_its_name(run: Run, tmp_path: Path) -> None:
    cache = f"data.cache_dir='{tmp_path / 'cache'}'"
    done = run("data=manifest", corpus(tmp_path), "data.filter=\"speaker = 'c'\"", "sample=0", cache)
    assert done.code == 0, done.err
    assert "not split as for training: data.split: no utterance is left for training" in done.err
    assert list(found(tmp_path / "here" / "description-my talks")["splits"]) == ["test"]


def test_segments_and_a_stretch_of_long_ones(run: Run, tmp_path: Path) -> None:
    """A file at 8 kHz whose first second is at 0.5 and whose second one is at 0.05; rows count samples at 16 kHz."""
    soundfile.write(tmp_path / "a.wav", np.concatenate([sine(0.5, 1, 8000), sine(0.05, 1, 8000)]), 8000)
    rows = [
        {"id": "loud", "path": "a.wav", "speaker": "x", "start": 0, "stop": 16_000},
        {"id": "soft", "path": "a.wav", "speaker": "y", "start": 16_000, "stop": 32_000},
        # 6400.36 samples at 16 kHz are 6401, and these would be 17,642 at 44.1 kHz.
        {"id": "to the end", "path": "b.wav", "speaker": "y", "start": 0, "stop": 6401},
    ]
    soundfile.write(tmp_path / "b.wav", sine(0.2, 1, 44_100)[:17_641], 44_100)
    table, cache = manifest(tmp_path, rows), f"data.cache_dir='{tmp_path / 'cache'}'"
    done = run("data=manifest", table, cache, "data.resample=true", "output=o", "seconds=0.5")
    assert done.code == 0, done.err
    sample = found(tmp_path / "here" / "o")["sample"]
    rms = sorted([sample["rms_db"]["min"], sample["rms_db"]["max"]])
    np.testing.assert_allclose(rms, 20 * np.log10(np.array([0.05, 0.5]) / math.sqrt(2)), atol=0.01)


def test_files_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    table, cache = corpus(tmp_path), f"data.cache_dir='{tmp_path / 'cache'}'"
    assert run("data=manifest", table, cache, "sample=0").code == 0  # durations are known from here on
    broken = tmp_path / "é 3.wav"
    broken.write_bytes(b"no sound at all, but long enough for a header to be looked for in it")
    done = run("data=manifest", table, cache, "output=o")
    assert done.code == 2
    assert f"spkexp: {broken}: not readable as audio" in done.err
    assert "data.on_error=skip leaves such files out" in done.err
    assert not (tmp_path / "here" / "o").exists()
    done = run("data=manifest", table, cache, "output=o", "data.on_error=skip")
    assert done.code == 2
    assert "1 of 7 files cannot be used, more than data.max_bad_fraction=0.01" in done.err
    done = run("data=manifest", table, cache, "output=o", "data.on_error=skip", "data.max_bad_fraction=0.5")
    assert done.code == 0, done.err
    assert f"skipped 3: {broken}" in done.err
    sample = found(tmp_path / "here" / "o")["sample"]
    assert (sample["utterances"], sample["unreadable"]) == (6, 1)


def test_outputs_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    table, cache = corpus(tmp_path), f"data.cache_dir='{tmp_path / 'cache'}'"
    for output in (tmp_path / "file", Path("/proc/nowhere")):
        done = run("data=manifest", table, cache, f"output={output}")
        assert done.code == 2
        assert f"spkexp: {output}: cannot be written: " in done.err
        assert "choose another folder with output=DIR" in done.err
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample=-1"], "sample: must be >= 0, got '-1'"),
        (["sample=some"], "sample: expected an integer, got 'some'"),
        (["seconds=0"], "seconds: must be > 0, got '0'"),
        (["workers=0"], "workers: must be > 0, got '0'"),
        (["output="], "output: is empty; give a value or leave it out"),
        (["samples=3"], "samples: describe takes no 'samples'; did you mean 'sample'?"),
        (["trainer.epochs=3"], "trainer.epochs: describe takes no 'trainer.epochs'"),
        (["data=librispech"], "data=librispech: no such option; did you mean 'librispeech'?"),
        (["data=librispeech"], "data.root: missing; give it as data.root="),
        (["data.crop_second=1"], "did you mean 'crop_seconds'?"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_mistakes_in_the_data(run: Run, tmp_path: Path) -> None:
    table, cache = corpus(tmp_path), f"data.cache_dir='{tmp_path / 'cache'}'"
    done = run("data=manifest", table, cache, "data.label=language")
    assert (done.code, done.out) == (2, "")
    assert "data.label: the table has no column 'language'; it has id, path, speaker" in done.err
    done = run("data=manifest", table, cache, "data.split.by=speaker")
    assert done.code == 2
    assert "data.split.by=speaker: 3 speakers are too few to hold some out" in done.err
    (tmp_path / "empty").mkdir()
    done = run("data=folder", f"data.root='{tmp_path / 'empty'}'", cache)
    assert done.code == 2
    assert list((tmp_path / "here").iterdir()) == []


def test_real_speech(run: Run, shared_data: Path, tmp_path: Path) -> None:
    done = run("data=librispeech", f"data.root={shared_data}/LibriSpeech", f"data.cache_dir='{tmp_path}'", "sample=8")
    assert done.code == 0, done.err
    facts = found(tmp_path / "here" / "description-librispeech")
    assert (facts["all"]["speakers"], facts["all"]["utterances"]) == (125, 170)
    assert facts["splits"]["test"]["utterances_per_class"]["median"] == 10
    assert facts["sample"]["utterances"] == 8
    assert -45 < facts["sample"]["rms_db"]["median"] < -15


def test_the_help_page(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    keys = set(re.findall(r"^  ([a-z_]+)=", done.out, re.MULTILINE))
    assert keys == {"data", "model", *describe.Arguments.model_fields} - {"overrides"}
    assert "describe" in __main__.COMMANDS
