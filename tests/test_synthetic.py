"""The synthetic voices: what is heard is what was asked for, and the cache survives kills and races."""

import os
import signal
import subprocess
import sys
import time
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from spkexp.counter import generator
from spkexp.data.corpora.synthetic import VERSION, Synthetic, utterance
from spkexp.data.recording import Recording, draw_recording, record
from spkexp.data.synthetic import Manner, draw_manner, draw_voice, speak
from spkexp.errors import UserError

SMALL = {
    "train_speakers": 2,
    "val_speakers": 1,
    "test_speakers": 2,
    "train_utterances": 3,
    "eval_utterances": 4,
    "sessions": 2,
    "seconds": [0.6, 1.2],
    "seed": 0,
}
NEUTRAL = Manner(pitch=1.0, rate=1.0, effort=1.0)
LOG_MEL_CENTRES = np.geomspace(150, 6500, 40)


def read(path: str) -> np.ndarray:
    with wave.open(path) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def log_spectrum(samples: np.ndarray, centres: np.ndarray, width: float) -> np.ndarray:
    """(frames, centres) natural log of the power in bands of relative `width`; 64 ms frames, half overlapped."""
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), 1024)[::512]
    power = np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2
    frequency = np.fft.rfftfreq(1024, 1 / 16000)
    bands = np.exp(-0.5 * (np.log(np.maximum(frequency, 1) / centres[:, None]) / width) ** 2)
    return np.log(power @ bands.T + 1e-12)


def run(folder: Path, code: str = "") -> subprocess.Popen:
    """Another process that makes the corpus of SMALL with 60 utterances more."""
    program = (
        "import sys, time, logging; from pathlib import Path; logging.basicConfig(level=20)\n"
        "from spkexp.data.corpora.synthetic import Synthetic\n"
        f"{code}\n"
        f"print(Synthetic(**{SMALL | {'train_speakers': 22}!r}).table(Path({str(folder)!r})).write_csv())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return Synthetic(**SMALL).table(tmp_path_factory.mktemp("corpus"))


def test_an_utterance_depends_on_its_counter_alone(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    # Later splits move up when there are more test speakers, so only the number of training speakers is changed.
    more = Synthetic(**SMALL | {"train_speakers": 3, "train_utterances": 5}).table(tmp_path)
    both = corpus.join(more, on="id", suffix="_more")
    assert len(both) == len(corpus) < len(more)
    for first, second in both.select("path", "path_more").iter_rows():
        assert Path(first).read_bytes() == Path(second).read_bytes()
    other = Synthetic(**SMALL | {"seed": 1}).table(tmp_path)
    assert Path(other["path"][0]).read_bytes() != Path(corpus["path"][0]).read_bytes()


def test_the_manifest_tells_the_truth(corpus):
    assert corpus.columns == ["id", "path", "duration", "speaker", "session", "split"]
    assert dict(corpus.group_by("split").len().iter_rows()) == {"train": 6, "val": 4, "test": 8}
    assert corpus.group_by("speaker").agg(pl.col("split").n_unique())["split"].max() == 1
    assert corpus["speaker"].n_unique() == 5
    assert corpus.group_by("speaker").agg(pl.col("session").n_unique())["session"].to_list() == [2] * 5
    assert corpus["id"][0] == "voice0001-s1-01"
    assert corpus["duration"].n_unique() > 10
    for path, duration in corpus.select("path", "duration").iter_rows():
        samples = read(path)
        assert len(samples) == round(duration * 16000)
        assert 0.6 <= duration <= 1.2
        assert np.max(np.abs(samples.astype(int))) <= 0.951 * 32767
        level = 10 * np.log10(np.mean((samples / 32768.0) ** 2))
        assert -42 < level < -16
        assert abs(np.mean(samples)) < 0.05 * np.std(samples)


def test_the_manifest_can_be_moved(corpus):
    folder = Path(corpus["path"][0]).parent.parent
    raw = pl.read_csv(folder / "manifest.csv")
    assert raw["path"][0] == "{data_root}/voice0001/voice0001-s1-01.wav"
    assert {str(folder / p.removeprefix("{data_root}/")) for p in raw["path"]} == set(corpus["path"])


@pytest.mark.parametrize("pitch", [95.0, 240.0])
def test_measured_pitch_is_the_voices_times_the_manners(pitch):
    voice = replace(draw_voice(generator(0, 1, 0, 0, 0)), pitch_hz=pitch, liveliness=1.0)

    def measure(manner: Manner) -> float:
        speech = speak(voice, manner, 48000, generator(5, 5, 5, 5, 5))
        found = []
        for start in range(0, len(speech) - 1024, 512):
            frame = speech[start : start + 1024] * np.hanning(1024)
            correlation = np.fft.irfft(np.abs(np.fft.rfft(frame, 4096)) ** 2)[:400]
            window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(1024), 4096)) ** 2)[:400]
            correlation = correlation / window * window[0] / max(correlation[0], 1e-9)
            lag = 40 + int(np.argmax(correlation[40:267]))  # 60 to 400 Hz
            if correlation[lag] > 0.8:
                # The shortest lag that is nearly as good: a multiple of the period is as periodic as the period.
                peaks = [
                    k
                    for k in range(40, lag + 1)
                    if correlation[k] > 0.93 * correlation[lag] and correlation[k] == max(correlation[k - 3 : k + 4])
                ]
                found.append(16000 / peaks[0])
        assert len(found) > 20
        return float(np.median(found))

    plain = measure(NEUTRAL)
    # An utterance's own offset has a deviation of 5 %, the melody spans 3 semitones.
    assert plain == pytest.approx(pitch, rel=0.15)
    assert measure(replace(NEUTRAL, pitch=1.25)) == pytest.approx(1.25 * plain, rel=0.04)


