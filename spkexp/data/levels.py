"""Measured on a sample of utterances: how loud and how clean they are, and between what values their mel features lie.

Levels are in dB re full scale: 0 dB is the power of a constant 1, so a sine at full scale has an RMS of -3.01 dB. What
is below half a step of 16-bit audio (-96.3 dB) counts as that. They are those of the file, at its own sample rate; of
several channels, those of their average. Mel features are those of the utterance at the model's sample rate.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from spkexp.bar import Bar
from spkexp.counter import item_keys, uniform
from spkexp.data import audio
from spkexp.data.dataset import Bad
from spkexp.data.quantiles import quantiles
from spkexp.data.utterances import Utterances
from spkexp.errors import AudioError, UserError

log = logging.getLogger(__name__)

FLOOR = 2.0**-16
FULL_SCALE = 32767 / 32768  # the largest value of 16-bit audio
CLIPPED_RUN = 3  # samples in a row at full scale that a limiter or converter leaves, and a loud voice hardly ever
SILENT_PEAK = 1e-3  # -60 dB
FRAME_SECONDS = 0.025
FEWEST_FRAMES = 10  # below a quarter of a second, percentiles of frames say nothing
CHUNK = 16  # utterances that a thread measures at once
# Streams of `counter.uniform`: which utterances, and where the stretch of a long one begins.
CHOICE, PLACE = 0, 1


class MelRange(NamedTuple):
    """Of each of M mel bins over all frames. mean (M,), lowest (M,), highest (M,), in natural logarithms."""

    frames: int
    lowest: NDArray[np.float64]
    mean: NDArray[np.float64]
    highest: NDArray[np.float64]

    def joined(self, other: "MelRange") -> "MelRange":
        frames = self.frames + other.frames
        return MelRange(
            frames,
            np.minimum(self.lowest, other.lowest),
            self.mean + (other.mean - self.mean) * (other.frames / frames),
            np.maximum(self.highest, other.highest),
        )

    def facts(self) -> dict[str, Any]:
        bins = {"min": self.lowest, "mean": self.mean, "max": self.highest}
        return {
            "min": round(float(self.lowest.min()), 4),
            "mean": round(float(self.mean.mean()), 4),
            "max": round(float(self.highest.max()), 4),
            "bins": {name: np.round(values, 4).tolist() for name, values in bins.items()},
        }


class Levels(NamedTuple):
    """Of one utterance; see the top of the file for dB."""

    sample_rate: int  # Hz, of the file
    channels: int
    samples: int
    rms_db: float
    peak_db: float
    dc_offset: float  # mean of the samples, full scale 1
    at_full_scale: int  # samples
    clipped: bool  # CLIPPED_RUN of them in a row
    silent: bool  # no sample beyond SILENT_PEAK
    snr_db: float  # see `signal_to_noise`; NaN for an utterance that is too short


@dataclass
class Sample:
    """What was measured; `bad` utterances could not be read."""

    seed: int
    levels: list[Levels] = field(default_factory=list)
    mel: dict[str, MelRange] = field(default_factory=dict)  # by normalisation
    bad: int = 0

    def column(self, name: str) -> NDArray[np.float64]:
        """One of the fields of Levels, without the NaN."""
        values = np.array([getattr(levels, name) for levels in self.levels], dtype=np.float64)
        return values[~np.isnan(values)]

    def facts(self) -> dict[str, Any]:
        """As JSON holds them."""
        samples = self.column("samples").sum()
        return {
            "seed": self.seed,
            "utterances": len(self.levels),
            "unreadable": self.bad,
            "sample_rates": self._counts("sample_rate"),
            "channels": self._counts("channels"),
            **{name: quantiles(self.column(name)) for name in ("rms_db", "peak_db", "snr_db", "dc_offset")},
            "full_scale_share": float(self.column("at_full_scale").sum() / samples) if samples else None,
            "clipped_utterances": int(self.column("clipped").sum()),
            "silent_utterances": int(self.column("silent").sum()),
            "log_mel": {name: mel.facts() for name, mel in self.mel.items()},
        }

    def _counts(self, name: str) -> dict[str, int]:
        values, counts = np.unique(self.column(name).astype(np.int64), return_counts=True)
        return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


@dataclass(frozen=True)
class Measurement:
    """How a sample is taken. front_ends: log-mel features by what they subtract, none where the model has no mel."""

    sample_rate: int  # Hz, of the front ends
    front_ends: Mapping[str, nn.Module]
    seconds: float  # of a longer utterance a stretch of this length is read
    seed: int
    on_error: str
    max_bad_fraction: float
    workers: int


def sample_rows(table: pl.DataFrame, number: int | None, seed: int) -> pl.DataFrame:
    """`number` rows (None: all), by ascending id: which ones depends on the ids and the seed, not on their order."""
    ordered = table.sort("id")
    if number is None or number >= len(table):
        return ordered
    drawn = uniform(item_keys(seed, 0, np.arange(len(table))), CHOICE)
    return ordered[np.sort(np.argpartition(drawn, number)[:number]) if number else []]


def measure(table: pl.DataFrame, label: str, measurement: Measurement) -> Sample:
    """Read every row of `table`, in threads. Raises UserError for a file that cannot be used, as data.on_error says."""
    utterances, sample = Utterances.of(table, label), Sample(measurement.seed)
    done = 0
    with Bar("utterance", len(utterances)) as bar:
        for chunk in _in_threads(utterances, measurement):
            for found in chunk:
                _count(found, sample, measurement.on_error)
            done += len(chunk)
            bar.update(done, "measuring")
    if sample.bad > measurement.max_bad_fraction * len(table):
        raise UserError(
            f"{sample.bad} of {len(table)} files cannot be used, more than "
            f"data.max_bad_fraction={measurement.max_bad_fraction}"
        )
    return sample


Found = tuple[Levels, dict[str, MelRange]] | Bad


def _count(found: Found, sample: Sample, on_error: str) -> None:
    if isinstance(found, Bad):
        if on_error == "raise":
            raise UserError(f"{found.reason} (data.on_error=skip leaves such files out)")
        log.warning("skipped %s: %s", found.id, found.reason)
        sample.bad += 1
        return
    levels, mels = found
    sample.levels.append(levels)
    for name, mel in mels.items():
        sample.mel[name] = sample.mel[name].joined(mel) if name in sample.mel else mel


def _in_threads(utterances: Utterances, measurement: Measurement) -> Iterator[list[Found]]:
    """Results in order, whatever the number of threads: decoders, numpy and torch let them run side by side."""
    place = uniform(item_keys(measurement.seed, 0, np.arange(len(utterances))), PLACE)

    def chunk(first: int) -> list[Found]:
        found: list[Found] = []
        for item in range(first, min(first + CHUNK, len(utterances))):
            try:
                found.append(_measured(utterances, item, float(place[item]), measurement))
            except AudioError as error:
                found.append(Bad(utterances.id[item], str(error)))
        return found

    # One core each: torch would let every thread have a pool of its own.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(measurement.workers)
    try:
        yield from pool.map(chunk, range(0, len(utterances), CHUNK))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _measured(
    utterances: Utterances, item: int, place: float, measurement: Measurement
) -> tuple[Levels, dict[str, MelRange]]:
    path, part, rate = utterances.path[item], utterances.part_of(item), measurement.sample_rate
    info = audio.info(path, part)
    segment = utterances.segment(item, rate)

    def stretch(sample_rate: int) -> NDArray[np.float32]:
        # A segment counts samples at the model's rate; the file's last sample may fall to either side of its end.
        last = info.frames_at(sample_rate)
        scaled = segment and (segment[0] * sample_rate // rate, min(segment[1] * sample_rate // rate, last))
        frames = max(1, round(measurement.seconds * sample_rate))
        return audio.read_crop(
            path,
            frames,
            place,
            part=part,
            segment=scaled,
            sample_rate=sample_rate,
            resample=True,
            mix_channels=True,
        )

    wave = stretch(info.sample_rate)
    levels = levels_of(wave, info.sample_rate, info.channels)
    if not measurement.front_ends:
        return levels, {}
    heard = wave if info.sample_rate == rate else stretch(rate)
    return levels, {name: mel_range(heard, front_end) for name, front_end in measurement.front_ends.items()}


def levels_of(wave: NDArray[np.float32], sample_rate: int, channels: int = 1) -> Levels:
    """Of a waveform (samples,), full scale 1, that is the average of `channels`."""
    full = np.abs(wave) >= FULL_SCALE
    run = full[2:] & full[1:-1] & full[:-2]
    peak = float(np.abs(wave).max())
    return Levels(
        sample_rate,
        channels,
        len(wave),
        _decibels(math.sqrt(float(np.mean(np.square(wave, dtype=np.float64))))),
        _decibels(peak),
        float(np.mean(wave, dtype=np.float64)),
        int(full.sum()),
        bool(run.any()),
        peak <= SILENT_PEAK,
        signal_to_noise(wave, sample_rate),
    )


def signal_to_noise(wave: NDArray[np.float32], sample_rate: int) -> float:
    """Estimated signal-to-noise ratio, dB: the level that 95 % of the 25-ms frames stay below (speech) minus the level
    that 5 % stay below (pauses). Without pauses it says too little. NaN for fewer than FEWEST_FRAMES.
    """
    size = max(1, round(FRAME_SECONDS * sample_rate))
    count = len(wave) // size
    if count < FEWEST_FRAMES:
        return math.nan
    frames = wave[: count * size].reshape(count, size).astype(np.float64)
    power = np.maximum(np.square(frames - wave.mean(dtype=np.float64)).mean(axis=1), FLOOR**2)
    pauses, speech = np.percentile(10 * np.log10(power), [5, 95])
    return float(speech - pauses)


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, FLOOR))


def mel_range(wave: NDArray[np.float32], front_end: nn.Module) -> MelRange:
    """Of the features (1, M, T) that `front_end` makes of a waveform (samples,)."""
    with torch.inference_mode():
        features, _ = front_end(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        low, high = features[0].aminmax(dim=1)
        mean = features[0].mean(dim=1, dtype=torch.float64)
    return MelRange(features.shape[2], low.double().numpy(), mean.numpy(), high.double().numpy())
