"""What each hyper-parameter does to a metric: means over the runs that share a value of it."""

from collections.abc import Sequence
from statistics import fmean, median, stdev
from typing import Any

MOST_LEVELS = 8  # of a key with more numbers than that, ranges are compared
RANGES = 5
LEAST_RUNS = 3  # whose spread says something of their mean: the interval of two is as good as endless
LEAST_SHARED = 1.5  # runs that have the same value, on average, if that is no number


def main_effects(observations: Sequence[tuple[dict[str, Any], float]], keys: Sequence[str]) -> dict[str, Any]:
    """{key: {"numeric", "levels": [{"value", "name", "range", "runs", "values", "mean", "low", "high"}, ...]}}.

    Of a metric; observations: of each run, what its config says of the keys, and its value. low, high: 95 % interval of
    the mean over runs (Student's t), whatever else they differ in; None of fewer than LEAST_RUNS. It tells how much
    runs vary, seeds included, and nothing of other speakers, as the intervals of rows do. A key of numbers with more
    than MOST_LEVELS has RANGES levels of about equally many runs, each at its median and named by its lowest and
    highest number. Left out is a key that says nothing: of one value, or of names that hardly two runs share, which a
    table shows better.
    """
    found = {}
    for key in keys:
        own = [(values[key], measured) for values, measured in observations if key in values]
        groups: dict[str, list[tuple[Any, float]]] = {}
        for value, measured in own:
            groups.setdefault(repr(value), []).append((value, measured))
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in own)
        if len(groups) < 2 or (not numeric and len(own) < LEAST_SHARED * len(groups)):
            continue
        levels = list(groups.values())
        if numeric:
            levels.sort(key=lambda group: group[0][0])
            levels = _ranges(levels) if len(levels) > MOST_LEVELS else levels
        found[key] = {"numeric": numeric, "levels": [_level(group) for group in levels]}
    return found


def _ranges(levels: list[list[tuple[Any, float]]]) -> list[list[tuple[Any, float]]]:
    """Runs with the same number stay together."""
    ranges: list[list[tuple[Any, float]]] = [[] for _ in range(RANGES)]
    total, before = sum(map(len, levels)), 0
    for level in levels:
        ranges[min(RANGES - 1, RANGES * (2 * before + len(level)) // (2 * total))] += level
        before += len(level)
    return [group for group in ranges if group]


def _level(group: list[tuple[Any, float]]) -> dict[str, Any]:
    from scipy.special import stdtrit

    first, last = group[0][0], group[-1][0]  # the numbers rise; other values are all the same
    values = [measured for _, measured in group]
    mean = fmean(values)
    reach = None
    if len(values) >= LEAST_RUNS:
        reach = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5
    return {
        "value": first if first == last else median(value for value, _ in group),
        "name": str(first) if first == last else f"{first:.3g}–{last:.3g}",
        "range": None if first == last else [first, last],
        "runs": len(values),
        "values": values,
        "mean": mean,
        "low": None if reach is None else mean - reach,
        "high": None if reach is None else mean + reach,
    }
