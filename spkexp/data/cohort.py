"""Cohorts: speakers of the training set and a few utterances of each, that scores are normalised against."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from spkexp.counter import item_keys
from spkexp.data.groups import read_groups, write_groups
from spkexp.errors import UserError


def cohort(
    table: pl.DataFrame, label: str, utterances_per_speaker: int | None, speakers: int | None, seed: int
) -> pl.DataFrame:
    """The rows of `table` that a seed chooses, sorted by speaker and id; None takes all.

    What a speaker gives depends on the seed, its name and its own utterances: other speakers do not change it, and
    of `speakers` + 1 the first `speakers` are those that `speakers` would be. A speaker with fewer
    utterances gives all.
    label: the column that names the speaker. Raises UserError where the table has too few speakers.
    """
    for what, count in (("utterances_per_speaker", utterances_per_speaker), ("speakers", speakers)):
        if count is not None and count < 1:
            raise UserError(f"cohort: {what} must be > 0, got {count}")
    names = table[label].unique().sort()
    if speakers is not None and len(names) < speakers:
        raise UserError(f"cohort: {speakers} speakers are asked for, and the table has {len(names)}")
    codes = np.array([_code(name) for name in names.to_list()], dtype=np.int64)
    people = pl.DataFrame({label: names, "_code": codes, "_order": item_keys(seed, 0, codes)})
    if speakers is not None:
        people = people.sort("_order", label).head(speakers)
    rows = table.join(people, on=label).sort(label, "id")
    if utterances_per_speaker is None:
        return rows.select(table.columns)
    position = rows.select(pl.int_range(pl.len()).over(label)).to_series().to_numpy()
    order = item_keys(seed, 1, position, rows["_code"].to_numpy())
    chosen = rows.with_columns(pl.Series("_order", order)).filter(
        pl.col("_order").rank("ordinal").over(label) <= utterances_per_speaker
    )
    return chosen.select(table.columns)


def _code(name: str) -> int:
    """What stands for the speaker in counters, whoever else there is."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


def write_cohort(
    file: str | Path,
    table: pl.DataFrame,
    label: str,
    utterances_per_speaker: int | None,
    speakers: int | None,
    seed: int,
) -> pl.DataFrame:
    """Choose a cohort, write it as a list of `speaker utterance [utterance ...]`, and return its rows."""
    rows = cohort(table, label, utterances_per_speaker, speakers, seed)
    write_groups(file, rows.select(pl.col(label).alias("name"), pl.col("id").alias("utterance")))
    return rows


def read_cohort(file: str | Path) -> pl.DataFrame:
    """Columns `speaker` and `id` of a cohort list. Raises UserError with file and line."""
    return read_groups(file, "cohort list").select(pl.col("name").alias("speaker"), pl.col("utterance").alias("id"))
