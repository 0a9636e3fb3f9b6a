"""From what the config says about data to utterances and trials, everything checked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from spkexp.data.dataset import Reading
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.split import SPLITS
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    train: Utterances
    evaluation: Mapping[str, EvaluationSet]  # among "val" (chooses the best checkpoint) and "test"
    background: Utterances | None  # of the speakers that scores are normalised against, and that train PLDA
    reading: Reading
    skipped: int  # rows left out beforehand, for a file whose header cannot be read


def require_label(table: pl.DataFrame, label: str) -> pl.DataFrame:
    """`table`, if every row has a value in the column to learn. Raises UserError."""
    if label not in table.columns:
        raise UserError(f"data.label: the table has no column {label!r}; it has {', '.join(table.columns)}")
    table = table.with_columns(pl.col(label).cast(pl.String))
    empty = table.filter(pl.col(label).is_null() | (pl.col(label) == ""))
    if len(empty):
        raise UserError(
            f"data.label: {len(empty)} of {len(table)} utterances have no {label}, the first is {empty['id'][0]}; "
            f'leave them out with "data.filter=\\"{label} IS NOT NULL\\""'
        )
    return table


def usable(
    table: pl.DataFrame, broken: Sequence[Mapping[str, str]], on_error: str, max_bad_fraction: float
) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """(the rows of `table` that have a length, the others: id, path and reason of each), as on_error allows.

    broken: id and reason of what `prepare` could not read; it has tried the header of every row without a duration.
    """
    if "duration" not in table.columns:
        table = table.with_columns(pl.lit(None, dtype=pl.Float64).alias("duration"))
    bad = table.filter(pl.col("duration").is_null() | pl.col("duration").is_nan() | (pl.col("duration") <= 0))
    if len(bad) == 0:
        return table, []
    reasons = {entry["id"]: entry["reason"] for entry in broken}
    left_out = [
        {"id": name, "path": path, "reason": reasons.get(name, f"{path}: the duration {duration} is no length")}
        for name, path, duration in bad.select("id", "path", "duration").iter_rows()
    ]
    first = left_out[0]
    if on_error == "raise" and first["id"] in reasons:
        raise UserError(
            f"{first['reason']} ({len(bad)} such files; data.on_error=skip leaves them out); once it is mended, "
            "python -m spkexp.prepare … refresh=true reads it again"
        )
    if on_error == "raise":
        raise UserError(f"{first['reason']}; correct the manifest")
    for entry in left_out:
        log.warning("skipped %s: %s", entry["id"], entry["reason"])
    if len(bad) > max_bad_fraction * len(table):
        raise UserError(
            f"{len(bad)} of {len(table)} files cannot be used, more than data.max_bad_fraction={max_bad_fraction}; "
            f"the first is {first['path']}"
        )
    log.warning("skipped %d of %d utterances", len(bad), len(table))
    return table.join(bad.select("id"), on="id", how="anti", maintain_order="left"), left_out


def describe(tables: Mapping[str, pl.DataFrame], label: str) -> str:
    """One line for people: what each split holds."""
    parts = []
    for name in SPLITS:
        table = tables[name]
        if len(table):
            hours = table["duration"].sum() / 3600
            parts.append(f"{name} {len(table):,} utterances of {table[label].n_unique():,} {label}s ({hours:.2f} h)")
    return "; ".join(parts)
