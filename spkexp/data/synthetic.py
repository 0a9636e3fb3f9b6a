"""Synthetic voices: the source and the filter of speech, without a recording.

A cascade formant synthesiser after Klatt (1980, "Software for a cascade/parallel formant synthesizer", JASA 67).
A voice is a glottal pulse (Rosenberg 1971, JASA 49, pulse C, with the return phase of Fant, Liljencrants & Lin
1985, STL-QPSR 4), breath, and a vocal tract of its own length. Its vowels are those of Peterson & Barney (1952,
JASA 24), moved by that length and by what is peculiar to the speaker. A manner is how the voice is used in one
session. `spkexp.data.recording` adds the room and the channel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAMPLE_RATE = 16000
HOP = 128  # samples between the frames at which the vocal tract is set: 8 ms
FFT = 1024  # a windowed frame of 2 × HOP samples and 48 ms for the tract to ring

SPEED_OF_SOUND = 35400.0  # cm/s, in warm and humid air
REFERENCE_CM = 17.0  # length of the vocal tract behind the formants of Peterson & Barney's men

# F1, F2, F3 in Hz, mean of 33 men (Peterson & Barney 1952, table II), in heed hid head had hod hawed hood who'd
# hud heard
VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    dtype=np.float64,
)
# Where the formants head for in a consonant made with the lips, the tongue tip and the back of the tongue; after
# Klatt (1980, table III), rounded
LOCI = np.array([[250, 950, 2200], [280, 1700, 2600], [270, 1950, 2400]], dtype=np.float64)
# Resonance and bandwidth in Hz and level in dB of the noise of f, s, sh, and of the bursts of p, t, k
FRICATIVES = np.array([[6000, 5000, -22], [5200, 1200, -9], [2900, 900, -9]], dtype=np.float64)
BURSTS = np.array([[900, 1200, -14], [4300, 1500, -12], [2000, 700, -12]], dtype=np.float64)
NEUTRAL = VOWELS[8]  # where the formants rest in silence
BANDWIDTHS = np.array([70, 90, 140, 220, 280, 340, 400, 460, 520], dtype=np.float64)  # Hz, F1..F9
NASAL_POLE = 270.0  # Hz


@dataclass(frozen=True)
class Voice:
    """What a speaker keeps from session to session."""

    tract_cm: float  # length of the vocal tract
    pitch_hz: float  # median pitch in a neutral manner
    liveliness: float  # standard deviation of the pitch accents, semitones
    formants: Array  # (9,) factor on each formant, 1 in a tract that is the reference scaled
    bandwidths: Array  # (9,) factor on each bandwidth
    vowels: Array  # (10, 3) factor on each vowel's F1..F3: accent
    open_quotient: float  # part of a cycle with open glottis
    speed_quotient: float  # opening time / closing time
    return_hz: float  # corner of the return phase: the lower, the softer the voice
    breath: float  # aspiration noise relative to the pulse
    jitter: float  # standard deviation of a cycle's boundary, in cycles
    shimmer: float  # standard deviation of a cycle's amplitude, natural log
    rate: float  # syllables a second
    coarticulation_ms: float  # length of the window that smooths the formant targets
    hiss: Array  # (3,) factor on the main resonance of f, s, sh
    nasal_zero: float  # Hz
    piriform_zero: float  # Hz: side cavities above the larynx (Dang & Honda 1997, JASA 101)


@dataclass(frozen=True)
class Manner:
    """How a voice is used in one session: factors on what is the speaker's."""

    pitch: float
    rate: float
    effort: float  # on the corner of the return phase: vocal effort


