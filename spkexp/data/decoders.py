"""One decoder a container: 16-bit PCM wav by itself, what libsndfile knows by soundfile, the rest by PyAV.

`open_decoder` looks at the first bytes of a file, never at its name. A decoder knows `sample_rate`,
`channels` and `frames`, and `read(start, frames)` returns exactly those frames or raises AudioError.
It belongs to one thread and one call; nothing is kept between calls.
"""

import os
import stat
from fractions import Fraction
from typing import Literal, Protocol

import av
import numpy as np
import soundfile

from spkexp.data.wave import PcmDecoder, wave_header
from spkexp.errors import AudioError

# As many bytes as hold every common header: one read serves the recognition and the chunk walk.
HEAD_BYTES = 4096
# An MP3 frame borrows bits from the ones before it, an AAC frame overlaps its neighbour: after a seek the
# first samples are wrong, so decoding starts this many frames early.
MP3_PREROLL = 12_000
AAC_PREROLL = 4096


class Decoder(Protocol):
    """An open file. `read` gives float32 in [-1, 1]: (frames,) of a mono file, else (frames, channels)."""

    sample_rate: int
    channels: int
    frames: int

    def read(self, start: int, frames: int) -> np.ndarray: ...

    def close(self) -> None: ...


def open_decoder(path: str) -> Decoder:
    """Open `path` with the decoder that its first bytes ask for. The caller closes it.

    Raises AudioError if the file is missing, unreadable, empty, truncated or not audio.
    """
    try:
        # Without O_NONBLOCK a named pipe would hang here.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; check data.root and the paths of the manifest") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        decoder = _recognise(path, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise AudioError(f"{path}: cannot be read: {error.strerror}") from None
    except BaseException:
        os.close(descriptor)
        raise
    if decoder.frames <= 0:
        decoder.close()
        raise AudioError(f"{path}: holds no samples")
    return decoder


def _recognise(path: str, descriptor: int) -> Decoder:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise AudioError(f"{path}: is {kind}, where an audio file is expected")
    if status.st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    head = os.pread(descriptor, HEAD_BYTES, 0)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        header = wave_header(path, descriptor, status.st_size, head)
        if header.frames == 0:
            raise AudioError(f"{path}: holds no samples")
        if header.frames is not None and header.pcm16:
            return PcmDecoder(path, descriptor, header.sample_rate, header.channels, header.frames, header.offset)
        return SoundFileDecoder(path, descriptor, "wave", head)
    if head[:4] == b"fLaC":
        return SoundFileDecoder(path, descriptor, "flac", head)
    # ISO media (m4a, mp4), EBML (webm, mkv), bare AAC
    if head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3" or _is_adts(head):
        return AvDecoder(path, descriptor)
    return SoundFileDecoder(path, descriptor, "unknown", head)


def flac_info(head: bytes) -> tuple[int, int, int] | None:
    """Sample rate, channels and frames from a FLAC file's first bytes; None where they do not say.

    STREAMINFO is always the first block and holds rate (20 bits), channels - 1 (3), bits - 1 (5) and total
    samples (36) from byte 18 (RFC 9639, section 8.2). A total of 0 means that the writer did not know it.
    """
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F != 0:
        return None
    packed = int.from_bytes(head[18:26], "big")
    rate, channels, frames = packed >> 44, (packed >> 41 & 0x7) + 1, packed & 0xFFFFFFFFF
    return (rate, channels, frames) if rate and frames else None


class _ForwardSoundFile(soundfile.SoundFile):
    """A SoundFile that is read once. soundfile repositions a seekable file before and after every read, and
    each of these seeks decodes a FLAC frame: 12 % of the time of a 2-s crop."""

    def seekable(self) -> bool:
        return False


