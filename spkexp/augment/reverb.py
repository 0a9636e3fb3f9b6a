"""Reverberation: convolution with a room's impulse response, in batch, by the Fourier transform.

The output is in time with the input: the direct sound, not the start of the recording, is at delay 0, as in Kaldi's
wav-reverberate (--shift-output) and SpeechBrain. Its power is the input's, reverberation and all (Kaldi's
--normalize-output), so that a room changes neither the level nor, later, the meaning of a signal-to-noise ratio.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.augment.augmentation import STREAMS, Material, RowAugmentation, described, power, silence_behind
from spkexp.augment.fourier import fast_size
from spkexp.counter import Keys, derived_keys
from spkexp.types import Positive, PositiveInt, Probability

# Of a band-limited pulse, half lies before its peak; what comes earlier than this is the recording's noise.
LEAD_SECONDS = 0.002
# The direct sound is the first peak that comes within 6 dB of the highest: a reflection may be louder.
DIRECT = 0.5


@runtime_checkable
class Rooms(Protocol):
    """Where impulse responses come from: recordings (ImpulseResponses of spkexp.data.recordings) or SimulatedRooms."""

    def responses(self, key: Keys, seconds: float, bad: list[tuple[str, str]]) -> list[NDArray[np.float32]]:
        """An impulse response (taps,) for each of `key`, a function of that key alone; none is silent.

        What follows `seconds` after the direct sound is not needed. Files that could not be used go to `bad`.
        """
        ...


class Reverberation(RowAugmentation):
    """Puts a row into a room; its length stays, what rings on behind is cut off."""

    ROOM = 0
    num_material = 1

    def __init__(
        self, probability: Probability, source: Rooms, max_seconds: Positive, sample_rate: PositiveInt
    ) -> None:
        """max_seconds: what follows later than this after the direct sound is left out. sample_rate: Hz.

        Raises ValueError for a source that gives no responses.
        """
        super().__init__(probability)
        if not isinstance(source, Rooms):
            raise ValueError(f"source: must be {described(Rooms)}, but {type(source).__name__} is none")
        self._source = source
        self._max_seconds = max_seconds
        self._taps = max(1, round(max_seconds * sample_rate))
        self._lead = round(LEAD_SECONDS * sample_rate)

    def fetch(self, key: Keys, samples: int, material: Material) -> list[Tensor]:
        """One tensor (n, lead + taps) float32: responses of unit energy with the direct sound at column `lead`."""
        rooms = derived_keys(key, STREAMS * (1 + self.index) + self.ROOM)
        found = self._source.responses(rooms, self._max_seconds, material.bad)
        taps = min(self._taps, samples)  # later ones reach no sample
        return [torch.from_numpy(np.stack([aligned(response, self._lead, taps) for response in found]))]

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        (response,) = material
        samples = waveform.shape[1]
        size = fast_size(samples + response.shape[1] - 1)
        spectrum = torch.fft.rfft(waveform, size)
        spectrum *= torch.fft.rfft(response, size)
        heard = torch.fft.irfft(spectrum, size)[:, self._lead : self._lead + samples]
        heard = silence_behind(heard, lengths)
        after = power(heard, lengths)
        return heard * torch.where(after > 0, power(waveform, lengths) / after, 0.0).sqrt(), lengths


def direct_sound(response: NDArray[np.float32]) -> int:
    """The sample where the direct sound arrives in `response` (taps,): the peak of the first sound that comes within
    6 dB of the loudest."""
    level = np.abs(response)
    first = int(np.argmax(level >= DIRECT * level.max()))
    # From there up to the peak of the same pulse
    falls = np.flatnonzero(np.diff(level[first:]) <= 0)
    return first + (int(falls[0]) if len(falls) else len(level) - 1 - first)


def aligned(response: NDArray[np.float32], lead: int, taps: int) -> NDArray[np.float32]:
    """(lead + taps,) `response` at unit energy, with its direct sound at `lead`; zeros where there is nothing of it."""
    direct = direct_sound(response)
    before = min(lead, direct)
    part = response[direct - before : direct + taps]
    result = np.zeros(lead + taps, dtype=np.float32)
    result[lead - before : lead - before + len(part)] = part / np.sqrt(np.dot(part, part))
    return result
