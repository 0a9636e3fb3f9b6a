"""One decoder a container: 16-bit PCM wav by itself, what libsndfile knows by soundfile, the rest by PyAV.

`open_decoder` looks at the first bytes of a file, never at its name. A decoder knows `sample_rate`, `channels`,
`frames` and the `name` of its file for errors; `read(start, frames)` returns exactly those frames or raises AudioError.
It belongs to one thread and one call; nothing is kept between calls.
"""

import io
import os
import stat
from typing import Literal, Protocol

import numpy as np
import soundfile

from spkexp.data.ffmpeg import AvDecoder
from spkexp.data.part import Part, Window, open_file, open_shard
from spkexp.data.wave import PcmDecoder, wave_header
from spkexp.errors import AudioError

# As many bytes as hold every common header: one read serves the recognition and the chunk walk.
HEAD_BYTES = 4096
# An MP3 frame borrows bits from the ones before it: after a seek the first samples are wrong, so decoding starts
# this many frames early.
MP3_PREROLL = 12_000
# Inside a shard, a file up to this size is read at once and decoded from memory: one request to a network
# filesystem instead of several, and fewer calls back from the decoder.
WHOLE_BYTES = 1 << 20
# Hz, and channels, of what can be a recording of speech: at 1 Hz, a second would become 16,000 times as long.
MIN_RATE, MAX_RATE, MAX_CHANNELS = 1_000, 1_000_000, 1_024


class Decoder(Protocol):
    """An open file. `read` gives float32 in [-1, 1]: (frames,) of a mono file, else (frames, channels)."""

    name: str
    sample_rate: int
    channels: int
    frames: int

    def read(self, start: int, frames: int) -> np.ndarray: ...

    def close(self) -> None: ...


def open_decoder(path: str, part: Part | None = None) -> Decoder:
    """Open `path`, or the audio file that is the byte range `part` of it, with the decoder that its first bytes ask
    for. The caller closes it.

    Raises AudioError if the file is missing, unreadable, empty, truncated or not audio.
    """
    if part is None:
        name, descriptor = path, open_file(path)
    else:
        name, descriptor = f"{path}[{part[0]}:{part[0] + part[1]}]", open_shard(path)
    try:
        decoder = _recognise(path, name, descriptor, part)
    except OSError as error:
        os.close(descriptor)
        raise AudioError(f"{name}: cannot be read: {error.strerror}") from None
    except BaseException:
        os.close(descriptor)
        raise
    wrong = _implausible(decoder)
    if wrong is not None:
        decoder.close()
        raise AudioError(f"{name}: {wrong}")
    return decoder


def _implausible(decoder: Decoder) -> str | None:
    """What of a header cannot be, or would ask for memory without end; None: nothing."""
    if decoder.frames <= 0:
        return "holds no samples"
    if not MIN_RATE <= decoder.sample_rate <= MAX_RATE or not 1 <= decoder.channels <= MAX_CHANNELS:
        return f"its header says {decoder.sample_rate} Hz and {decoder.channels} channels, as no recording has"
    return None


def _recognise(path: str, name: str, descriptor: int, part: Part | None) -> Decoder:
    """`name` is what errors call the file: its path, and its place where that is a shard."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise AudioError(f"{path}: is {kind}, where an audio file is expected")
    offset, size = part or (0, status.st_size)
    if part is not None and (offset < 0 or size < 0 or offset + size > status.st_size):
        raise AudioError(
            f"{path}: its bytes {offset} to {offset + size} are asked for, but it ends at {status.st_size}; the shard "
            f"changed since it was indexed: prepare again"
        )
    if size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    head = os.pread(descriptor, min(HEAD_BYTES, size), offset)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        header = wave_header(name, descriptor, offset, size, head)
        if header.frames == 0:
            raise AudioError(f"{name}: holds no samples")
        if header.frames is not None and header.pcm16:
            return PcmDecoder(name, descriptor, header.sample_rate, header.channels, header.frames, header.offset)
        return SoundFileDecoder(name, descriptor, part, "wave", head)
    if head[:4] == b"fLaC":
        return SoundFileDecoder(name, descriptor, part, "flac", head)
    if (demuxer := _of_ffmpeg(head)) is not None:
        # 'file:' keeps FFmpeg from taking a colon in the path for a protocol.
        source = f"file:{path}" if part is None else _file_of(name, descriptor, part)
        return AvDecoder(name, descriptor, source, demuxer)
    return SoundFileDecoder(name, descriptor, part, "unknown", head)


def _file_of(name: str, descriptor: int, part: Part) -> io.BytesIO | Window:
    """The byte range `part` of an open file, as a file."""
    offset, size = part
    if size > WHOLE_BYTES:
        return Window(descriptor, offset, size)
    try:
        return io.BytesIO(os.pread(descriptor, size, offset))
    except OSError as error:
        raise AudioError(f"{name}: cannot be read: {error.strerror}") from None


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

    __slots__ = ("_descriptor", "_file", "_kind", "_part", "channels", "frames", "name", "sample_rate")

    def __init__(
        self, name: str, descriptor: int, part: Part | None, kind: Literal["flac", "wave", "unknown"], head: bytes
    ) -> None:
        self.name = name
        self._descriptor = descriptor
        self._part = part
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
            part = self._part
            source = self._descriptor if part is None else _file_of(self.name, self._descriptor, part)
            try:
                self._file = _ForwardSoundFile(source, closefd=False)
            except soundfile.LibsndfileError as error:
                begins = f"; it begins with {head[:12]!r}" if head else ""
                raise AudioError(f"{self.name}: not readable as audio: {_reason(error)}{begins}") from None
        return self._file

    def _count(self, file: _ForwardSoundFile) -> int:
        total = 0
        try:
            while count := len(file.read(1 << 16, dtype="float32")):
                total += count
            file.seek(0)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.name}: broken after {total} frames: {_reason(error)}") from None
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
                f"{self.name}: truncated or corrupt: samples {start} to {start + frames} of {self.frames} "
                f"do not decode: {_reason(error)}"
            ) from None
        if len(wave) != frames:
            raise AudioError(
                f"{self.name}: truncated: its header promises {self.frames} samples a channel, but only "
                f"{start + len(wave)} decode"
            )
        # FLAC holds integers.
        if self._kind != "flac" and not np.isfinite(wave).all():
            raise AudioError(f"{self.name}: holds NaN or infinite samples")
        return wave

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        os.close(self._descriptor)


def _of_ffmpeg(head: bytes) -> str | None:
    """FFmpeg's demuxer for ISO media (m4a, mp4), EBML (webm, mkv) and bare AAC."""
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "aac" if _is_adts(head) else None


def _is_adts(head: bytes) -> bool:
    """Whether a bare AAC stream begins here: 12 sync bits, then the two layer bits 0 (MP3 has them set)."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.rstrip(".").removeprefix("Error : ")
