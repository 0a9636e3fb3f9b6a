"""Speed perturbation: Ko et al. 2015. Copies of the utterances that are played faster or slower, pitch and all.

A copy counts as an utterance (`Utterances.with_speed_copies`). Its voice is another one, for the formants move by
the same factor, so it gets a speaker of its own, `id10012@0.9`, as in Yamamoto et al. 2019 and in WeSpeaker: more
classes to tell apart. It is made where the audio is read, from a crop that is as much longer, so that no row is short.
"""

import numpy as np
import soxr
from numpy.typing import NDArray


def change_speed(wave: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """wave: (samples,) played `speed` times as fast: (round(samples / speed),)."""
    if speed == 1.0:
        return wave
    return soxr.resample(wave, speed, 1.0)
