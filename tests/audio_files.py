"""Audio files made by hand, for the tests of what reads them."""

import struct
from pathlib import Path

import av
import numpy as np

RATE = 16_000


def integers(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise that uses the whole range of 16 bits, (frames, channels)."""
    samples = np.random.default_rng(seed).integers(-32768, 32768, (frames, channels)).astype("<i2")
    samples[:2, 0] = -32768, 32767
    return samples


def tones(seconds: float, rate: int) -> np.ndarray:
    """300 Hz and 1700 Hz at half scale: what survives a lossy codec or a resampler, to compare with."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 300 * time) + 0.2 * np.sin(2 * np.pi * 1700 * time)).astype(np.float32)


def riff(fmt: bytes, data: bytes, before: bytes = b"", size: int | None = None) -> bytes:
    """A wav file by hand, with `before` between the format and the samples."""
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + before
    body += b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pcm(rate: int = RATE, channels: int = 1) -> bytes:
    return struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)


def encode(path: Path, wave: np.ndarray, rate: int, codec: str = "aac", form: str | None = None) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
