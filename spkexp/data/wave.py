"""RIFF/WAVE files: the header, and 16-bit PCM samples read straight from the file."""

import os
import struct
from typing import NamedTuple

import numpy as np

from spkexp.errors import AudioError

PCM_SCALE = np.float32(2.0**-15)
# Data sizes that ffmpeg and sox write when they cannot seek back to fill in the header.
UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFF000)
PCM, EXTENSIBLE = 1, 0xFFFE
MAX_CHUNKS = 10_000
# Formats whose every frame has the same number of bytes: PCM, float, A-law, mu-law.
LINEAR = (PCM, 3, 6, 7)


class WaveHeader(NamedTuple):
    """`offset` is the first byte of the samples in the open file. `frames` is None where a frame has no fixed size."""

    pcm16: bool
    sample_rate: int
    channels: int
    frames: int | None
    offset: int


def wave_header(name: str, descriptor: int, base: int, size: int, head: bytes) -> WaveHeader:
    """Walk the chunks of a RIFF/WAVE file up to its samples. It begins with `head` and takes up the `size` bytes
    from `base` on of the open file; `name` is what errors call it.

    Raises AudioError if the header is malformed or promises more samples than the file has.
    """
    position = 12
    layout: tuple[int, int, int, int, int] | None = None
    for _ in range(MAX_CHUNKS):
        chunk = head[position : position + 48]
        if len(chunk) < 48:
            chunk = os.pread(descriptor, min(48, max(0, size - position)), base + position)
        if len(chunk) < 8:
            raise AudioError(f"{name}: truncated: a wav file that ends before its samples ('data' chunk)")
        chunk_name, length = chunk[:4], int.from_bytes(chunk[4:8], "little")
        if chunk_name == b"data":
            break
        if chunk_name == b"fmt " and length >= 16 and len(chunk) >= 24:
            tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", chunk, 8)
            if tag == EXTENSIBLE and length >= 40 and len(chunk) >= 34:
                tag = int.from_bytes(chunk[32:34], "little")  # the first bytes of the sub-format's GUID
            layout = tag, channels, rate, block, bits
        position += 8 + length + length % 2
    else:
        raise AudioError(f"{name}: a wav file with more than {MAX_CHUNKS} chunks before its samples")
    if layout is None:
        raise AudioError(f"{name}: a wav file without a format ('fmt ' chunk) before its samples")
    tag, channels, rate, block, bits = layout
    offset = position + 8
    if tag not in LINEAR or channels < 1 or rate < 1 or block < 1 or block * 8 != channels * bits:
        return WaveHeader(False, rate, channels, None, base + offset)
    available = size - offset
    if length in UNKNOWN_SIZES:
        length = available
    if length > available:
        raise AudioError(
            f"{name}: truncated: its header promises {length // block} samples a channel, but the file ends "
            f"after {available // block}"
        )
    return WaveHeader(tag == PCM and bits == 16, rate, channels, length // block, base + offset)


class PcmDecoder:
    """Interleaved little-endian 16-bit samples from byte `offset` on: one pread a call."""

    __slots__ = ("_descriptor", "_offset", "channels", "frames", "name", "sample_rate")

    def __init__(self, name: str, descriptor: int, sample_rate: int, channels: int, frames: int, offset: int) -> None:
        self.name = name
        self._descriptor = descriptor
        self._offset = offset
        self.sample_rate = sample_rate
        self.channels = channels
        self.frames = frames

    def read(self, start: int, frames: int) -> np.ndarray:
        samples = np.empty(frames * self.channels, dtype="<i2")
        rest = samples.data.cast("B")
        position = self._offset + 2 * self.channels * start
        while rest:
            try:
                count = os.preadv(self._descriptor, [rest], position)
            except OSError as error:
                raise AudioError(f"{self.name}: cannot be read: {error.strerror}") from None
            if count == 0:
                raise AudioError(f"{self.name}: ends before its samples {start} to {start + frames}")
            rest = rest[count:]
            position += count
        wave = np.multiply(samples, PCM_SCALE, dtype=np.float32)
        return wave if self.channels == 1 else wave.reshape(frames, self.channels)

    def close(self) -> None:
        os.close(self._descriptor)
