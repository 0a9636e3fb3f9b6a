"""Conversations mixed from voices, with who speaks when."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator, item_keys, uniform
from spkexp.data import audio
from spkexp.data.recording import draw_recording, record
from spkexp.data.rttm import Segment
from spkexp.data.synthetic import draw_manner, draw_voice, speak

RATE = 16_000
Wave = NDArray[np.float32]
# Streams of `counter.uniform`: who speaks next, whether and how long there is a pause before, how long the turn is.
WHO, PAUSE, LENGTH = range(3)


class Conversation(NamedTuple):
    wave: Wave
    turns: list[Segment]  # that do not overlap


def mixed(
    speakers: Sequence[str], say: Callable[[str, int], Wave], turns: int, seed: int, noise_db: float | None = -60.0
) -> Conversation:
    """Turns of `speakers` as `say` gives them, of (speaker, number of the turn); nobody follows himself.

    One turn in three begins as the one before it ends, the others 0.2 to 1.2 s later, in which there is white noise of
    `noise_db` (re full scale), as under all the rest; None: digital silence.
    """
    keys = item_keys(seed, 0, np.arange(turns))
    who, pause = uniform(keys, WHO), uniform(keys, PAUSE)
    pieces, found, now, last = [np.zeros(RATE // 2, dtype=np.float32)], list[Segment](), RATE // 2, ""
    for number in range(turns):
        others = [name for name in speakers if name != last] or speakers
        last = others[int(who[number] * len(others))]
        silence = 0 if pause[number] < 1 / 3 else round((0.2 + 1.5 * (pause[number] - 1 / 3)) * RATE)
        wave = say(last, number)
        pieces += [np.zeros(silence, dtype=np.float32), wave]
        start = now + silence
        now = start + len(wave)
        found.append(Segment("mixed", start / RATE, now / RATE, last))
    whole = np.concatenate([*pieces, np.zeros(RATE // 2, dtype=np.float32)])
    if noise_db is not None:
        whole = whole + 10 ** (noise_db / 20) * generator(seed, 1).standard_normal(len(whole))
    return Conversation(whole.astype(np.float32), found)


def synthetic(voices: Sequence[int], turns: int, seed: int, seconds: tuple[float, float] = (1.5, 5.0)) -> Conversation:
    """Voices of the built-in corpus by their numbers (1 to 20 are its test split) in one room, at one microphone.

    Their levels differ by up to 3 dB, their turns are `seconds` long.
    """
    lengths = seconds[0] + (seconds[1] - seconds[0]) * uniform(item_keys(seed, 1, np.arange(turns)), LENGTH)

    def say(name: str, number: int) -> Wave:
        voice = int(name)
        person, manner = draw_voice(generator(0, voice, 0, 0, 0)), draw_manner(generator(seed, voice, 2))
        level = 10 ** (generator(seed, voice, 3).uniform(-1.5, 1.5) / 20)
        wave = level * speak(person, manner, round(lengths[number] * RATE), generator(seed, voice, 4, number))
        return wave.astype(np.float32)

    dry = mixed([str(voice) for voice in voices], say, turns, seed, noise_db=None)
    heard = record(dry.wave.astype(np.float64), draw_recording(generator(seed, 5)), generator(seed, 6))
    return Conversation(heard.astype(np.float32) / np.float32(32768), dry.turns)


def real(folder: Path, speakers: Sequence[str], turns: int, seed: int) -> Conversation:
    """Utterances of LibriSpeech's test-other, ten of each speaker, in turn; the edges of each without its pauses."""
    files = {name: sorted((folder / "LibriSpeech/test-other" / name).rglob("*.flac")) for name in speakers}

    def say(name: str, number: int) -> Wave:
        return trimmed(audio.read(files[name][(seed + number) % len(files[name])]))

    return mixed(speakers, say, turns, seed)


def trimmed(wave: Wave) -> Wave:
    """Without what comes before the first, and after the last, 20 ms with a peak of 5 % of the whole's."""
    peaks = np.abs(wave[: len(wave) // 320 * 320]).reshape(-1, 320).max(axis=1)
    loud = np.flatnonzero(peaks > 0.05 * peaks.max())
    return wave[loud[0] * 320 : (loud[-1] + 1) * 320]