def draw_voice(rng: np.random.Generator) -> Voice:
    """A speaker from a continuum of children, women and men.

    The length of the tract is uniform with soft ends, 12 to 18.5 cm. Pitch falls with it, as from children to
    women to men (264, 223 and 132 Hz in Peterson & Barney 1952), and has a spread of its own.
    """
    tract = float(np.clip(rng.uniform(12.8, 17.8) + 0.3 * rng.standard_normal(), 12.0, 18.5))
    pitch = 122 * (REFERENCE_CM / tract) ** 2.4 * np.exp(0.16 * rng.standard_normal())
    return Voice(
        tract_cm=tract,
        pitch_hz=float(np.clip(pitch, 75, 330)),
        liveliness=float(rng.uniform(0.8, 2.5)),
        formants=np.exp(0.045 * rng.standard_normal(9)),
        bandwidths=np.exp(0.2 * rng.standard_normal(9)),
        vowels=np.exp(0.06 * rng.standard_normal((10, 3))),
        open_quotient=float(rng.uniform(0.5, 0.8)),
        speed_quotient=float(rng.uniform(1.5, 3.0)),
        return_hz=float(np.exp(rng.uniform(np.log(700), np.log(4000)))),
        breath=float(np.exp(rng.uniform(np.log(0.02), np.log(0.2)))),
        jitter=float(rng.uniform(0.003, 0.015)),
        shimmer=float(rng.uniform(0.02, 0.1)),
        rate=float(rng.uniform(3.5, 5.5)),
        coarticulation_ms=float(rng.uniform(60, 110)),
        hiss=np.exp(0.1 * rng.standard_normal(3)),
        nasal_zero=float(rng.uniform(450, 1100)),
        piriform_zero=float(rng.uniform(3600, 5400)),
    )


def draw_manner(rng: np.random.Generator) -> Manner:
    pitch, rate, effort = np.exp(np.array([0.12, 0.12, 0.3]) * rng.standard_normal(3))
    return Manner(pitch=float(pitch), rate=float(rate), effort=float(effort))


class Segment(NamedTuple):
    """Targets of the articulators and how long they are held."""

    seconds: float
    formants: Array  # (3,) F1..F3 of a tract of the reference length, Hz
    voicing: float = 0.0  # amplitude of the pulses
    friction: float = 0.0  # amplitude of the noise made in the mouth
    hiss: tuple[float, float] = (3000.0, 3000.0)  # resonance and bandwidth of that noise, Hz
    nasal_zero: float = NASAL_POLE  # Hz; at the pole, and so without effect, where the nose is shut


class Tracks(NamedTuple):
    """An utterance as the vocal tract follows the targets; one row a frame of HOP samples."""

    formants: Array  # (T, 9) Hz
    nasal_zero: Array  # (T,) Hz
    voicing: Array  # (T,)
    friction: Array  # (T,)
    hiss: Array  # (T, 2) Hz
    pitch: Array  # (T,) Hz


def syllable(voice: Voice, manner: Manner, rng: np.random.Generator) -> list[Segment]:
    """A consonant or a pause or nothing, and a vowel."""
    seconds = rng.uniform(0.7, 1.3) / (voice.rate * manner.rate)
    onset = rng.choice(["none", "fricative", "stop", "nasal", "pause"], p=[0.15, 0.3, 0.3, 0.2, 0.05])
    place, voiced = int(rng.integers(3)), rng.random() < 0.5
    resonance, bandwidth, level = (FRICATIVES if onset == "fricative" else BURSTS)[place]
    # The cavity in front of the tongue changes less between people than the whole tract.
    scale = float(np.sqrt(REFERENCE_CM / voice.tract_cm))
    hiss = (resonance * voice.hiss[place] * scale, bandwidth)
    noise = float(10 ** (level / 20))
    locus = LOCI[place]
    segments = []
    if onset == "fricative":
        segments = [Segment(0.35 * seconds, locus, 0.25 * voiced, noise, hiss)]
    elif onset == "stop":
        segments = [Segment(0.25 * seconds, locus, 0.1 * voiced, 0.0, hiss), Segment(0.012, locus, 0.0, noise, hiss)]
        if not voiced:
            segments.append(Segment(0.035, locus, 0.0, 0.06, (1500 * scale, 2500)))
    elif onset == "nasal":
        segments = [Segment(0.3 * seconds, locus, 0.5, nasal_zero=voice.nasal_zero)]
    elif onset == "pause":
        segments = [Segment(rng.uniform(0.08, 0.25), NEUTRAL)]
    vowel = int(rng.integers(len(VOWELS)))
    target = VOWELS[vowel] * voice.vowels[vowel] * np.exp(0.03 * rng.standard_normal(3))
    stress = float(10 ** (rng.uniform(-5, 1) / 20))
    return [*segments, Segment(0.65 * seconds, target, stress)]


