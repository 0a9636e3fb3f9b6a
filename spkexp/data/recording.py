"""The recording of a synthetic voice: a room, background noise, a channel and a level, drawn for each session."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkexp.augment.rooms import reverberation
from spkexp.data.synthetic import SAMPLE_RATE, Array

KNOTS = 12  # of the channel's response
PEAK = 0.95  # of full scale: a louder recording is turned down, not clipped


@dataclass(frozen=True)
class Recording:
    """What a session's recordings have in common."""

    room: Array  # impulse response: the direct sound, 1, then the reverberation
    snr_db: float
    noise_tilt: float  # the power of the noise falls as frequency to this power
    low_hz: float  # pass band of the channel
    high_hz: float
    ripple_db: Array  # (KNOTS,) gain of the channel at equal steps of mel from 0 Hz to 8 kHz
    level_db: float  # relative to full scale


def draw_recording(rng: np.random.Generator) -> Recording:
    return Recording(
        room=reverberation(rng.uniform(0.1, 0.4), rng.uniform(4, 16), SAMPLE_RATE, rng),
        snr_db=float(rng.uniform(16, 34)),
        noise_tilt=float(rng.uniform(0.3, 1.5)),
        low_hz=float(np.exp(rng.uniform(np.log(40), np.log(200)))),
        high_hz=float(np.exp(rng.uniform(np.log(4500), np.log(12000)))),
        ripple_db=1.5 * rng.standard_normal(KNOTS) + rng.uniform(-3, 3) * np.linspace(-1, 1, KNOTS),
        level_db=float(rng.uniform(-36, -22)),
    )


def record(speech: Array, recording: Recording, rng: np.random.Generator) -> NDArray[np.int16]:
    """Clean speech (samples,) as the session's microphone stores it, 16 bits a sample."""
    # A length that the FFT is fast at, and long enough that the end of the room's response does not come round
    size = -(-(len(speech) + len(recording.room)) // 4096) * 4096
    frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    heard = np.fft.irfft(np.fft.rfft(speech, size) * np.fft.rfft(recording.room, size), size)[: len(speech)]
    colour = (frequency + 100) ** (-recording.noise_tilt / 2)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * colour, size)[: len(speech)]
    noise *= 10 ** (-recording.snr_db / 20) * np.sqrt(np.mean(heard**2) / np.mean(noise**2))
    mel = np.log1p(frequency / 700)
    gain = 10 ** (np.interp(mel, np.linspace(0, mel[-1], KNOTS), recording.ripple_db) / 20)
    gain /= np.sqrt((1 + (recording.low_hz / (frequency + 1)) ** 4) * (1 + (frequency / recording.high_hz) ** 8))
    wave = np.fft.irfft(np.fft.rfft(heard + noise, size) * gain, size)[: len(speech)]
    level = 10 ** ((recording.level_db + rng.normal(0, 1.5)) / 20)
    wave *= min(level / np.sqrt(np.mean(wave**2)), PEAK / np.max(np.abs(wave)))
    return np.round(wave * 32767).astype(np.int16)
