"""Number types with a range, for the signatures that a config is checked against.

`spkexp.config.check` reads these annotations from the source of the class that a config node names, so a
range is written once, where the argument is declared.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Lt

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
# 0 <= x < 1: dropout rates, label smoothing
Fraction = Annotated[float, Ge(0), Lt(1)]
