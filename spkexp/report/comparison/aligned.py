"""The trials that several systems have in common, so that they can be compared trial by trial."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from spkexp.scoring.trial_scores import TrialScores

# Below this share of the longer list, what two lists have in common is another test than either.
LEAST_COMMON = 0.9


class OtherTrials(Exception):
    """Lists that are not the same test; says why."""


def aligned(systems: Sequence[TrialScores]) -> list[TrialScores]:
    """The trials that all have, by the names of either side, in the order of the first. Raises OtherTrials.

    A trial that is listed twice is the first of one system and the first of the other, and so on.
    """
    first = systems[0]
    names = [_names(system) for system in systems]
    if not all(_same(names[0], other) for other in names[1:]):
        systems = _common(systems, names)
        first = systems[0]
    for other in systems[1:]:
        if first.target is not None and other.target is not None and not np.array_equal(first.target, other.target):
            raise OtherTrials("its trials have other labels")
    return list(systems)


def same_trials(one: TrialScores, other: TrialScores) -> bool:
    """Whether both have the same trials in the same order, with the same labels."""
    labels = one.target is not None and other.target is not None and np.array_equal(one.target, other.target)
    return labels and _same(_names(one), _names(other))


def _names(system: TrialScores) -> pl.DataFrame:
    return pl.DataFrame(
        [
            system.enrolled["name"].gather(system.enroll).alias("enroll"),
            system.tested["name"].gather(system.test).alias("test"),
        ]
    )


def _same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return len(one) == len(other) and one.equals(other)


def _common(systems: Sequence[TrialScores], names: Sequence[pl.DataFrame]) -> list[TrialScores]:
    keys = ["enroll", "test", "again"]
    tables = [
        table.with_columns(pl.int_range(pl.len()).over("enroll", "test").alias("again")).with_row_index(f"row{number}")
        for number, table in enumerate(names)
    ]
    joined = tables[0]
    for table in tables[1:]:
        joined = joined.join(table, on=keys, how="inner", maintain_order="left")
    most = max(map(len, names))
    if len(joined) < LEAST_COMMON * most:
        raise OtherTrials(f"it has other trials ({len(joined):,} of {most:,} in common)")
    return [system.take(joined[f"row{n}"].cast(pl.Int64).to_numpy()) for n, system in enumerate(systems)]
