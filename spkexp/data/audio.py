"""Read audio: any file in, mono float32 at one sample rate out, and never fewer samples than asked for.

A file may lie inside another, as a member of a tar shard: `part` is then its (offset, bytes) in `path`.
16-bit wav, the format that training reads by the million, costs one open and two preads a crop, in a shard too.
Nothing but the descriptors of shards is kept between calls.
"""

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import soxr

from spkexp.data.decoders import Decoder, open_decoder
from spkexp.data.part import Part
from spkexp.errors import AudioError

log = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
# What the resampler must see on either side of a crop to give the samples that the whole file would give:
# its filter is shorter than this. Measured: 20 ms suffice for 1e-6 from 8 kHz.
RESAMPLE_MARGIN_SECONDS = 0.05
# Decoded, that are held at once: 18 hours at 16 kHz. A header, or a flac of silence, says more in a few bytes.
MAX_SAMPLES = 1 << 30


class AudioInfo(NamedTuple):
    """What a header says. `sample_rate` in Hz; `frames` are samples a channel at that rate."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate

    def frames_at(self, sample_rate: int) -> int:
        """How many samples `read` finds in this file at `sample_rate` (Hz)."""
        return -(-self.frames * sample_rate // self.sample_rate)


def info(path: str | os.PathLike[str], part: Part | None = None) -> AudioInfo:
    """Sample rate (Hz), channels and frames of an audio file, from its header.

    Raises AudioError if the file is missing, unreadable, empty, not audio, or a wav file with fewer samples
    than its header promises. A FLAC or MP3 file that breaks off is only found out by reading it. A bare
    AAC stream, or a FLAC file whose writer did not know its length, has to be decoded.
    """
    decoder = open_decoder(os.fspath(path), part)
    try:
        return AudioInfo(decoder.sample_rate, decoder.channels, decoder.frames)
    finally:
        decoder.close()


def read(
    path: str | os.PathLike[str],
    start: int = 0,
    frames: int | None = None,
    *,
    part: Part | None = None,
    sample_rate: int = SAMPLE_RATE,
    resample: bool = False,
    mix_channels: bool = False,
) -> np.ndarray:
    """Samples `start` to `start + frames` of a file as mono float32, shape (frames,), full scale 1.

    `start` and `frames` count samples at `sample_rate` (Hz), the rate of the output; `frames` None reads to
    the end. `resample` allows another rate in the file, `mix_channels` another channel count, which is
    averaged. A crop holds the samples that the same stretch of the whole file would (Opus, whose decoder never
    forgets, only to about 1e-3).

    Raises AudioError, which names the file, if it cannot be used: missing, unreadable, not audio, truncated,
    NaN or infinite samples, a rate or channel count that is not allowed, or fewer samples than asked for.
    """
    path = os.fspath(path)
    if start < 0 or (frames is not None and frames < 1):
        raise ValueError(f"{path}: start must be >= 0 and frames >= 1, got start={start}, frames={frames}")
    decoder = open_decoder(path, part)
    try:
        total = _total_frames(decoder, sample_rate, resample, mix_channels)
        stop = total if frames is None else start + frames
        return _read(decoder, start, stop, total, sample_rate)
    finally:
        decoder.close()


def read_crop(
    path: str | os.PathLike[str],
    frames: int,
    position: float,
    *,
    part: Part | None = None,
    segment: tuple[int, int] | None = None,
    sample_rate: int = SAMPLE_RATE,
    resample: bool = False,
    mix_channels: bool = False,
) -> np.ndarray:
    """A stretch of `frames` samples, or all there are where the file holds fewer; mono float32 as from `read`.

    `position` in [0, 1) chooses among all places where the stretch fits; the file's own length decides, not that of
    a manifest. `segment` (first sample, one past the last) keeps to a stretch of the file. Raises AudioError as `read`.
    """
    decoder = open_decoder(os.fspath(path), part)
    try:
        total = _total_frames(decoder, sample_rate, resample, mix_channels)
        first, last = segment or (0, total)
        start = first + int(position * max(1, last - first - frames + 1))
        return _read(decoder, start, min(start + frames, last), total, sample_rate)
    finally:
        decoder.close()


def _total_frames(decoder: Decoder, sample_rate: int, resample: bool, mix_channels: bool) -> int:
    """Samples of the file at `sample_rate`. Raises AudioError where its rate or channels are not allowed."""
    rate = decoder.sample_rate
    if rate != sample_rate and not resample:
        raise AudioError(
            f"{decoder.name}: sampled at {rate} Hz, expected {sample_rate} Hz; set data.resample=true to resample it"
        )
    if decoder.channels != 1 and not mix_channels:
        raise AudioError(
            f"{decoder.name}: {decoder.channels} channels, expected 1; set data.mix_channels=true to average them"
        )
    return decoder.frames if rate == sample_rate else -(-decoder.frames * sample_rate // rate)


def _read(decoder: Decoder, start: int, stop: int, total: int, sample_rate: int) -> np.ndarray:
    if stop > total or start >= total:
        raise AudioError(
            f"{decoder.name}: samples {start} to {stop} asked for, but it has {total} at {sample_rate} Hz; "
            f"do the durations of the manifest belong to this file?"
        )
    count = (stop - start) * max(decoder.sample_rate / sample_rate * decoder.channels, 1.0)
    if count > MAX_SAMPLES:
        raise AudioError(
            f"{decoder.name}: {stop - start:,} samples of {decoder.channels} channels are too many to read at once; "
            "cut it, or give segments of it"
        )
    try:
        if decoder.sample_rate == sample_rate:
            return _mono(decoder.read(start, stop - start))
        return _read_resampled(decoder, start, stop, sample_rate)
    except MemoryError:
        raise AudioError(f"{decoder.name}: there is no memory for {count:,.0f} samples") from None


def durations(paths: Sequence[str], threads: int = 8) -> list[float | None]:
    """Length in seconds of each file, from its header; None, and a line in the log, for a broken one."""

    def chunk(some: Sequence[str]) -> list[float | None]:
        found: list[float | None] = []
        for path in some:
            try:
                found.append(info(path).duration)
            except AudioError as error:
                log.warning("no duration: %s", error)
                found.append(None)
        return found

    # Threads hide the latency of the disk. 256 files a task: a task costs more than a header.
    chunks = [paths[i : i + 256] for i in range(0, len(paths), 256)]
    with ThreadPoolExecutor(threads) as pool:
        return [duration for found in pool.map(chunk, chunks) for duration in found]


def _mono(wave: np.ndarray) -> np.ndarray:
    return wave if wave.ndim == 1 else wave.mean(axis=1, dtype=np.float32)


def _read_resampled(decoder: Decoder, start: int, stop: int, sample_rate: int) -> np.ndarray:
    """Output samples `start` to `stop`. Input and output instants coincide every `down` input and `up` output
    samples: decoding begins at such an instant, a margin ahead of the crop."""
    rate = decoder.sample_rate
    divisor = math.gcd(rate, sample_rate)
    up, down = sample_rate // divisor, rate // divisor
    margin = math.ceil(RESAMPLE_MARGIN_SECONDS * rate)
    period = max(0, start // up - math.ceil(margin / down))
    first = period * down
    last = min(decoder.frames, -(-stop * down // up) + margin)
    wave = _mono(decoder.read(first, last - first))
    if last == decoder.frames:
        # Past its end a signal is zero; soxr rounds the number of samples, and may leave out the last one.
        wave = np.pad(wave, (0, down // up + 1))
    begin = start - period * up
    return soxr.resample(wave, rate, sample_rate)[begin : begin + stop - start].copy()
