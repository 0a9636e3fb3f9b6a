"""Learning curves, as metrics.jsonl has them."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

MOST_POINTS = 500  # of a training curve; more than a plot has columns of pixels only make the page heavy
Curve = dict[str, list[float | None]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """{"train": {"epoch": [...], "loss": [...], ...}, "val": {...}}: what was logged of each, with the epochs.

    A value that is not finite, or missing in a line, is None. Of metrics with a detail the key is "min_dcf.0.01". Lines
    that cannot be read, such as the last one after a kill, are left out; without the file there are no curves. Long
    training curves are means over equally many lines.
    """
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    points: dict[str, list[dict[str, float]]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int | float):
            continue
        for part, measured in entry.items():
            if isinstance(measured, dict) and (part == "train" or part.split("_")[0] == "val"):
                points.setdefault(part, []).append({"epoch": entry["epoch"], **_numbers(measured)})
    return {part: _thinned(_columns(own)) if part == "train" else _columns(own) for part, own in points.items()}


def _numbers(measured: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in measured.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def _columns(points: list[dict[str, float]]) -> Curve:
    keys = dict.fromkeys(key for point in points for key in point)
    values = {key: [point.get(key, math.nan) for point in points] for key in keys}
    return {key: [value if math.isfinite(value) else None for value in column] for key, column in values.items()}


def _thinned(curve: Curve) -> Curve:
    count = len(curve["epoch"])
    if count <= MOST_POINTS:
        return curve
    edges = np.linspace(0, count, MOST_POINTS + 1).astype(int)
    return {key: [_mean(column[a:b]) for a, b in pairwise(edges)] for key, column in curve.items()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 9) if known else None
