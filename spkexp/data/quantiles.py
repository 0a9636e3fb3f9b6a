"""A distribution in a few numbers."""

import numpy as np
from numpy.typing import ArrayLike

# Shares of the values that lie below; between two values the quantile is interpolated.
QUANTILES = {
    "min": 0.0,
    "p01": 0.01,
    "p05": 0.05,
    "p25": 0.25,
    "median": 0.5,
    "p75": 0.75,
    "p95": 0.95,
    "p99": 0.99,
    "max": 1.0,
}


def quantiles(values: ArrayLike) -> dict[str, float] | None:
    """{"min": …, "p01": …, …, "max": …, "mean": …} of the values, to 6 decimals; None of no values."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return None
    found = {**dict(zip(QUANTILES, np.quantile(array, list(QUANTILES.values())), strict=True)), "mean": array.mean()}
    return {name: round(float(value), 6) for name, value in found.items()}
