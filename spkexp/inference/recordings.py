"""What people give to a model: files and arrays, one or many; and how they become batches."""

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.cores import cores
from spkexp.data import audio
from spkexp.data.part import OF_A_MANIFEST
from spkexp.errors import AudioError

log = logging.getLogger(__name__)

Wave = NDArray[np.float32]
# A file, or samples in [-1, 1]: (samples,) of any floating type, or int16, of which 32768 is full scale.
Recording = str | os.PathLike[str] | NDArray[Any] | Tensor
# Several: of any mixture, or samples (N, samples), a recording a row.
Recordings = Recording | Iterable[Recording]

# No recording of speech is that short: an array of such rows holds channels side by side.
_SHORTEST_ROW = 0.01  # s
_MAX_READERS = 8
_TOO_LOUD = 16.0  # 24 dB above full scale, which no recording in floating point is
_INT16 = 32768  # full scale
_MEANINGLESS = 0.1  # s: less than a syllable


class Opened(NamedTuple):
    """A recording of which the length is known and nothing is read yet."""

    name: str  # for messages
    samples: int  # at the model's rate
    read: Callable[[], Wave]  # mono, at the model's rate; raises AudioError


def is_one(recordings: Recordings) -> bool:
    """Whether it is a single recording, not several."""
    return isinstance(recordings, str | os.PathLike) or (
        isinstance(recordings, np.ndarray | Tensor) and recordings.ndim == 1
    )


