"""From labels of windows to turns: windows that overlap vote on every frame."""

import numpy as np
from numpy.typing import NDArray

FRAME_SECONDS = 0.01


def turns(
    stretch: tuple[float, float],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    label: NDArray[np.int64],
    min_turn: float,
) -> list[tuple[float, float, int]]:
    """(start, end, label) of the turns in a stretch of speech (s), which they fill from its start to its end.

    start, end, label: (N,) of the windows over it. A window's vote is the stronger the nearer the frame is to its
    middle. A turn shorter than `min_turn` (s) goes to the longer of its neighbours, the shortest first.
    """
    if len(label) == 0 or stretch[1] <= stretch[0]:
        raise ValueError(f"{len(label)} windows over a stretch from {stretch[0]} s to {stretch[1]} s")
    count = max(1, round((stretch[1] - stretch[0]) / FRAME_SECONDS))
    middle = stretch[0] + (np.arange(count) + 0.5) * FRAME_SECONDS
    present, column = np.unique(label, return_inverse=True)
    votes = np.zeros((count, len(present)))
    for first, last, own in zip(start, end, column, strict=True):
        inside = slice(*np.searchsorted(middle, [first, last]))
        away = np.abs(middle[inside] - (first + last) / 2)
        votes[inside, own] += 1.01 - away / ((last - first) / 2)
    winner = votes.argmax(axis=1)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(winner)) + 1, [count]])
    runs = _without_short(edges, present[winner[edges[:-1]]], min_turn / FRAME_SECONDS)
    times = [stretch[0], *(stretch[0] + edge * FRAME_SECONDS for edge, _ in runs[1:]), stretch[1]]
    return [(times[number], times[number + 1], own) for number, (_, own) in enumerate(runs)]


def _without_short(edges: NDArray[np.int64], labels: NDArray[np.int64], least: float) -> list[tuple[int, int]]:
    """(first frame, label) of the runs that are left; edges (R + 1,) and labels (R,) are those of R runs."""
    bounds, own = edges.tolist(), labels.tolist()
    while len(own) > 1:
        lengths = np.diff(bounds)
        shortest = int(lengths.argmin())
        if lengths[shortest] >= least:
            break
        before = lengths[shortest - 1] if shortest > 0 else -1
        after = lengths[shortest + 1] if shortest + 1 < len(own) else -1
        own[shortest] = own[shortest - 1] if before >= after else own[shortest + 1]
        joined = [number for number in range(1, len(own)) if own[number] == own[number - 1]]
        for number in reversed(joined):
            del own[number], bounds[number]
    return list(zip(bounds[:-1], own, strict=True))
