"""What a table of utterances says about its corpus by itself: counts, hours, durations, utterances per class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.data.classes import SPEAKER
from spkexp.data.levels import Sample
from spkexp.data.quantiles import quantiles


@dataclass(frozen=True)
class Group:
    """The utterances of a split, N of them of C classes of the label."""

    speakers: int | None  # None where the table does not say who speaks
    seconds: NDArray[np.float64]  # (N,) durations
    utterances_per_class: NDArray[np.int64]  # (C,)
    seconds_per_class: NDArray[np.float64]  # (C,)

    @staticmethod
    def of(table: pl.DataFrame, label: str) -> "Group":
        classes = table.group_by(label).agg(pl.len().cast(pl.Int64).alias("number"), pl.col("duration").sum())
        speakers = table[SPEAKER].drop_nulls().n_unique() if SPEAKER in table.columns else None
        return Group(
            speakers,
            table["duration"].to_numpy(),
            classes["number"].to_numpy(),
            classes["duration"].to_numpy(),
        )

    @property
    def hours(self) -> float:
        return float(self.seconds.sum()) / 3600

    def facts(self, crop_seconds: float | None) -> dict[str, Any]:
        """As JSON holds them. `shorter_than_crop` counts utterances; null where training takes whole ones."""
        shorter = None if crop_seconds is None else int((self.seconds < crop_seconds).sum())
        return {
            "utterances": len(self.seconds),
            "speakers": self.speakers,
            "classes": len(self.utterances_per_class),
            "hours": round(self.hours, 4),
            "shorter_than_crop": shorter,
            "seconds": quantiles(self.seconds),
            "utterances_per_class": quantiles(self.utterances_per_class),
            "seconds_per_class": quantiles(self.seconds_per_class),
        }


def shared_speakers(tables: Mapping[str, pl.DataFrame]) -> int | None:
    """Speakers with utterances in more than one of the tables; None where one does not say who speaks."""
    if not all(SPEAKER in table.columns for table in tables.values()):
        return None
    names = pl.concat([table[SPEAKER].drop_nulls().unique() for table in tables.values()])
    return int(names.value_counts()["count"].gt(1).sum())


def extensions(table: pl.DataFrame) -> dict[str, int]:
    """Utterances by how the name of their file ends, in small letters, the most frequent first; of a shard: tar."""
    found = table["path"].str.extract(r"\.([^./]+)$").str.to_lowercase().fill_null("")
    counts = found.alias("extension").value_counts().sort(["count", "extension"], descending=[True, False])
    return dict(zip(counts["extension"].to_list(), counts["count"].to_list(), strict=True))


@dataclass(frozen=True)
class Description:
    """What a table says of its corpus; `splits` by name, in the order of training, none of them empty."""

    data: str
    label: str  # the column to learn
    crop_seconds: float | None
    splits: dict[str, Group]
    all: Group
    shared_speakers: int | None
    extensions: dict[str, int]
    skipped: int  # rows left out, for a file whose header cannot be read

    def facts(self, sample: Sample | None) -> dict[str, Any]:
        """What description.json holds."""
        return {
            "data": self.data,
            "label": self.label,
            "crop_seconds": self.crop_seconds,
            "extensions": self.extensions,
            "skipped": self.skipped,
            "speakers_in_several_splits": self.shared_speakers,
            "splits": {name: group.facts(self.crop_seconds) for name, group in self.splits.items()},
            "all": self.all.facts(self.crop_seconds),
            "sample": None if sample is None else sample.facts(),
        }


def describe_table(
    data: str, tables: Mapping[str, pl.DataFrame], label: str, crop_seconds: float | None, skipped: int
) -> Description:
    """tables: by split, with a duration and a label in every row. data: how people call the corpus."""
    everything = pl.concat(tables.values())
    return Description(
        data=data,
        label=label,
        crop_seconds=crop_seconds,
        splits={name: Group.of(table, label) for name, table in tables.items()},
        all=Group.of(everything, label),
        shared_speakers=shared_speakers(tables),
        extensions=extensions(everything),
        skipped=skipped,
    )
