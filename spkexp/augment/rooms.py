"""Simulated rooms: impulse responses without a recording, from the statistics of late reverberation."""

import numpy as np
from numpy.typing import NDArray

from spkexp import counter
from spkexp.augment.ranges import checked_range
from spkexp.counter import Keys
from spkexp.types import PositiveInt, Range

GAP_SECONDS = 0.002  # no reflection comes sooner after the direct sound


def reverberation(
    decay_s: float, direct_db: float, sample_rate: int, rng: np.random.Generator, seconds: float | None = None
) -> NDArray[np.float64]:
    """Impulse response of a room: noise that decays exponentially (Polack 1988), 2 ms after the direct sound.

    decay_s: time to fall by 60 dB. direct_db: energy of the direct sound, 1, over that of the rest.
    sample_rate: Hz. seconds: length of the response where it shall be shorter than `decay_s`.
    """
    time = np.arange(round(min(decay_s, seconds or decay_s) * sample_rate)) / sample_rate
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / decay_s) * (time > GAP_SECONDS)
    response *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    return response


class SimulatedRooms:
    """Rooms for `Reverberation`: a decay time and a direct-to-reverberant ratio drawn for each item."""

    def __init__(self, rt60: Range, direct_db: Range, sample_rate: PositiveInt) -> None:
        """rt60: [low, high] in seconds. direct_db: [low, high], energy of the direct sound over all that follows.

        Raises ValueError for a range that is reversed, or a decay shorter than 10 ms.
        """
        self._rt60 = checked_range("rt60", rt60)
        self._direct_db = checked_range("direct_db", direct_db)
        if self._rt60[0] < 0.01:
            raise ValueError(f"rt60: must be at least 0.01 s, got {rt60[0]:g}")
        self._sample_rate = sample_rate

    def responses(self, key: Keys, seconds: float, bad: list[tuple[str, str]]) -> list[NDArray[np.float32]]:
        """One response for each of `key`, of at most `seconds`; nothing is ever `bad`."""
        rt60, direct_db = counter.uniform(key, 0), counter.uniform(key, 1)
        rt60 = self._rt60[0] + (self._rt60[1] - self._rt60[0]) * rt60
        direct_db = self._direct_db[0] + (self._direct_db[1] - self._direct_db[0]) * direct_db
        return [
            reverberation(decay, ratio, self._sample_rate, counter.generator(int(one)), seconds).astype(np.float32)
            for one, decay, ratio in zip(key, rt60, direct_db, strict=True)
        ]