def articulate(voice: Voice, manner: Manner, frames: int, rng: np.random.Generator) -> Tracks:
    """A run of syllables: targets, each held for a while, then smoothed into movements.

    Smoothing gives transitions to and from consonants, and the undershoot of vowels in fast speech (Lindblom 1963,
    JASA 35). Pitch falls by three semitones over the utterance and has an accent on every syllable.
    """
    per_second = SAMPLE_RATE / HOP
    segments, accents = [Segment(rng.uniform(0.02, 0.1), NEUTRAL)], [0.0]
    lengths = [round(segments[0].seconds * per_second)]
    while sum(lengths) < frames:
        new = syllable(voice, manner, rng)
        segments += new
        accents += [voice.liveliness * rng.standard_normal()] * len(new)
        lengths += [max(1, round(segment.seconds * per_second)) for segment in new]

    def held(values: list) -> Array:
        return np.repeat(np.array(values, dtype=np.float64), lengths, axis=0)[:frames]

    targets = np.log(held([segment.formants for segment in segments]))
    moving = np.exp(_smooth(targets, voice.coarticulation_ms / 1000 * per_second))
    # F4 and above are those of a tube that is closed at the glottis: (2k - 1) c / 4L (Fant 1960, ch. 1.2)
    tube = (2 * np.arange(4, 10) - 1) * SPEED_OF_SOUND / (4 * REFERENCE_CM)
    scale = REFERENCE_CM / voice.tract_cm
    formants = np.concatenate([moving, np.broadcast_to(tube, (frames, 6))], axis=1) * scale * voice.formants
    for k in range(1, 9):  # what is peculiar to a speaker never brings a formant to its lower neighbour
        formants[:, k] = np.maximum(formants[:, k], formants[:, k - 1] + 150 * scale)
    melody = _smooth(held(accents), 0.2 * per_second) + np.linspace(1.5, -1.5, frames)
    pitch = voice.pitch_hz * manner.pitch * np.exp(0.05 * rng.standard_normal())
    return Tracks(
        formants=formants,
        nasal_zero=np.exp(_smooth(np.log(held([segment.nasal_zero for segment in segments])), 4)),
        voicing=_smooth(held([segment.voicing for segment in segments]), 4),
        friction=_smooth(held([segment.friction for segment in segments]), 3),
        hiss=held([segment.hiss for segment in segments]),
        pitch=pitch * 2 ** (melody / 12),
    )


