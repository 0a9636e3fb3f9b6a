"""Level and overload: a row made louder or softer, and one whose peaks are cut off."""

import numpy as np
from torch import Tensor

from spkexp.augment.augmentation import RowAugmentation, column
from spkexp.augment.ranges import checked_range
from spkexp.counter import Keys
from spkexp.types import NonNegativeRange, Probability, Range


class Gain(RowAugmentation):
    """Another level for each row. What rises above full scale is not clipped: `Clipping` does that where it is meant.

    Args:
        probability: that a row is changed.
        gain_db: [low, high] of the gain, dB.
    """

    def __init__(self, probability: Probability, gain_db: Range) -> None:
        super().__init__(probability)
        self.gain_db = checked_range("gain_db", gain_db)

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        factor = np.power(10.0, self.uniform(key, 0, *self.gain_db) / 20)
        return waveform * column(factor, waveform), lengths


class Clipping(RowAugmentation):
    """Hard clipping, as by an overdriven microphone: samples beyond a share of the row's own peak are set to it.

    The level is left as it comes out, so the peak falls to that share, as in SpeechBrain's DoClip; what the model
    makes of the level is for `Gain` and for the features' normalisation.

    Args:
        probability: that a row is changed.
        share: [low, high] of the limit as a share of the row's peak, above 0 and at most 1.
    """

    def __init__(self, probability: Probability, share: NonNegativeRange) -> None:
        super().__init__(probability)
        self.share = checked_range("share", share)
        if not 0 < self.share[0] <= self.share[1] <= 1:
            raise ValueError(f"share: must lie above 0 and up to 1, for 0 leaves silence; got {list(share)}")

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        limit = waveform.abs().amax(dim=1, keepdim=True) * column(self.uniform(key, 0, *self.share), waveform)
        return waveform.minimum(limit).maximum(-limit), lengths  # four times as fast as a clamp by tensors