class Reader:
    """Opens recordings for a model of `sample_rate` (Hz). May be used by several threads at once.

    resample, mix_channels: whether files of another rate are resampled and channels averaged, or refused. That it was
    done is logged once for each rate and number of channels.
    """

    def __init__(self, sample_rate: int, resample: bool, mix_channels: bool) -> None:
        self.sample_rate, self.resample, self.mix_channels = sample_rate, resample, mix_channels
        self._told: set[tuple[str, int]] = set()
        self._lock = Lock()

    def open(
        self, recordings: Recordings, lengths: Sequence[int] | NDArray[Any] | Tensor | None, sample_rate: int | None
    ) -> list[Opened]:
        """A list of one where `is_one`.

        lengths: samples of each row of an array (N, samples), what lies behind is not heard; None: all.
        sample_rate: of the arrays, Hz; None: the model's. Raises AudioError for files, ValueError and TypeError for
        everything else.
        """
        if sample_rate is not None:
            if not 1 <= sample_rate < math.inf or sample_rate != int(sample_rate):
                raise ValueError(f"sample_rate={sample_rate}: expected a whole number of Hz")
            sample_rate = int(sample_rate)
        if not is_one(recordings):
            several = self._rows(recordings, lengths, sample_rate)
        elif lengths is None:
            several = [recordings]
        else:
            raise ValueError("lengths are of the rows of an array (N, samples), not of a single recording")
        are_files = [isinstance(one, str | os.PathLike) for one in several]
        if sample_rate is not None and several and all(are_files):
            raise ValueError("sample_rate is of arrays; a file says its own")
        if sum(are_files) < 2:
            return [self._open(one, sample_rate) for one in several]
        # Threads hide the latency of the disk, as in audio.durations.
        with ThreadPoolExecutor(_MAX_READERS) as pool:
            return list(pool.map(lambda one: self._open(one, sample_rate), several))

    def _rows(self, recordings: Any, lengths: Any, sample_rate: int | None) -> list[Any]:
        if not isinstance(recordings, np.ndarray | Tensor):
            if isinstance(recordings, bytes | dict) or not isinstance(recordings, Iterable):
                raise TypeError(
                    f"a recording is a path or an array of samples, several are a list of them; got {_kind(recordings)}"
                )
            if lengths is not None:
                raise ValueError("lengths are of the rows of an array (N, samples); in a list each has its own")
            return list(recordings)
        if recordings.ndim != 2:
            raise ValueError(
                f"samples of shape {tuple(recordings.shape)}: expected (samples,) of one recording or (N, samples) of N"
            )
        count, width = recordings.shape
        if count and width < _SHORTEST_ROW * (sample_rate or self.sample_rate):
            raise ValueError(
                f"samples of shape {(count, width)}: each row is a recording, and these would have {width} samples; of "
                "an array (samples, channels) give the mean: wave.mean(axis=1)"
            )
        if lengths is None:
            return list(recordings)
        counts = [int(length) for length in lengths]
        if len(counts) != count or not all(1 <= length <= width for length in counts):
            raise ValueError(f"lengths: expected one of 1 to {width} samples for each of the {count} rows")
        return [row[:length] for row, length in zip(recordings, counts, strict=True)]

    def _open(self, recording: Any, sample_rate: int | None) -> Opened:
        if isinstance(recording, str | os.PathLike):
            return self._open_file(os.path.expanduser(os.fspath(recording)))
        wave = _samples(recording)
        if (peak := float(np.abs(wave).max())) > _TOO_LOUD and self._first("peak", 0):
            log.warning("samples reach %g, and full scale is 1: divide integers by their own (said once)", peak)
        rate = sample_rate or self.sample_rate
        if rate == self.sample_rate:
            return Opened("samples", len(wave), lambda: wave)
        if not self.resample:
            raise ValueError(f"samples at {rate} Hz, not {self.sample_rate}; load(…, resample=True) resamples them")
        self._tell_resampled("samples", rate)
        samples = -(-len(wave) * self.sample_rate // rate)
        return Opened("samples", samples, lambda: _resampled(wave, rate, self.sample_rate))

    def _open_file(self, path: str) -> Opened:
        try:
            found = audio.info(path)
        except AudioError as error:
            raise AudioError(str(error).removesuffix(OF_A_MANIFEST)) from error.__cause__
        if found.sample_rate != self.sample_rate:
            if not self.resample:
                raise AudioError(
                    f"{path}: sampled at {found.sample_rate} Hz, expected {self.sample_rate} Hz; "
                    "load(…, resample=True) resamples it"
                )
            self._tell_resampled(path, found.sample_rate)
        if found.channels != 1:
            if not self.mix_channels:
                raise AudioError(
                    f"{path}: {found.channels} channels, expected 1; load(…, mix_channels=True) averages them"
                )
            if self._first("channels", found.channels):
                log.info("%s: its %d channels are averaged (said once)", path, found.channels)
        return Opened(
            path,
            found.frames_at(self.sample_rate),
            lambda: audio.read(path, sample_rate=self.sample_rate, resample=True, mix_channels=True),
        )

    def _tell_resampled(self, what: str, rate: int) -> None:
        if not self._first("rate", rate):
            return
        if rate < self.sample_rate:
            log.warning(
                "%s: resampled from %d to %d Hz, and holds nothing above %d Hz, where the model listens, too: expect "
                "worse scores, unless it was trained on such recordings (said once)",
                *(what, rate, self.sample_rate, rate // 2),
            )
        else:
            log.info("%s: resampled from %d to %d Hz (said once)", what, rate, self.sample_rate)

    def _first(self, kind: str, value: int) -> bool:
        """Whether this was not told before."""
        with self._lock:
            new = (kind, value) not in self._told
            self._told.add((kind, value))
        return new


def _samples(recording: Any) -> Wave:
    """(samples,) float32 of an array or tensor. Raises ValueError and TypeError."""
    if isinstance(recording, Tensor):
        recording = recording.detach().cpu()
        recording = (recording.float() if recording.is_floating_point() else recording).numpy()
    if not isinstance(recording, np.ndarray):
        raise TypeError(f"a recording is a path or an array of samples, got {_kind(recording)}")
    if recording.ndim != 1:
        raise ValueError(
            f"samples of shape {recording.shape}: one recording is (samples,); of channels give the mean, of an array "
            "(1, samples) its row"
        )
    if recording.size == 0:
        raise ValueError("the recording holds no samples")
    if recording.dtype.kind == "i" and recording.dtype.itemsize == 2:  # of either byte order
        return recording.astype(np.float32) / np.float32(_INT16)
    if recording.dtype.kind != "f":
        raise TypeError(
            f"samples of type {recording.dtype}: expected floating point in [-1, 1], or int16; divide by the full scale"
        )
    wave = np.ascontiguousarray(recording, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise ValueError("the recording holds NaN or infinite samples")
    return wave


def _resampled(wave: Wave, rate: int, wanted: int) -> Wave:
    """`wave` at another rate (Hz), as audio.read gives it of a file: as many samples as last as long, rounded up."""
    past_the_end = np.zeros(rate // math.gcd(rate, wanted) + 1, dtype=np.float32)  # soxr may leave out the last sample
    return soxr.resample(np.concatenate([wave, past_the_end]), rate, wanted)[: -(-len(wave) * wanted // rate)].copy()


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def padded_batches(
    opened: Sequence[Opened], batches: Sequence[Sequence[int]], pin: bool
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """(waveform (B, samples), lengths (B,)) of each of `batches`, which are indices of `opened`.

    While one is worked on the next two are being read. pin: in memory from which a GPU fetches by itself.
    """
    if len(opened) == 1:  # no threads for what somebody waits for
        yield _padded([opened[0].read()], pin)
        return
    waiting: deque[list[Future[Wave]]] = deque()
    with ThreadPoolExecutor(min(_MAX_READERS, cores() + 1), thread_name_prefix="spkexp-read") as pool:
        try:
            for batch in batches:
                waiting.append([pool.submit(opened[item].read) for item in batch])
                if len(waiting) > 2:
                    yield _padded([one.result() for one in waiting.popleft()], pin)
            while waiting:
                yield _padded([one.result() for one in waiting.popleft()], pin)
        finally:  # also where a file cannot be read, or the caller breaks off
            pool.shutdown(wait=False, cancel_futures=True)


def warn_of_unheard(opened: Sequence[Opened], silent: Sequence[int], sample_rate: int) -> None:
    """Say once of all `opened` which have no voice in them to speak of: the model embeds them like any other.

    silent: indices of those that are digital silence; sample_rate: of the model, Hz.
    """
    short = [number for number, one in enumerate(opened) if one.samples < _MEANINGLESS * sample_rate]
    for found, words in (
        (sorted(silent), "digital silence: its embedding means nothing"),
        (short, "too short for its embedding to mean anything"),
    ):
        if found:
            name, samples, _ = opened[found[0]]
            others = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
            log.warning("%s: %.3g s: %s%s", name, samples / sample_rate, words, others)


def _padded(waves: Sequence[Wave], pin: bool) -> tuple[Tensor, Tensor]:
    lengths = [len(wave) for wave in waves]
    waveform = torch.zeros(len(waves), max(lengths), pin_memory=pin)
    for row, wave in zip(waveform.numpy(), waves, strict=True):
        row[: len(wave)] = wave
    return waveform, torch.tensor(lengths)