def test_a_shorter_tract_moves_the_envelope_up_by_the_ratio_of_lengths():
    voice = replace(draw_voice(generator(0, 1, 0, 0, 0)), pitch_hz=90.0, breath=0.3, return_hz=4000.0)
    voice = replace(voice, piriform_zero=7500.0)  # out of the way: it is the one thing that does not scale
    step, most = 0.01, 45  # of the log-frequency axis
    centres = np.exp(np.arange(np.log(500), np.log(4000), step))

    def envelope(tract_cm: float) -> np.ndarray:
        speech = speak(replace(voice, tract_cm=tract_cm), NEUTRAL, 96000, generator(3, 3, 3, 3, 3))
        return log_spectrum(speech, centres, 0.12)

    long = envelope(17.5)
    loud = long.max(axis=1) > long.max() - 4
    for tract_cm in (16.0, 14.0, 13.0):
        short = envelope(tract_cm)  # of the same syllables at the same times
        scores = []
        for shift in range(most):
            pair = long[loud, :-most], short[loud, shift : shift - most]
            # Differences along frequency: formants, not the tilt and level of the source
            a, b = (np.diff(spectrum[:, ::5], axis=1).ravel() for spectrum in pair)
            scores.append(np.corrcoef(a, b)[0, 1])
        assert max(scores) > 0.9
        assert step * np.argmax(scores) == pytest.approx(np.log(17.5 / tract_cm), abs=0.02)


def test_a_recording_has_the_noise_the_room_and_the_band_it_says():
    room = np.zeros(800)
    room[0] = 1.0
    clean = Recording(room=room, snr_db=90, noise_tilt=0, low_hz=1, high_hz=1e6, ripple_db=np.zeros(12), level_db=-30)
    n = np.arange(32000)
    tone = np.sin(2 * np.pi * 1000 / 16000 * n)
    stored = record(tone, clean, np.random.default_rng(0)) / 32768.0
    assert np.corrcoef(stored, tone)[0, 1] > 0.9999
    assert 10 * np.log10(np.mean(stored**2)) == pytest.approx(-30, abs=4)
    noisy = record(tone, replace(clean, snr_db=10.0), np.random.default_rng(0))
    explained = np.corrcoef(noisy, tone)[0, 1] ** 2
    assert 10 * np.log10(explained / (1 - explained)) == pytest.approx(10, abs=0.3)
    hiss = np.random.default_rng(1).standard_normal(64000)
    narrow = record(hiss, replace(clean, high_hz=3000.0), np.random.default_rng(0))
    power = np.abs(np.fft.rfft(narrow)) ** 2
    band = [10 * np.log10(np.mean(power[4 * f - 400 : 4 * f + 400])) for f in (1000, 3000, 6000)]
    assert band[0] - band[1] == pytest.approx(3.0, abs=0.6)  # the corner
    assert band[0] - band[2] == pytest.approx(24.1, abs=1.0)  # an octave up at fourth order: 10 log10(1 + 2^8)
    late = room.copy()
    late[160] = 0.5
    echo = record(hiss, replace(clean, room=late), np.random.default_rng(0)).astype(float)
    assert np.mean(echo[160:] * echo[:-160]) / np.mean(echo**2) == pytest.approx(0.5 / 1.25, abs=0.02)


