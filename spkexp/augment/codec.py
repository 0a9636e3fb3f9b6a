"""Lossy coding: a row is encoded and decoded again, with the encoders that this machine has.

MP3 (LAME), AAC, Opus and AMR narrow-band come from FFmpeg's libraries (PyAV), Vorbis and GSM full rate from libsndfile.
What comes back lies where it was: each coder's delay is known and taken off.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from io import BytesIO
from typing import Literal

import av
import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.augment.augmentation import RowAugmentation
from spkexp.counter import Keys
from spkexp.types import Positive, PositiveInt, Probability

Wave = NDArray[np.float32]

THREADS = 8  # not torch's number, which is 1 under torchrun; the coders leave Python's lock


@dataclass(frozen=True)
class Coder:
    """A format and how it is coded here. `round_trip(wave, kbit/s)` may be late by `delay` and go on for longer."""

    rate: int  # Hz at which it is coded
    bit_rates: tuple[float, ...] | range  # kbit/s: those that exist, or all between two
    round_trip: Callable[[Wave, float], Wave]
    missing: Callable[[], list[str]]  # what it would take and the machine lacks
    delay: int = 0  # samples at `rate`

    def allows(self, bit_rate: float) -> bool:
        if isinstance(self.bit_rates, range):
            return self.bit_rates.start <= bit_rate <= self.bit_rates.stop
        return bit_rate in self.bit_rates

    def describe_bit_rates(self) -> str:
        if isinstance(self.bit_rates, range):
            return f"{self.bit_rates.start} to {self.bit_rates.stop}"
        return ", ".join(f"{value:g}" for value in self.bit_rates)


class Codec(RowAugmentation):
    """One of several formats for each row, at one of its bit rates, each as likely.

    It runs on the CPU, whatever the device: the rows that are changed go there and back, which waits for the device,
    and 4 to 10 ms of a core a row of 2 s pass until they return (THREADS rows at once). Keep the probability small.

    Args:
        probability: that a row is changed.
        bit_rates: for each format to choose from the bit rates to choose from, kbit/s, say {mp3: [16, 32]}; null leaves
            a format out. Vorbis has no exact ones: libvorbis' nominal rate for its quality; gsm has one, 13.
        sample_rate: of the waveform, Hz. AMR and GSM are coded at 8 kHz, all others at 16 kHz; resampled where needed.

    Raises ValueError for a format that this machine cannot encode, and a bit rate that a format does not have.
    """

    FORMAT, BIT_RATE = range(2)

    def __init__(
        self,
        probability: Probability,
        bit_rates: dict[Literal["mp3", "aac", "opus", "vorbis", "amr_nb", "gsm"], list[Positive] | None],
        sample_rate: PositiveInt,
    ) -> None:
        super().__init__(probability)
        self.bit_rates = {str(name): list(rates) for name, rates in bit_rates.items() if rates is not None}
        if not self.bit_rates or not all(self.bit_rates.values()):
            raise ValueError(f"bit_rates: give a format of {', '.join(CODERS)}, each with a bit rate, got {bit_rates}")
        for name, rates in self.bit_rates.items():
            _check(name, rates)
        self.sample_rate = sample_rate

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        waves, sizes = waveform.cpu().numpy(), lengths.tolist()
        coded = np.zeros_like(waves)

        def code(row: int) -> None:
            name, bit_rate = chosen[row]
            coded[row, : sizes[row]] = round_trip(waves[row, : sizes[row]], self.sample_rate, name, bit_rate)

        chosen = self._chosen(key)
        with ThreadPoolExecutor(min(len(key), THREADS)) as pool:
            list(pool.map(code, range(len(key))))  # the list raises what a thread raised
        return torch.from_numpy(coded).to(waveform.device, non_blocking=True), lengths

    def _chosen(self, key: Keys) -> list[tuple[str, float]]:
        """The format and the bit rate of each row."""
        names = list(self.bit_rates)
        chosen = []
        for first, second in zip(self.uniform(key, self.FORMAT), self.uniform(key, self.BIT_RATE), strict=True):
            name = names[int(first * len(names))]
            rates = self.bit_rates[name]
            chosen.append((name, rates[int(second * len(rates))]))
        return chosen


def round_trip(wave: Wave, sample_rate: int, name: str, bit_rate: float) -> Wave:
    """`wave` (samples,) through the coder `name`, one of CODERS, at `bit_rate` kbit/s: (samples,), not delayed."""
    coder = CODERS[name]
    at_rate = wave if sample_rate == coder.rate else soxr.resample(wave, sample_rate, coder.rate)
    # The silence behind pushes the end out of the coder, and gives it a frame where a row has less.
    padded = np.zeros(len(at_rate) + coder.delay + coder.rate // 10, dtype=np.float32)
    np.clip(at_rate, -1, 1, out=padded[: len(at_rate)])
    coded = coder.round_trip(padded, bit_rate)[coder.delay :]
    if len(coded) < len(at_rate):
        raise RuntimeError(f"{name} at {bit_rate:g} kbit/s gave {len(coded)} samples for {len(at_rate)}")
    coded = coded[: len(at_rate)]
    if sample_rate != coder.rate:
        coded = soxr.resample(coded, coder.rate, sample_rate)
    result = np.zeros_like(wave)  # resampled forth and back a row may be a sample shorter or longer
    result[: len(coded)] = coded[: len(wave)]
    return result


@dataclass(frozen=True)
class Libav:
    """A round trip through an encoder and a decoder of FFmpeg's libraries, packet by packet, without a file."""

    encoder: str
    decoder: str
    rate: int
    options: dict[str, str] = field(default_factory=dict)
    gain: float = 1.0

    def __call__(self, wave: Wave, bit_rate: float) -> Wave:
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), 0
        encoder = av.CodecContext.create(self.encoder, "w")
        assert isinstance(encoder, av.AudioCodecContext)
        formats = encoder.codec.audio_formats
        assert formats is not None
        encoder.sample_rate, encoder.layout, encoder.format = self.rate, "mono", formats[-1]
        encoder.bit_rate, encoder.options, encoder.thread_count = round(1000 * bit_rate), dict(self.options), 1
        packets = encoder.encode(frame) + encoder.encode(None)

        decoder = av.CodecContext.create(self.decoder, "r")
        assert isinstance(decoder, av.AudioCodecContext)
        decoder.sample_rate, decoder.layout, decoder.thread_count = self.rate, "mono", 1
        decoder.extradata = encoder.extradata
        frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
        coded = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        return coded * np.float32(self.gain) if self.gain != 1 else coded

    def missing(self) -> list[str]:
        lacking = []
        for name, mode in ((self.encoder, "w"), (self.decoder, "r")):
            try:
                av.Codec(name, mode)  # type: ignore[arg-type]
            except ValueError:  # UnknownCodecError
                lacking.append(f"FFmpeg's {name}")
        return lacking