def glottis(voice: Voice, manner: Manner, pitch: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Derivative of the glottal flow, of unit power, and the flow itself, 0 to 1; both (samples,).

    pitch: (T,) Hz. The derivative is the radiation of the lips (Klatt 1980). The flow is drawn at twice the rate,
    where folding from its corners is weak.
    """
    samples = len(pitch) * HOP
    phase = np.cumsum(np.interp(np.arange(samples), np.arange(len(pitch)) * HOP, pitch)) / SAMPLE_RATE
    cycles = np.arange(1, int(phase[-1]))
    closures = np.interp(cycles, phase, np.arange(samples))
    closures += voice.jitter * rng.standard_normal(len(cycles)) * SAMPLE_RATE / np.mean(pitch)
    phase = np.interp(np.arange(2 * samples) / 2, closures, cycles, left=0.0, right=0.0)
    cycle = phase.astype(np.int64)
    part = phase - cycle
    opening = voice.open_quotient * voice.speed_quotient / (1 + voice.speed_quotient)
    closing = voice.open_quotient - opening
    flow = np.where(
        part < opening,
        0.5 - 0.5 * np.cos(np.pi * part / opening),
        np.cos(0.5 * np.pi * np.minimum((part - opening) / closing, 1)),
    )
    shimmer = np.exp(voice.shimmer * rng.standard_normal(len(cycles) + 2))
    spectrum = np.fft.rfft(flow * shimmer[cycle])[: samples // 2 + 1]
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= 1j * frequency / (1 + 1j * frequency / (voice.return_hz * manner.effort))
    derivative = np.fft.irfft(spectrum, samples)
    return derivative / np.sqrt(np.mean(derivative**2)), flow[::2]


def speak(voice: Voice, manner: Manner, samples: int, rng: np.random.Generator) -> Array:
    """(samples,) of clean speech of unit power, as it leaves the lips."""
    frames = -(-samples // HOP)
    tracks = articulate(voice, manner, frames, rng)
    pulses, flow = glottis(voice, manner, tracks.pitch, rng)
    at = np.arange(frames * HOP)
    knots = np.arange(frames) * HOP + HOP / 2
    breath = voice.breath * (0.3 + flow) * rng.standard_normal(len(at))
    voiced = (pulses + breath) * np.interp(at, knots, tracks.voicing)
    noise = rng.standard_normal(len(at)) * np.interp(at, knots, tracks.friction)

    count = int(np.sum(np.mean(tracks.formants, axis=0) < 7600))
    bands = (BANDWIDTHS * voice.bandwidths)[:count]
    poles = np.concatenate([tracks.formants[:, :count], np.full((frames, 1), NASAL_POLE)], axis=1)
    zeros = np.stack([tracks.nasal_zero, np.full(frames, voice.piriform_zero)], axis=1)
    tract = _response(zeros, np.array([100.0, 400.0])) / _response(poles, np.append(bands, 100.0))
    front = 1 / _response(tracks.hiss[:, :1], tracks.hiss[:, 1:])
    front /= np.sqrt(np.mean(np.abs(front) ** 2, axis=1, keepdims=True))

    speech = _filter(voiced, tract)
    speech /= np.sqrt(np.mean(speech**2))
    speech = (speech + _filter(noise, front))[:samples]
    return speech / np.sqrt(np.mean(speech**2))


def _smooth(track: Array, frames: float) -> Array:
    """Running mean over a Hann window of about `frames` frames, edges held; (T,) or (T, K)."""
    half = max(1, round(frames / 2))
    window = np.hanning(2 * half + 3)[1:-1]
    padded = np.pad(track, [(half, half)] + [(0, 0)] * (track.ndim - 1), mode="edge")
    smooth = np.zeros_like(track)
    for i, weight in enumerate(window / window.sum()):
        smooth += weight * padded[i : i + len(track)]
    return smooth


def _response(frequencies: Array, bandwidths: Array) -> NDArray[np.complex128]:
    """(T, FFT/2 + 1): the denominators of K resonators (Klatt 1980, eq. 1-3) multiplied, 1 at 0 Hz.

    frequencies: (T, K) Hz. bandwidths: (K,) or (T, K) Hz.
    """
    radius = np.exp(-np.pi * bandwidths / SAMPLE_RATE)
    first = -2 * radius * np.cos(2 * np.pi * frequencies / SAMPLE_RATE)
    second = np.broadcast_to(radius**2, first.shape)
    polynomial = np.ones((len(first), 1))
    for k in range(first.shape[1]):
        grown = np.pad(polynomial, [(0, 0), (0, 2)])
        grown[:, 1:-1] += first[:, k : k + 1] * polynomial
        grown[:, 2:] += second[:, k : k + 1] * polynomial
        polynomial = grown
    return np.fft.rfft(polynomial / polynomial.sum(axis=1, keepdims=True), FFT)


def _filter(source: Array, response: NDArray[np.complex128]) -> Array:
    """Time-varying filter by overlap-add: (T · HOP,) through (T, FFT/2 + 1), one response a frame."""
    frames = len(response)
    hops = np.pad(source, (HOP // 2, HOP + HOP // 2)).reshape(frames + 2, HOP)
    window = np.hanning(2 * HOP + 1)[:-1]
    pieces = np.concatenate([hops[:-2], hops[1:-1]], axis=1) * window
    pieces = np.fft.irfft(np.fft.rfft(pieces, FFT) * response, FFT).reshape(frames, -1, HOP)
    out = np.zeros((frames + pieces.shape[1], HOP))
    for i in range(pieces.shape[1]):
        out[i : i + frames] += pieces[:, i]
    return out.reshape(-1)[HOP // 2 : HOP // 2 + len(source)]
