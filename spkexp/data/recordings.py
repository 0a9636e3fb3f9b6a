"""Recordings that augmentation draws from: noise, music, voices, impulse responses below a folder.

A bank that fits is decoded once, before the workers are forked, which then share its memory. Of a larger one (MUSAN:
2,016 files, 109 hours) nothing is read but the names; each crop then comes from its file. Either way every choice comes
from the item's key, and a file that turns out to be unusable is replaced by another, drawn from the same key.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

from spkexp import counter
from spkexp.counter import Keys, derived_keys
from spkexp.data.audio import info, read, read_crop
from spkexp.data.corpora.noises import PLACE, matching_files
from spkexp.data.decoders import open_decoder
from spkexp.errors import AudioError
from spkexp.types import NonNegative, PositiveInt

log = logging.getLogger(__name__)

Out = TypeVar("Out")
Wave = NDArray[np.float32]
Bad = list[tuple[str, str]]  # (file, why it could not be used)

# Files that are tried for one item before the folder is given up. With half of them unusable, 10 would fail every
# thousandth item, and 100 none.
ATTEMPTS = 100
# Where no sample passes one step of 16 bits there is nothing to hear, and much to amplify by mistake.
SILENCE = 2.0**-15
LONGEST_RESPONSE_SECONDS = 10.0  # of an impulse response; longer ones are read up to here
THREADS = 8
LOGGED = 5  # unusable files that the log names one by one
FILE, POSITION = range(2)  # streams of an item's key


class _Memory(NamedTuple):
    """Decoded recordings one behind the other: number i is samples[start[i]:start[i + 1]] * step[i]."""

    samples: NDArray[np.int16]
    start: NDArray[np.int64]
    step: NDArray[np.float32]

    def wave(self, number: int, first: int = 0, last: int | None = None) -> Wave:
        begin, end = int(self.start[number]), int(self.start[number + 1])
        last = end if last is None else min(begin + last, end)
        return np.multiply(self.samples[begin + first : last], self.step[number], dtype=np.float32)


class Bank:
    """The audio files of a folder, in memory if they fit. A subclass says how a file becomes a mono signal."""

    place = PLACE
    silent = "silent"  # what is wrong with something drawn in which there is no sound

    takes_own_folder = False  # whether every file of a folder of one's own is meant, whatever `include` says

    def __init__(self, root: str, include: list[str], memory_mb: NonNegative, sample_rate: PositiveInt) -> None:
        """root: the folder. include: patterns of the files' paths below it, `**` for any number of folders.

        memory_mb: a bank that needs no more than this (10^6 bytes; 2 bytes a sample) is held in memory, once for each
        training process and its workers. sample_rate: Hz, of what comes out. Raises UserError without such a folder or
        files, AudioError if no file can be used.
        """
        self.root = os.path.expanduser(root)
        self.sample_rate = sample_rate
        self.bad: Bad = []  # files found unusable at the start
        folder, names = matching_files(self.root, include, self.takes_own_folder)
        self.files = [os.path.join(folder, name) for name in names]
        self.digest = hashlib.blake2b("\0".join(names).encode(), digest_size=16).hexdigest()
        limit = memory_mb * 1e6
        self._memory = None if limit == 0 or self._is_larger(limit) else self._load(limit)
        where = "read by crop" if self._memory is None else f"in memory, {self._memory.samples.nbytes / 1e6:.0f} MB"
        log.info("%s: %d recordings, %s", self.root, len(self.files), where)
        for file, reason in self.bad[:LOGGED]:
            log.warning("left out: %s: %s", file, reason)
        if len(self.bad) > LOGGED:
            log.warning("%s: %d more files left out", self.root, len(self.bad) - LOGGED)

    def _whole(self, path: str) -> Wave:
        """All of a file that is needed, mono. Raises AudioError."""
        raise NotImplementedError

    def _is_larger(self, limit: float) -> bool:
        """Whether the wav files alone clearly need more than `limit` bytes, by their sizes and a few headers.

        A header costs several times what a size does, and of a bank beyond the limit most would be read for nothing.
        """
        wavs = [path for path in self.files if path.lower().endswith(".wav")]
        some = [(path, self._frames(path)) for path in wavs[:: max(1, len(wavs) // 8)]]
        # How much memory a byte of a file needs
        share = min((2 * n / max(1, _size(path)) for path, n in some if not isinstance(n, AudioError)), default=0.0)
        total = 0.0
        with ThreadPoolExecutor(THREADS) as pool:
            for size in _map(pool, _size, wavs if share > 0 else []):
                total += share * size
                if total > 1.1 * limit:
                    return True
        return False

    def _load(self, limit: float) -> _Memory | None:
        """The bank decoded; None if it needs more than `limit` bytes. Headers are read until that is known."""
        with ThreadPoolExecutor(THREADS) as pool:
            total, kept = 0, []
            for path, frames in zip(self.files, _map(pool, self._frames, self.files), strict=True):
                if isinstance(frames, AudioError):
                    self._leave_out(path, frames)
                    continue
                kept.append(path)
                total += 2 * frames
                if total > limit:
                    self.bad = []  # they are named when they are drawn
                    return None
            samples = np.empty(total // 2, dtype=np.int16)
            start, step, self.files = [0], [], []
            for path, packed in zip(kept, _map(pool, self._packed, kept), strict=True):
                if isinstance(packed, AudioError):
                    self._leave_out(path, packed)
                    continue
                wave, scale = packed
                samples[start[-1] : start[-1] + len(wave)] = wave
                start.append(start[-1] + len(wave))
                step.append(scale)
                self.files.append(path)
        if not self.files:
            raise self._nothing(self.bad)
        return _Memory(samples[: start[-1]], np.array(start), np.array(step, dtype=np.float32))

    def _frames(self, path: str) -> int | AudioError:
        try:
            return info(path).frames_at(self.sample_rate)
        except AudioError as error:
            return error

    def _packed(self, path: str) -> tuple[NDArray[np.int16], float] | AudioError:
        """(samples, size of a step): 16-bit audio as it is, other audio in 16 bits of its own peak."""
        try:
            wave = self._whole(path)
            _require_sound(path, wave)
        except AudioError as error:
            return error
        steps = wave * 2.0**15
        if np.abs(steps).max() < 2**15 and np.array_equal(steps, np.rint(steps)):
            return steps.astype(np.int16), 2.0**-15
        step = float(np.abs(wave).max()) / (2**15 - 1)
        return np.rint(wave / step).astype(np.int16), step

    def _draw(self, key: Keys, bad: Bad, get: Callable[[int, float], Wave]) -> Iterator[Wave]:
        """For each of `key` what `get(number of the file, position in [0, 1))` gives, of the first file that can be
        used. Raises AudioError after ATTEMPTS files."""
        numbers, positions = self._choice(key)
        for row, own in enumerate(zip(numbers.tolist(), positions.tolist(), strict=True)):
            failed: Bad = []
            while True:
                path = self.files[own[0]]
                try:
                    wave = get(*own)
                    _require_sound(path, wave, self.silent)
                    break
                except AudioError as error:
                    failed.append((path, _reason(path, error)))
                if len(failed) == ATTEMPTS:
                    raise self._nothing(failed)
                another = self._choice(derived_keys(key[row : row + 1], len(failed)))
                own = (int(another[0][0]), float(another[1][0]))
            bad += failed
            yield wave

    def _choice(self, key: Keys) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return (counter.uniform(key, FILE) * len(self.files)).astype(np.int64), counter.uniform(key, POSITION)

    def _leave_out(self, path: str, error: AudioError) -> None:
        self.bad.append((path, _reason(path, error)))

    def _nothing(self, failed: Bad) -> AudioError:
        path, reason = failed[-1]
        return AudioError(
            f"{self.root}: none of {len(failed)} recordings tried can be used; the last, {path}: {reason}; "
            f"give another folder as {self.place}.root, or remove such files from this one"
        )


class Recordings(Bank):
    """Noise, music or voices for `spkexp.augment.noise`: stretches of files. Several channels are averaged."""

    silent = "the stretch that was drawn is silent"

    def crop(self, key: Keys, samples: int, bad: Bad) -> Wave:
        """(n, samples) a stretch of a recording for each of `key`; a recording shorter than that is repeated.

        Unusable files go to `bad`, others take their place. Raises AudioError if ATTEMPTS in a row are unusable.
        """

        def get(number: int, position: float) -> Wave:
            if self._memory is not None:
                total = int(self._memory.start[number + 1] - self._memory.start[number])
                first = int(position * max(1, total - samples + 1))
                return self._memory.wave(number, first, first + samples)
            path = self.files[number]
            return read_crop(path, samples, position, sample_rate=self.sample_rate, resample=True, mix_channels=True)

        result = np.empty((len(key), samples), dtype=np.float32)
        for row, wave in enumerate(self._draw(key, bad, get)):
            result[row] = wave if len(wave) == samples else np.resize(wave, samples)
        return result

    def _whole(self, path: str) -> Wave:
        return read(path, sample_rate=self.sample_rate, resample=True, mix_channels=True)


class ImpulseResponses(Bank):
    """Room impulse responses for `spkexp.augment.reverb`. Of several microphones the first is taken: their mean would
    be a filter of its own."""

    takes_own_folder = True

    def responses(self, key: Keys, seconds: float, bad: Bad) -> list[Wave]:
        """A response (taps,) for each of `key`, whole, up to ten seconds.

        Unusable files go to `bad`, others take their place. Raises AudioError if ATTEMPTS in a row are unusable.
        """

        def get(number: int, position: float) -> Wave:
            return self._whole(self.files[number]) if self._memory is None else self._memory.wave(number)

        return list(self._draw(key, bad, get))

    def _whole(self, path: str) -> Wave:
        decoder = open_decoder(path)
        try:
            wave = decoder.read(0, min(decoder.frames, round(LONGEST_RESPONSE_SECONDS * decoder.sample_rate)))
        finally:
            decoder.close()
        if wave.ndim == 2:
            wave = np.ascontiguousarray(wave[:, 0])
        if decoder.sample_rate != self.sample_rate:
            wave = soxr.resample(wave, decoder.sample_rate, self.sample_rate)
        return wave


def _require_sound(path: str, wave: Wave, otherwise: str = "silent") -> None:
    if not max(wave.max(), -wave.min()) > SILENCE:
        raise AudioError(f"{path}: {otherwise}")


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # it is named when it is read
        return 0


def _reason(path: str, error: AudioError) -> str:
    return str(error).removeprefix(f"{path}: ")


def _map(pool: ThreadPoolExecutor, function: Callable[[str], Out], paths: list[str]) -> Iterator[Out]:
    """`function` of each path, in order, by the threads of `pool`; never more than a few of them ahead."""
    for first in range(0, len(paths), 64):
        yield from pool.map(function, paths[first : first + 64])
