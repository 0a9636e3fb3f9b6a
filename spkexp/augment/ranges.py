"""Ranges of a config, `[low, high]`, from which a number is drawn for each row."""

from collections.abc import Sequence
from typing import TypeVar

Number = TypeVar("Number", int, float)


def checked_range(name: str, values: Sequence[Number]) -> tuple[Number, Number]:
    """`values` as (low, high). Raises ValueError, which names the argument, unless it is two numbers in order."""
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"{name}: must be [low, high] with low <= high, got {list(values)}")
    return values[0], values[1]
