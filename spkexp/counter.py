"""Random numbers from counters: a pure function of (seed, epoch, item, draw) and of what they are for.

Nothing depends on who asks or in which order, so a run repeats bit for bit with any number of workers and
resumes from a position alone.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]


def item_keys(seed: int, epoch: int, item: NDArray[np.int64], draw: NDArray[np.int64] | int = 0) -> Keys:
    """What all random choices about each of `item` derive from; `draw` tells its occurrences in one epoch apart."""
    return _hash(seed, epoch, np.asarray(item), draw)


def derived_keys(key: Keys, number: int) -> Keys:
    """Keys of copy `number` of what `key` belongs to: independent of the original's and of other copies'."""
    return _mix(key ^ _mix(np.uint64(number)))


def uniform(key: Keys, stream: int) -> NDArray[np.float64]:
    """Uniform in [0, 1), one for each of `key`; `stream` tells independent choices about an item apart."""
    return (derived_keys(key, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(*key: int) -> np.random.Generator:
    """A numpy generator (Philox) whose numbers depend on `key` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def torch_seed(*key: int) -> int:
    """A seed for torch.manual_seed that depends on `key` alone."""
    return int(_hash(*key)[0] >> np.uint64(1))


def _hash(*words: int | NDArray[np.int64]) -> Keys:
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = _mix(state ^ np.asarray(word).astype(np.uint64))
    return state


def _mix(x: Keys | np.uint64) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, fig. 16) after one step of its counter."""
    with np.errstate(over="ignore"):
        x = np.asarray(x) + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
