"""Which utterances make up a step: a pure function of (seed, epoch)."""

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator


class RandomSampler:
    """Every utterance once an epoch, shuffled anew each epoch."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def epoch(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """(num_items,) the epoch's order."""
        return generator(seed, epoch).permutation(self.num_items)


def parts_of_batch(batch: NDArray[np.int64], accumulate: int, world_size: int, rank: int) -> list[NDArray[np.int64]]:
    """The parts of a global batch that process `rank` works through, in order: `accumulate` of equal size.

    Over all processes the parts are the batch in its order, so that a step means the same whatever their number.
    len(batch) must be divisible by accumulate * world_size.
    """
    parts = np.split(batch, accumulate * world_size)
    return [parts[index * world_size + rank] for index in range(accumulate)]