class SoundFileDecoder:
    """What libsndfile decodes: FLAC, Ogg Vorbis, Opus, MP3, AIFF, wav that is not 16-bit PCM.

    Of a FLAC file the header is enough until samples are asked for.
    """

    __slots__ = ("_descriptor", "_file", "_kind", "_path", "channels", "frames", "sample_rate")

    def __init__(self, path: str, descriptor: int, kind: Literal["flac", "wave", "unknown"], head: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._kind = kind
        self._file: _ForwardSoundFile | None = None
        known = flac_info(head)
        if known is not None:
            self.sample_rate, self.channels, self.frames = known
            return
        file = self._open(head)
        self.sample_rate, self.channels, self.frames = file.samplerate, file.channels, file.frames
        if self.frames >= 2**62:  # a stream whose writer did not know its length
            self.frames = self._count(file)

    def _open(self, head: bytes = b"") -> _ForwardSoundFile:
        if self._file is None:
            try:
                self._file = _ForwardSoundFile(self._descriptor, closefd=False)
            except soundfile.LibsndfileError as error:
                begins = f"; it begins with {head[:12]!r}" if head else ""
                raise AudioError(f"{self._path}: not readable as audio: {_reason(error)}{begins}") from None
        return self._file

    def _count(self, file: _ForwardSoundFile) -> int:
        total = 0
        try:
            while count := len(file.read(1 << 16, dtype="float32")):
                total += count
            file.seek(0)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self._path}: broken after {total} frames: {_reason(error)}") from None
        return total

    def read(self, start: int, frames: int) -> np.ndarray:
        file = self._open()
        preroll = min(start, MP3_PREROLL) if self._kind == "unknown" and file.format == "MP3" else 0
        try:
            if start > preroll:
                file.seek(start - preroll)
            wave: np.ndarray = file.read(preroll + frames, dtype="float32")[preroll:]
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{self._path}: truncated or corrupt: samples {start} to {start + frames} of {self.frames} "
                f"do not decode: {_reason(error)}"
            ) from None
        if len(wave) != frames:
            raise AudioError(
                f"{self._path}: truncated: its header promises {self.frames} samples a channel, but only "
                f"{start + len(wave)} decode"
            )
        # FLAC holds integers.
        if self._kind != "flac" and not np.isfinite(wave).all():
            raise AudioError(f"{self._path}: holds NaN or infinite samples")
        return wave

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        os.close(self._descriptor)


class AvDecoder:
    """The first audio stream of an m4a, mp4, aac, webm or mkv file, by PyAV (FFmpeg)."""

    __slots__ = (
        "_container",
        "_descriptor",
        "_path",
        "_stream",
        "_ticks_are_samples",
        "channels",
        "frames",
        "sample_rate",
    )

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        try:
            # 'file:' keeps FFmpeg from taking a colon in the path for a protocol.
            self._container = av.open(f"file:{path}")
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"{path}: not readable as audio: {error}") from None
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError(f"{path}: holds no audio stream")
        stream = self._container.streams.audio[0]
        stream.codec_context.thread_count = 1
        self._stream = stream
        self.sample_rate: int = stream.sample_rate
        self.channels: int = stream.channels
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
                self._container = av.open(f"file:{path}")
                self._stream = self._container.streams.audio[0]
            except av.FFmpegError as error:
                raise AudioError(f"{path}: truncated or corrupt: {error}") from None

    def read(self, start: int, frames: int) -> np.ndarray:
        try:
            first, blocks = self._decode(start, start + frames)
        except av.FFmpegError as error:
            raise AudioError(f"{self._path}: truncated or corrupt: {error}") from None
        wave = np.concatenate(blocks, axis=1)[:, start - first :][:, :frames] if blocks else np.empty((1, 0))
        if first > start or wave.shape[1] != frames:
            raise AudioError(
                f"{self._path}: truncated: samples {start} to {start + frames} of {self.frames} do not decode"
            )
        if not np.isfinite(wave).all():
            raise AudioError(f"{self._path}: holds NaN or infinite samples")
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
            count += frame.samples
            blocks += [part.to_ndarray() for part in planar.resample(frame)]
            if first + count >= stop:
                break
        return first or 0, blocks

    def close(self) -> None:
        self._container.close()
        os.close(self._descriptor)


def _is_adts(head: bytes) -> bool:
    """Whether a bare AAC stream begins here: 12 sync bits, then the two layer bits 0 (MP3 has them set)."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.rstrip(".").removeprefix("Error : ")
