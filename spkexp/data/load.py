"""From what the config says about data to utterances and trials, everything checked."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from spkexp.data import audio
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


def with_durations(table: pl.DataFrame, on_error: str, max_bad_fraction: float) -> pl.DataFrame:
    """`table` with missing durations read from the files' headers; rows whose file is broken fall under on_error."""
    if "duration" not in table.columns:
        table = table.with_columns(pl.lit(None, dtype=pl.Float64).alias("duration"))
    unknown = table["duration"].is_null()
    if unknown.any():
        paths = table.filter(unknown)["path"]
        measured = pl.Series(audio.durations(paths.to_list()), dtype=pl.Float64)
        found = dict(zip(paths, measured, strict=True))
        filled = table["path"].replace_strict(found, default=None, return_dtype=pl.Float64)
        table = table.with_columns(pl.coalesce("duration", filled).alias("duration"))
    bad = table.filter(pl.col("duration").is_null() | pl.col("duration").is_nan() | (pl.col("duration") <= 0))
    if len(bad) == 0:
        return table
    if on_error == "raise":
        try:
            audio.info(bad["path"][0])
        except UserError as error:
            raise UserError(f"{error} ({len(bad)} such files; data.on_error=skip leaves them out)") from error
        raise UserError(f"{bad['path'][0]}: the duration {bad['duration'][0]} is no length; correct the manifest")
    for name, path in bad.select("id", "path").iter_rows():
        log.warning("skipped %s: no usable audio in %s", name, path)
    if len(bad) > max_bad_fraction * len(table):
        raise UserError(
            f"{len(bad)} of {len(table)} files cannot be used, more than data.max_bad_fraction={max_bad_fraction}; "
            f"the first is {bad['path'][0]}"
        )
    log.warning("skipped %d of %d utterances", len(bad), len(table))
    return table.join(bad.select("id"), on="id", how="anti", maintain_order="left")


def describe(tables: Mapping[str, pl.DataFrame], label: str) -> str:
    """One line for people: what each split holds."""
    parts = []
    for name in SPLITS:
        table = tables[name]
        if len(table):
            hours = table["duration"].sum() / 3600
            parts.append(f"{name} {len(table):,} utterances of {table[label].n_unique():,} {label}s ({hours:.2f} h)")
    return "; ".join(parts)
