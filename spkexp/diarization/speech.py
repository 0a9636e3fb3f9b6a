"""Where a recording holds speech, told by its level alone."""

import numpy as np
from numpy.typing import NDArray

from spkexp.scoring.sliding import Reader

FRAME_SECONDS = 0.01
SMOOTHED = 3  # frames that a level is the mean of, so that it spans a period of the lowest voice
PIECE_SECONDS = 120.0  # read at once
FLOOR_DB = -96.3  # half a step of 16-bit audio
# A recording whose loud frames stay below this, re full scale, holds no speech: `spkexp.data.levels.SILENT_PEAK`.
SILENT_DB = -60.0
RANGE_DB = 45  # below the loudest frames all is silence, and equally so: digital zeros no more than a quiet room
MARGIN_DB = 12.0  # speech reaches at least this far below its loudest frames
LOUDEST = 99.0  # percentile of the levels
LEAN = 0.25  # towards the quiet, for weak consonants are nearer to silence than to vowels; measured
PAD_SECONDS = 0.05  # on either side: a voice fades in and out below the threshold

Stretch = tuple[float, float]  # (start, end), s


def levels(read: Reader, samples: int, sample_rate: int) -> NDArray[np.float64]:
    """(T,) dB re full scale, one for every FRAME_SECONDS; a rest that fills no frame is left out, unless it is all.

    read: gives samples of the recording, which has so many at `sample_rate` (Hz); it is asked for a piece at a time.
    """
    size = min(round(FRAME_SECONDS * sample_rate), samples)
    last = samples // size * size
    piece = round(PIECE_SECONDS / FRAME_SECONDS) * size
    power = [
        read(first, min(first + piece, last)).reshape(-1, size).var(axis=1, dtype=np.float64)
        for first in range(0, last, piece)
    ]
    smooth = np.pad(np.concatenate(power), SMOOTHED // 2, mode="edge")
    smooth = np.convolve(smooth, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
    return 10 * np.log10(np.maximum(smooth, 10 ** (FLOOR_DB / 10)))


def threshold(level: NDArray[np.float64]) -> float:
    """The level (dB) from which on a frame is speech; infinite for a recording that is silent throughout.

    The frames are parted into quiet and loud ones, two classes of the least spread (Otsu 1979, "A threshold selection
    method from gray-level histograms", IEEE Trans. SMC 9), once all that is RANGE_DB below the loudest is raised to
    that. The threshold is LEAN of the way from the mean of the quiet to that of the loud, and at least MARGIN_DB below
    the loudest. So nearly all is speech where nobody pauses, and also where noise is steady: a level cannot tell them.
    """
    loudest = float(np.percentile(level, LOUDEST))
    if loudest < SILENT_DB:
        return np.inf
    steps = np.arange(RANGE_DB + 1)  # of 1 dB
    counts = np.bincount(
        np.clip(np.round(level - loudest), -RANGE_DB, 0).astype(np.int64) + RANGE_DB, minlength=len(steps)
    )
    quiet, total = np.cumsum(counts), np.cumsum(counts * steps)
    loud = quiet[-1] - quiet
    # Means of both classes, where the quiet are those up to each step
    low, high = total / np.maximum(quiet, 1), (total[-1] - total) / np.maximum(loud, 1)
    split = int(np.argmax(quiet * loud * (high - low) ** 2))
    between = low[split] + LEAN * (high[split] - low[split])
    return loudest - max(RANGE_DB - between, MARGIN_DB)


def stretches(level: NDArray[np.float64], min_speech: float, min_silence: float) -> list[Stretch]:
    """Stretches of speech (s) in frames of these levels; those parted by less than `min_silence` are one.

    What is shorter than `min_speech` is left out. Both in s.
    """
    is_speech = np.concatenate([[False], level >= threshold(level), [False]])
    edges = np.flatnonzero(np.diff(is_speech.astype(np.int8))).reshape(-1, 2) * FRAME_SECONDS
    joined: list[list[float]] = []
    for start, end in edges.tolist():
        if joined and start - joined[-1][1] < min_silence:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    last = len(level) * FRAME_SECONDS
    kept = [(start, end) for start, end in joined if end - start >= min_speech]
    return merged([(max(0.0, start - PAD_SECONDS), min(last, end + PAD_SECONDS)) for start, end in kept])


def merged(some: list[Stretch]) -> list[Stretch]:
    """The same time in order, as stretches of which no two touch."""
    found: list[Stretch] = []
    for start, end in sorted(some):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found
