"""Error rates by condition: which voices, languages or durations are hard."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.scoring.trial_scores import TrialScores

# Of either kind, for a rate to be given; of fewer it would be a rate of errors that can be counted on one hand.
MIN_TRIALS = 10
MAX_GROUPS = 1_000
UNKNOWN = "unknown"
_UNIT = {"duration": " s"}


@dataclass(frozen=True)
class Groups:
    """Each trial in one group of a column."""

    names: list[str]  # (G,) in the order to list them in
    member: NDArray[np.int64]  # (T,) index into names


def breakdown(
    scores: TrialScores,
    columns: Sequence[str],
    measure: Callable[[TrialScores], Mapping[str, Any]],
    edges: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{column: {group: {"num_trials", "num_targets" and what `measure` says of the group's trials}}}.

    columns: of the scores' tables; edges: where the groups of a column of numbers begin, for `groups`. A group with
    fewer than MIN_TRIALS targets or non-targets is listed without rates. Rates are those within a group: an equal error
    rate sets a threshold for each group, which a system in use, with one threshold for all, does not have. Raises
    UserError where the list has no labels, or no such column.
    """
    target = scores.target
    if target is None:
        raise UserError("conditions: the trials have no labels, so there are no error rates to break down")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column in columns:
        parts = groups(scores, column, (edges or {}).get(column))
        order = np.argsort(parts.member, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(parts.member, minlength=len(parts.names)))[:-1])
        found[column] = {}
        for name, trials in zip(parts.names, members, strict=True):
            targets = int(target[trials].sum())
            entry: dict[str, Any] = {"num_trials": len(trials), "num_targets": targets}
            if min(targets, len(trials) - targets) >= MIN_TRIALS:
                entry |= measure(scores.take(trials))
            found[column][name] = entry
    return found


def groups(scores: TrialScores, column: str, edges: Sequence[float] | None = None) -> Groups:
    """The groups of the trials by `column`; where a side has no value, `unknown`.

    Text: the two values, whichever is the enrolment's: 'f f', 'f m', 'm m'. Numbers: bins of the lesser of the two
    values, as for the shorter recording, '< 2 s', '2–4 s', '≥ 4 s'; they begin at `edges`, rising, or at quartiles.
    Raises UserError.
    """
    sides = []
    for table, rows in ((scores.enrolled, scores.enroll), (scores.tested, scores.test)):
        if column not in table.columns:
            side = "models" if table is not scores.tested else "utterances"
            there = [name for name in table.columns if name not in ("name", "path")]
            raise UserError(
                f"conditions: the {side} of the trials have no column {column!r}; there are {', '.join(there)}. "
                "scoring.conditions names columns of the manifest when trials are scored"
            )
        sides.append((table[column], rows))
    if all(values.dtype.is_numeric() for values, _ in sides):
        lesser = np.minimum(*(values.cast(pl.Float64).to_numpy()[rows] for values, rows in sides))
        return _bins(lesser, edges, _UNIT.get(column, ""))
    if edges is not None:
        raise UserError(f"conditions: {column!r} holds no numbers, so it has no edges of bins")
    return _pairs(sides, column)


def _pairs(sides: list[tuple[pl.Series, NDArray[np.int64]]], column: str) -> Groups:
    texts = [values.cast(pl.String) for values, _ in sides]
    known = sorted(set(pl.concat(texts).drop_nulls()))
    place = {value: index for index, value in enumerate(known)}
    first, second = (
        np.array([-1 if value is None else place[value] for value in text], dtype=np.int64)[rows]
        for text, (_, rows) in zip(texts, sides, strict=True)
    )
    low, high = np.minimum(first, second), np.maximum(first, second)
    code = np.where(low < 0, len(known) ** 2, low * len(known) + high)  # unknown comes last
    codes, member = np.unique(code, return_inverse=True)
    if len(codes) > MAX_GROUPS:
        raise UserError(
            f"conditions: {column!r} has {len(codes):,} different pairs of values among the trials; "
            f"a condition has at most {MAX_GROUPS:,}"
        )
    blank = " | " if any(" " in value for value in known) else " "
    pairs = (divmod(int(code), len(known)) for code in codes if code < len(known) ** 2)
    names = [f"{known[one]}{blank}{known[other]}" for one, other in pairs]
    names += [UNKNOWN] * (len(codes) - len(names))
    return Groups(names, member.astype(np.int64))


def _bins(values: NDArray[np.float64], edges: Sequence[float] | None, unit: str) -> Groups:
    """values: (T,) NaN where unknown."""
    known = values[np.isfinite(values)]
    if edges is None:
        limits = _quartiles(known)
    else:
        limits = np.asarray(edges, dtype=np.float64)
        if not len(limits) or (np.diff(limits) <= 0).any():
            raise UserError(f"conditions: edges of bins must rise, got {list(edges)}")
    member = np.searchsorted(limits, values, side="right")
    if not len(limits):
        names = [f"{known[0]:g}{unit}" if np.ptp(known) == 0 else "all"] if len(known) else []
    else:
        shown = [f"{limit:g}" for limit in limits]
        inner = [f"{low}–{high}{unit}" for low, high in itertools.pairwise(shown)]
        names = [f"< {shown[0]}{unit}", *inner, f"≥ {shown[-1]}{unit}"]
    unknown = ~np.isfinite(values)
    if unknown.any():
        member[unknown] = len(names)
        names.append(UNKNOWN)
    return Groups(names, member.astype(np.int64))


def _quartiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Three edges, or fewer where values are much alike, to two digits so that they can be read."""
    if not len(values):
        return np.empty(0)
    rounded = np.unique([float(f"{edge:.2g}") for edge in np.quantile(values, [0.25, 0.5, 0.75])])
    return rounded[(rounded > values.min()) & (rounded <= values.max())]