def _opus(coder: Libav, wave: Wave, bit_rate: float) -> Wave:
    # The decoder always gives 48 kHz, with nothing above the encoder's 8 kHz: every third sample says it all. Up to
    # 12 kbit/s the encoder narrows the band, through a resampler that is late by 6 of them.
    return coder(wave, bit_rate)[6 if bit_rate <= 12 else 0 :: 3]


@dataclass(frozen=True)
class Sndfile:
    """A round trip through a file of libsndfile's in memory."""

    format: str
    subtype: str
    rate: int
    level: Callable[[float], float] | None = None  # libsndfile's compression level from kbit/s

    def __call__(self, wave: Wave, bit_rate: float) -> Wave:
        file = BytesIO()
        level = {} if self.level is None else {"compression_level": self.level(bit_rate)}
        soundfile.write(file, wave, self.rate, format=self.format, subtype=self.subtype, **level)
        file.seek(0)
        return soundfile.read(file, dtype="float32")[0]

    def missing(self) -> list[str]:
        there = self.format in soundfile.available_formats() and self.subtype in soundfile.available_subtypes(
            self.format
        )
        return [] if there else [f"libsndfile's {self.subtype} in {self.format}"]


def _vorbis_level(bit_rate: float) -> float:
    # libvorbis' table for one channel of 15 to 19 kHz (lib/modes/setup_16.h); libsndfile's level is 1 - quality.
    return 1 - float(np.interp(bit_rate, [16, 28, 64, 100], [-0.1, 0.05, 0.5, 1.0]))


# LAME plays everything at .95 of its level, lest its errors clip. The options are fast searches: half the time or less.
_MP3 = Libav("libmp3lame", "mp3float", 16_000, {"compression_level": "9"}, gain=1 / 0.95)
_AAC = Libav("aac", "aac", 16_000, {"aac_coder": "fast"})
_OPUS = Libav("libopus", "opus", 16_000, {"compression_level": "0"})
_AMR_NB = Libav("libopencore_amrnb", "amrnb", 8000)
_VORBIS = Sndfile("OGG", "VORBIS", 16_000, _vorbis_level)
_GSM = Sndfile("WAV", "GSM610", 8000)

# Delays: an AAC frame; AMR's 5 ms look-ahead. MP3's and Opus' decoders take theirs off.
CODERS = {
    "mp3": Coder(16_000, (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160), _MP3, _MP3.missing),
    "aac": Coder(16_000, range(12, 96), _AAC, _AAC.missing, delay=1024),
    "opus": Coder(16_000, range(6, 128), partial(_opus, _OPUS), _OPUS.missing),
    "vorbis": Coder(16_000, range(24, 100), _VORBIS, _VORBIS.missing),
    "amr_nb": Coder(8000, (4.75, 5.15, 5.9, 6.7, 7.4, 7.95, 10.2, 12.2), _AMR_NB, _AMR_NB.missing, delay=40),
    "gsm": Coder(8000, (13,), _GSM, _GSM.missing),
}


def _check(name: str, bit_rates: list[float]) -> None:
    if name not in CODERS:
        raise ValueError(f"bit_rates: there is no format '{name}', but {', '.join(CODERS)}")
    if lacking := CODERS[name].missing():
        there = [other for other, coder in CODERS.items() if not coder.missing()]
        raise ValueError(
            f"bit_rates.{name}: this machine has no {' and no '.join(lacking)}; set {name} to null; there "
            f"{'are ' + ', '.join(there) if there else 'is no format at all'}"
        )
    for bit_rate in bit_rates:
        if not CODERS[name].allows(bit_rate):
            raise ValueError(
                f"bit_rates.{name}: {name} has {CODERS[name].describe_bit_rates()} kbit/s, got {bit_rate:g}"
            )
