"""The first audio stream of an m4a, mp4, aac, webm or mkv file, by PyAV (FFmpeg)."""

import os
from fractions import Fraction
from io import RawIOBase
from typing import BinaryIO

import av
import numpy as np

from spkexp.errors import AudioError

# An AAC frame overlaps its neighbour: after a seek the first samples are wrong, so decoding starts this many early.
AAC_PREROLL = 4096
# PyAV keeps the planes of so many; a damaged AAC file that said 55 made it read beyond them.
MAX_CHANNELS = 8


class AvDecoder:
    """An open file's decoder, as `spkexp.data.decoders.Decoder` describes it.

    `name` is what errors call the file; `source` is what FFmpeg opens, a URL or a file that can seek; the `descriptor`
    is closed with the decoder. `kind` is the name of FFmpeg's demuxer.
    """

    __slots__ = (
        "_container",
        "_descriptor",
        "_stream",
        "_ticks_are_samples",
        "channels",
        "frames",
        "name",
        "sample_rate",
    )

    def __init__(self, name: str, descriptor: int, source: str | BinaryIO | RawIOBase, kind: str) -> None:
        self.name = name
        self._descriptor = descriptor
        try:
            self._container = _open(source, kind)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"{name}: not readable as audio: {error}") from None
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError(f"{name}: holds no audio stream")
        stream = self._container.streams.audio[0]
        if stream.codec_context is None:
            self._container.close()
            raise AudioError(f"{name}: its audio is coded in a way that FFmpeg does not know")
        stream.codec_context.thread_count = 1
        self._stream = stream
        self.sample_rate: int = stream.sample_rate
        self.channels: int = stream.channels
        if self.channels > MAX_CHANNELS:
            self._container.close()
            raise AudioError(f"{name}: its header says {self.channels} channels; at most {MAX_CHANNELS} are read")
        # Only ISO media count time in samples. Elsewhere FFmpeg guesses (bare AAC) or has milliseconds (webm), so
        # that the length must be counted and a seek would land beside its sample.
        time_base = stream.time_base or Fraction(0)
        self._ticks_are_samples = "mp4" in self._container.format.name and time_base * stream.sample_rate == 1
        if self._ticks_are_samples and stream.duration is not None:
            self.frames = stream.duration
        else:
            try:
                self.frames = sum(frame.samples for frame in self._container.decode(stream))
                self._container.close()
                self._container = _open(source, kind)
                self._stream = self._container.streams.audio[0]
            except av.FFmpegError as error:
                raise AudioError(f"{name}: truncated or corrupt: {error}") from None

    def read(self, start: int, frames: int) -> np.ndarray:
        try:
            first, blocks = self._decode(start, start + frames)
        except av.FFmpegError as error:
            raise AudioError(f"{self.name}: truncated or corrupt: {error}") from None
        wave = np.concatenate(blocks, axis=1)[:, start - first :][:, :frames] if blocks else np.empty((1, 0))
        if first > start or wave.shape[1] != frames:
            raise AudioError(
                f"{self.name}: truncated: samples {start} to {start + frames} of {self.frames} do not decode"
            )
        if not np.isfinite(wave).all():
            raise AudioError(f"{self.name}: holds NaN or infinite samples")
        return wave[0].copy() if self.channels == 1 else wave.T

    def _decode(self, start: int, stop: int) -> tuple[int, list[np.ndarray]]:
        """The index of the first decoded frame, and blocks (channels, frames) up to `stop`."""
        origin = self._stream.start_time or 0
        # From the very beginning the decoder drops the encoder's priming by itself; after a seek to it, not.
        if self._ticks_are_samples and start > 2 * AAC_PREROLL:
            self._container.seek(origin + start - AAC_PREROLL, stream=self._stream)
        planar = av.AudioResampler(format="fltp")
        first: int | None = None
        count = 0
        blocks = []
        for frame in self._container.decode(self._stream):
            if first is None:
                first = (frame.pts or 0) - origin if self._ticks_are_samples else 0
            if frame.layout.nb_channels != self.channels:
                raise AudioError(f"{self.name}: has {self.channels} channels, and later {frame.layout.nb_channels}")
            count += frame.samples
            blocks += [part.to_ndarray() for part in planar.resample(frame)]
            if first + count >= stop:
                break
        return first or 0, blocks

    def close(self) -> None:
        self._container.close()
        os.close(self._descriptor)


def _open(source: str | BinaryIO | RawIOBase, kind: str) -> av.container.InputContainer:
    """By the demuxer `kind` and from files alone: FFmpeg also knows playlists, which name others, and addresses."""
    if not isinstance(source, str):
        source.seek(0)
    return av.open(source, "r", format=kind, options={"protocol_whitelist": "file", "enable_drefs": "0"})