def test_sessions_hide_the_speaker_from_a_mean_spectrum_and_clean_speech_does_not():
    """A task, not a toy: what tells voices apart with no recording between is mostly lost over sessions."""

    def nearest_is_same_speaker(recorded: bool) -> float:
        means, speakers = [], []
        for speaker in range(1, 17):
            voice = draw_voice(generator(7, speaker, 0, 0, 0))
            for session in (1, 2):
                shared = generator(7, speaker, session, 0, 0)
                manner, recording = draw_manner(shared), draw_recording(shared)
                rng = generator(7, speaker, session, 1, 0)
                samples = speak(voice, manner, 32000, rng)
                samples = record(samples, recording, rng) / 32768.0 if recorded else samples
                mean = log_spectrum(samples, LOG_MEL_CENTRES, 0.1).mean(axis=0)
                means.append(mean - mean.mean())
                speakers.append(speaker)
        x, label = np.array(means), np.array(speakers)
        distance = np.sum((x[:, None] - x[None]) ** 2, axis=2) + 1e9 * np.eye(len(x))
        return float(np.mean(label[np.argmin(distance, axis=1)] == label))

    # The only other utterance of the speaker is of the other session; chance is 1 in 31.
    clean, recorded = nearest_is_same_speaker(False), nearest_is_same_speaker(True)
    assert clean > 0.3
    assert recorded < 0.6 * clean


def test_the_voices_are_those_of_this_version():
    """If this fails because the voices were changed on purpose: raise VERSION, then the figures here."""
    samples = utterance(0, 1, 1, 1, 24000).astype(np.float64)
    bands = log_spectrum(samples, np.array([300.0, 1200.0, 4000.0]), 0.2).mean(axis=0)
    assert VERSION == 1
    assert np.std(samples) == pytest.approx(1642.899, rel=1e-3)
    np.testing.assert_allclose(bands, [24.5986, 22.1847, 21.3477], atol=5e-3)


def test_a_kill_half_way_leaves_nothing_that_looks_whole(tmp_path):
    process = run(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob(".voices-*/*/*.wav"))) > 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    assert not (left / "manifest.csv").exists()

    Synthetic(**SMALL).table(tmp_path)
    assert left.exists()  # it may be another process's work
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    table = Synthetic(**SMALL | {"train_speakers": 22}).table(tmp_path)
    assert not left.exists()
    assert len(table) == 78


def test_two_processes_at_once_share_one_corpus(tmp_path):
    here = tmp_path / "signals"
    here.mkdir()
    wait = f"import os; here = Path({str(here)!r}); (here / f'ready{{os.getpid()}}').touch()\n"
    wait += "while not (here / 'go').exists(): time.sleep(0.001)"
    root = tmp_path / "root"
    processes = [run(root, wait) for _ in range(2)]
    wait_for(lambda: len(list(here.glob("ready*"))) == 2)
    (here / "go").touch()
    tables, logs = zip(*(process.communicate(timeout=60) for process in processes), strict=True)
    assert [process.returncode for process in processes] == [0, 0], logs
    assert tables[0] == tables[1]
    assert tables[0].count("\n") > 78
    assert sum("another process was faster" in text for text in logs) == 1
    (folder,) = root.iterdir()
    assert len(list(folder.glob("*/*.wav"))) == 78


def test_the_cache_is_used_again_only_for_the_same_settings(corpus):
    folder = Path(corpus["path"][0]).parent.parent
    made = (folder / "manifest.csv").stat().st_mtime_ns
    again = Synthetic(**SMALL).table(folder.parent)
    assert again.equals(corpus)
    assert (folder / "manifest.csv").stat().st_mtime_ns == made
    other = Synthetic(**SMALL | {"sessions": 1}).table(folder.parent)
    assert Path(other["path"][0]).parent.parent != folder
    assert other["session"].n_unique() == 5


def test_a_damaged_cache_is_named(tmp_path):
    table = Synthetic(**SMALL).table(tmp_path)
    victim = Path(table["path"][3])
    victim.write_bytes(victim.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"{victim}: missing or cut short; remove {victim.parent.parent}"):
        Synthetic(**SMALL).table(tmp_path)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/below: cannot hold the synthetic voices: .*data\.root="):
        Synthetic(**SMALL).table(tmp_path / "file" / "below")


@pytest.mark.parametrize("seconds", [[2.0], [3.0, 2.0], [0.1, 2.0]])
def test_impossible_lengths_are_refused(seconds):
    with pytest.raises(UserError, match=r"data\.corpus\.seconds"):
        Synthetic(**SMALL | {"seconds": seconds})
