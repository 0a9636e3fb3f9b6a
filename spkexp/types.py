"""Number types with a range, for the signatures that a config is checked against.

`spkexp.config.check` reads these annotations from the source of the class that a config node names, so a
range is written once, where the argument is declared.
"""

from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator

Number = TypeVar("Number", int, float)


def _in_order(values: list[Number]) -> list[Number]:
    if values[0] > values[1]:
        raise ValueError(f"must be [low, high] with low <= high, got {values}")
    return values


PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
# 0 <= x < 1: dropout rates, label smoothing
Fraction = Annotated[float, Ge(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
# [low, high], from which a number is drawn
Range = Annotated[list[float], Len(2, 2), AfterValidator(_in_order)]
NonNegativeRange = Annotated[list[NonNegative], Len(2, 2), AfterValidator(_in_order)]
CountRange = Annotated[list[NonNegativeInt], Len(2, 2), AfterValidator(_in_order)]
