"""Windows of a recording that slide over it, and the embedding of each: the one way in which windows are cut."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spkexp.data import audio
from spkexp.errors import AudioError, UserError
from spkexp.models.speaker import SpeakerModel

log = logging.getLogger(__name__)

Wave = NDArray[np.float32]
_SAME_STEP = 1e-6  # s: times are multiples of a sample, of which no rate in use has as many a second


class Windows(NamedTuple):
    """Embeddings of N windows of one recording, in the order of their ends."""

    embeddings: NDArray[np.float32]  # (N, D), as the model gives them: not of length one
    start: NDArray[np.float64]  # (N,) s from the beginning of the recording
    end: NDArray[np.float64]  # (N,) s

    def crop(self, start: float, end: float, mode: Literal["loose", "strict", "centre"] = "loose") -> "Windows":
        """The windows that the stretch from `start` to `end` (s) is about, in their order; there may be none.

        loose: those that share more than an instant with it; strict: those that lie in it whole; centre: those whose
        middle lies in it, its end not included, so that no window belongs to two stretches that follow one another.
        """
        if not start < end:
            raise ValueError(f"a stretch from {start} s to {end} s: expected it to end after it starts")
        if mode == "loose":
            chosen = (self.start < end) & (self.end > start)
        elif mode == "strict":
            chosen = (self.start >= start) & (self.end <= end)
        elif mode == "centre":
            middle = (self.start + self.end) / 2
            chosen = (middle >= start) & (middle < end)
        else:
            raise ValueError(f"mode {mode!r}: expected loose, strict or centre")
        return Windows(self.embeddings[chosen], self.start[chosen], self.end[chosen])

    def to_pyannote(self) -> Any:
        """A pyannote.core.SlidingWindowFeature of these windows, which share its memory.

        It has one step for all: a last window that begins earlier than a step behind the one before it, because it ends
        with the recording, is left out, and the log says so. (Of two windows the second is never told to be such a one:
        their distance is the step.) Raises ValueError where others are not evenly apart, as after a crop into several
        parts, and where there is no window; UserError where pyannote.core is not installed.
        """
        try:
            from pyannote.core import SlidingWindow, SlidingWindowFeature
        except ImportError as error:
            raise UserError(f"pyannote.core cannot be imported ({error}); pip install 'spkexp[pyannote]'") from error
        count = len(self.start)
        if count == 0:
            raise ValueError("there are no windows to make a SlidingWindowFeature of")
        duration = float(self.end[0] - self.start[0])
        step = float(self.start[1] - self.start[0]) if count > 1 else duration
        even = np.abs(np.diff(self.start) - step) < _SAME_STEP
        if not even[:-1].all() or (even.size and not even[-1] and self.start[-1] - self.start[-2] > step):
            raise ValueError("the windows are not evenly apart, and a SlidingWindowFeature has one step for all")
        if even.size and not even[-1]:
            count -= 1
            log.info("SlidingWindowFeature: without the last window, which is less than a step behind the one before")
        window = SlidingWindow(duration=duration, step=step, start=float(self.start[0]))
        return SlidingWindowFeature(self.embeddings[:count], window)


def window_starts(samples: int, width: int, step: int) -> NDArray[np.int64]:
    """The first sample of each window of `width` samples, `step` apart, of a recording of `samples`.

    Where windows at multiples of the step leave a rest, one more ends with the recording. A recording that is no longer
    than a window is one window. Raises ValueError for windows that leave gaps, or of nothing.
    """
    if samples < 1 or not 1 <= step <= width:
        raise ValueError(
            f"windows of {width} samples, {step} apart, of {samples}: expected 1 <= step <= window, samples"
        )
    starts = np.arange(0, max(samples - width, 0) + 1, step, dtype=np.int64)
    return starts if starts[-1] + width >= samples else np.append(starts, samples - width)


def window_count(samples: int, width: int, step: int) -> int:
    """How many `window_starts` there are; a matter of no time."""
    return 1 + max(0, -(-(samples - width) // step))


def parse_step(step: str | float, window: float) -> float:
    """Seconds from one window to the next: `step` in seconds, or a share of the window such as "25%".

    Raises UserError where it is neither, or not more than 0 and at most `window` (s).
    """
    text = str(step).strip()
    share = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    seconds = number / 100 * window if share else number
    if not 0 < seconds <= window:
        raise UserError(
            f"step={step}: expected seconds (step=0.1) or a share of the window (step=25%), more than 0 and at most "
            f"the window of {window:g} s"
        )
    return seconds


@contextmanager
def inference(model: SpeakerModel, precision: Literal["fp32", "bf16"]) -> Iterator[None]:
    """Inside, `model` is evaluated, without gradients; what it was before, it is again afterwards.

    precision: bf16 has torch choose what is computed in bfloat16 (autocast); the features never are.
    """
    device = next(model.parameters()).device.type
    was_training = model.training
    if was_training:  # a model that serves several threads is never written to
        model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        if was_training:
            model.train()


def embed_sliding(
    model: SpeakerModel,
    source: str | Path | Wave,
    window: float,
    step: float,
    *,
    segment: tuple[float, float] | None = None,
    batch_seconds: float = 240.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    resample: bool = True,
    mix_channels: bool = True,
) -> Windows:
    """Embeddings of windows of `window` seconds, `step` seconds apart, cut as `window_starts` says.

    source: an audio file, read `batch_seconds` at a time, resampled and its channels averaged as far as `resample` and
    `mix_channels` allow; or samples (T,) float32 in [-1, 1] at model.sample_rate.
    segment: (start, end) in seconds, the stretch of the recording to cut windows from; one that ends behind the
    recording ends with it. Times are from the beginning of the recording all the same.

    At most `batch_seconds` of windows (one at least) go through the model at once. Raises AudioError that names the
    file, also for a segment that the recording does not have, and ValueError for windows that leave gaps.
    """
    rate = model.sample_rate
    width, distance = round(window * rate), round(step * rate)
    name, total, read = reader_of(source, rate, resample, mix_channels)
    first, last = 0, total
    if segment is not None:
        first, last = round(segment[0] * rate), min(round(segment[1] * rate), total)
        if not 0 <= first < last:
            raise AudioError(
                f"{name}: has no segment from {segment[0]:g} s to {segment[1]:g} s; it is {total / rate:.3f} s long"
            )
    starts = first + window_starts(last - first, width, distance)
    width = min(width, last - first)
    device = next(model.parameters()).device
    rows = np.empty((len(starts), model.embedding_size), dtype=np.float32)
    done, ready = 0, torch.empty(0, model.embedding_size)
    with inference(model, precision):
        for batch in _batches(read, starts, width, round(batch_seconds * rate)):
            lengths = torch.full((len(batch),), width, dtype=torch.int64)
            found = model(torch.from_numpy(batch).to(device), lengths).float()
            rows[done : done + len(ready)] = ready.cpu().numpy()  # of the batch before, while a GPU works on this one
            done, ready = done + len(ready), found
        rows[done:] = ready.cpu().numpy()
    return Windows(rows, starts / rate, (starts + width) / rate)


Reader = Callable[[int, int], Wave]  # (first sample, one past the last) -> samples


def reader_of(source: str | Path | Wave, rate: int, resample: bool, mix_channels: bool) -> tuple[str, int, Reader]:
    """(what errors call it, how many samples it has at `rate`, what reads some of them)."""
    if isinstance(source, np.ndarray):
        if source.ndim != 1 or len(source) == 0:
            raise ValueError(f"samples of shape {source.shape}: expected (T,), at least one")
        wave = np.ascontiguousarray(source, dtype=np.float32)
        return "the waveform", len(wave), lambda first, last: wave[first:last]
    path = Path(source).expanduser()

    def read(first: int, last: int) -> Wave:
        return audio.read(path, first, last - first, sample_rate=rate, resample=resample, mix_channels=mix_channels)

    return str(path), audio.info(path).frames_at(rate), read


def _batches(read: Reader, starts: NDArray[np.int64], width: int, room: int) -> Iterator[Wave]:
    """(B, width) windows at `starts`, at most `room` samples of them or one; as much is read at once."""
    at_once = max(1, room // width)
    first = 0
    while first < len(starts):
        reach = int(np.searchsorted(starts, starts[first] + max(room, width) - width, side="right"))
        last = reach if reach == len(starts) else first + max(1, (reach - first) // at_once) * at_once
        begin = int(starts[first])
        wave = read(begin, int(starts[last - 1]) + width)
        for some in range(first, last, at_once):
            yield np.stack([wave[start : start + width] for start in starts[some : min(some + at_once, last)] - begin])
        first = last
