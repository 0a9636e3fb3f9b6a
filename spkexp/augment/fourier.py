"""Sizes of an FFT that are fast."""

import math

_FAST_FACTORS = (1, 3, 5, 9, 15)


def fast_size(minimum: int) -> int:
    """The least size of an FFT, at least `minimum`, that is a power of two times 1, 3, 5, 9 or 15."""
    return min(factor << max(0, math.ceil(minimum / factor) - 1).bit_length() for factor in _FAST_FACTORS)
