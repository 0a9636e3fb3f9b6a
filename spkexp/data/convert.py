"""One utterance from any audio file to 16-bit wav or flac: resampled, mixed to mono, trimmed."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile

from spkexp.data import audio
from spkexp.data.files import whole
from spkexp.data.part import Part
from spkexp.errors import AudioError

TRIM_FRAME_SECONDS = 0.01
REMEDY = "make room, or choose another folder with output=…"


@dataclass(frozen=True)
class Conversion:
    """What becomes of each utterance. sample_rate in Hz; trim_db: see `trim`, None keeps everything."""

    format: Literal["wav", "flac"]
    sample_rate: int
    resample: bool
    mix_channels: bool
    trim_db: float | None


class Utterance(NamedTuple):
    """Where the audio of a row lies. `segment` (first sample, number of samples) where it is a part of a file."""

    path: str
    part: Part | None
    segment: tuple[int, int] | None


class Outcome(NamedTuple):
    """What came of an utterance: its samples, or why there are none; `data` is the file, unless that was written."""

    frames: int
    clipped: bool
    error: str | None
    data: bytes | None


def convert(utterance: Utterance, conversion: Conversion) -> Outcome:
    """The utterance as the bytes of a file. Raises AudioError."""
    start, frames = utterance.segment or (0, None)
    wave = audio.read(
        utterance.path,
        start,
        frames,
        part=utterance.part,
        sample_rate=conversion.sample_rate,
        resample=conversion.resample,
        mix_channels=conversion.mix_channels,
    )
    if conversion.trim_db is not None:
        wave = trim(wave, conversion.sample_rate, conversion.trim_db)
    samples, clipped = to_16_bit(wave)
    file = io.BytesIO()
    soundfile.write(file, samples, conversion.sample_rate, format=conversion.format.upper(), subtype="PCM_16")
    return Outcome(len(samples), clipped, None, file.getvalue())


def convert_to_files(
    utterances: list[Utterance], targets: list[Path], temporary: Path, conversion: Conversion
) -> list[Outcome]:
    """Write each utterance to its target; what is there already is kept, unless its source is newer. Raises UserError
    for the disk's faults.

    A file is written in `temporary` and renamed, so that one which has its name is whole.
    """
    return [
        _existing(utterance, target) or _to_file(utterance, target, temporary, conversion)
        for utterance, target in zip(utterances, targets, strict=True)
    ]


def convert_to_bytes(utterances: list[Utterance], conversion: Conversion) -> list[Outcome]:
    """Each utterance as the bytes of a file."""
    return [_convert(utterance, conversion) for utterance in utterances]


def trim(wave: np.ndarray, sample_rate: int, below_db: float) -> np.ndarray:
    """`wave` (samples,) without its silence at either end.

    A level is the mean square of a frame of 10 ms, and the frames kept are those from the first to the last whose
    level is at most `below_db` dB below that of the loudest. Digital silence throughout is returned as it is.
    """
    length = round(TRIM_FRAME_SECONDS * sample_rate)
    starts = np.arange(0, len(wave), length)
    level = np.add.reduceat(wave.astype(np.float64) ** 2, starts) / np.diff([*starts, len(wave)])
    loud = np.flatnonzero((level >= level.max() * 10 ** (-below_db / 10)) & (level > 0))
    return wave[starts[loud[0]] : starts[loud[-1]] + length] if len(loud) else wave


def to_16_bit(wave: np.ndarray) -> tuple[np.ndarray, bool]:
    """(int16 samples of `wave` with full scale 1, whether some lay beyond it and were clipped).

    The scale is 2^15, as the decoders divide: what was 16-bit comes back bit for bit.
    """
    samples = np.rint(wave * np.float32(32768))
    clipped = bool((samples > 32768).any() or (samples < -32768).any())
    return np.clip(samples, -32768, 32767).astype(np.int16), clipped


def is_newer(source: str, target: Path) -> bool:
    """Whether `source` changed after `target` was made of it; no, where it is gone."""
    try:
        return os.stat(source).st_mtime_ns > target.stat().st_mtime_ns
    except OSError:
        return False


def _existing(utterance: Utterance, target: Path) -> Outcome | None:
    """What an earlier call left; None also for a file that a crash of the machine left empty."""
    if not target.exists() or is_newer(utterance.path, target):
        return None
    try:
        return Outcome(audio.info(target).frames, False, None, None)
    except AudioError:
        return None


def _to_file(utterance: Utterance, target: Path, temporary: Path, conversion: Conversion) -> Outcome:
    outcome = _convert(utterance, conversion)
    if outcome.data is None:
        return outcome
    with whole(target, temporary, REMEDY) as partial:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(outcome.data)
    return outcome._replace(data=None)


def _convert(utterance: Utterance, conversion: Conversion) -> Outcome:
    try:
        return convert(utterance, conversion)
    except AudioError as error:
        return Outcome(0, False, str(error), None)
