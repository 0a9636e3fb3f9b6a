"""Scored trials with what is known of either side; as files, they are what comparisons and calibrations start from.

`scores/<trials>.txt` has 'enroll test score label' a line, the label 1 for a target, without it where the list has
none. `scores/<trials>.utterances.csv` has a row for each name: `name`, `model` (whether the name is that of a model of
several utterances), `speaker` (empty where unknown), `path`, `duration` (s), `magnitude` (length of the embedding), and
the columns of the manifest that `scoring.conditions` names.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.whole_file import replacing

# Rows written at once: bounds the memory beside the scores to some tens of MB.
BLOCK = 65_536
SIDES = ".utterances.csv"
_ESCAPED = {"%": "%25", " ": "%20", "\t": "%09", "\n": "%0A", "\r": "%0D"}
RESERVED = ("name", "model", "magnitude", "cohort_mean")  # columns of the tables that no manifest gives
_COLUMNS = ("name", "model", "speaker")
_NUMBERS = ("duration", "magnitude", "cohort_mean")


@dataclass(frozen=True)
class TrialScores:
    """T trials and their scores.

    enrolled, tested: a row for each of the E enrolment and U test names, with the columns `name` and `speaker` (null
    where unknown), and, as far as they are known, `path`, `duration` (s), `magnitude` and others. One and the same
    table where no models are enrolled.
    """

    enrolled: pl.DataFrame
    tested: pl.DataFrame
    enroll: NDArray[np.int64]  # (T,) row of `enrolled`
    test: NDArray[np.int64]  # (T,) row of `tested`
    score: NDArray[np.float32]  # (T,)
    target: NDArray[np.bool_] | None  # (T,) None where the list is blind

    def __len__(self) -> int:
        return len(self.score)

    @cached_property
    def speakers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """(T,) and (T,): who speaks on either side, as places in the sorted names of the trials' speakers.

        The same trials of another system have the same numbers. None where one speaker is not known.
        """
        sides, used = [], []
        for table, rows in ((self.enrolled, self.enroll), (self.tested, self.test)):
            present = np.flatnonzero(np.bincount(rows, minlength=len(table)))
            sides.append(table["speaker"].gather(present).drop_nulls())
            used.append(len(present))
        if [len(side) for side in sides] != used:
            return None
        names = pl.Enum(pl.concat(sides).unique().sort())
        codes = [
            table["speaker"].cast(names, strict=False).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
            for table in (self.enrolled, self.tested)
        ]
        return codes[0][self.enroll], codes[1][self.test]

    def take(self, trials: NDArray[np.bool_] | NDArray[np.int64]) -> "TrialScores":
        """Those of the trials, by mask or number."""
        target = None if self.target is None else self.target[trials]
        return replace(
            self, enroll=self.enroll[trials], test=self.test[trials], score=self.score[trials], target=target
        )

    def write(self, file: Path) -> None:
        """Both files. Blanks in names, which would end a field, are written as in addresses of the web (%20)."""
        shared = self.enrolled is self.tested
        tables = [self.tested] if shared else [self.enrolled, self.tested]
        with replacing(file.with_suffix(SIDES)) as temporary:
            marked = [
                table.select(
                    "name", pl.lit(not shared and table is self.enrolled).alias("model"), pl.exclude("name", "model")
                )
                for table in tables
            ]
            pl.concat(marked, how="diagonal_relaxed").write_csv(temporary)
        enrolled, tested = (_field(table["name"]) for table in (self.enrolled, self.tested))
        with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for start in range(0, len(self), BLOCK):
                block = slice(start, start + BLOCK)
                label = [] if self.target is None else [pl.Series("label", self.target[block]).cast(pl.UInt8)]
                lines = pl.DataFrame(
                    [
                        enrolled.gather(self.enroll[block]).alias("enroll"),
                        tested.gather(self.test[block]).alias("test"),
                        pl.Series("score", self.score[block]),
                        *label,
                    ]
                )
                stream.write(lines.write_csv(include_header=False, separator=" ", quote_style="never"))

    @staticmethod
    def read(file: Path) -> "TrialScores":
        """Of a file without one of the sides beside it, such as another toolkit's, no speaker is known.

        Raises UserError that names the file.
        """
        lines = _read_lines(file)
        names = file.with_suffix(SIDES)
        if not names.is_file():
            found = pl.concat([lines["enroll"], lines["test"]]).unique(maintain_order=True)
            table = pl.DataFrame({"name": found, "speaker": pl.Series([None] * len(found), dtype=pl.String)})
            return _joined(file, lines, table, table)
        try:
            # As text: what looks like a number in the first rows need not be one, and 007 is no 7.
            sides = pl.read_csv(names, infer_schema=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{names}: cannot be read: {str(error).splitlines()[0]}") from error
        if missing := sorted(set(_COLUMNS) - set(sides.columns)):
            raise UserError(f"{names}: has no column {missing[0]!r}; score the run again: python -m spkexp.evaluate")
        numbers = [pl.col(name).cast(pl.Float64) for name in _NUMBERS if name in sides.columns]
        try:
            sides = sides.with_columns(pl.col("model") == "true", *numbers)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{names}: cannot be read: {str(error).splitlines()[0]}") from error
        models = sides["model"].any()
        tested = sides.filter(~pl.col("model")).drop("model")
        return _joined(file, lines, sides.filter("model").drop("model") if models else tested, tested)


def _field(names: pl.Series) -> pl.Series:
    return names.str.replace_many(list(_ESCAPED), list(_ESCAPED.values()))


def _read_lines(file: Path) -> pl.DataFrame:
    """Columns enroll, test, score and, unless the list is blind, label."""
    if not file.is_file():
        raise UserError(f"{file}: no such file of scores; scoring.save_scores=true writes one")
    with file.open(encoding="utf-8", errors="replace") as stream:
        first = stream.readline().rstrip("\r\n")
        fields = len(first.split(" ")) if first else 0
    columns = {"enroll": pl.String, "test": pl.String, "score": pl.Float32, "label": pl.UInt8}
    if fields not in (3, 4):
        raise UserError(f"{file}:1: expected 'enroll test score label' or 'enroll test score'")
    schema = dict(list(columns.items())[:fields])
    try:
        lines = pl.read_csv(file, separator=" ", has_header=False, schema=schema, quote_char=None)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file}: expected 'enroll test score label' a line: {str(error).splitlines()[0]}") from error
    if lines.null_count().sum_horizontal().item():
        wrong = int(lines.select(pl.any_horizontal(pl.all().is_null()).arg_max()).item())
        raise UserError(f"{file}:{wrong + 1}: a field is missing; expected 'enroll test score label' a line")
    names = [
        pl.Series(side, [unquote(name) for name in lines[side]], dtype=pl.String)
        for side in ("enroll", "test")
        if lines[side].str.contains("%", literal=True).any()
    ]
    return lines.with_columns(*names)


def _joined(file: Path, lines: pl.DataFrame, enrolled: pl.DataFrame, tested: pl.DataFrame) -> TrialScores:
    rows = []
    for side, table in (("enroll", enrolled), ("test", tested)):
        places = pl.DataFrame({side: table["name"]}).with_row_index("row")
        found = lines.select(side).join(places, on=side, how="left", maintain_order="left")["row"]
        if len(found) != len(lines) or found.null_count():
            raise UserError(f"{file}: its names are not those of {file.with_suffix(SIDES).name}; score the run again")
        rows.append(found.cast(pl.Int64).to_numpy())
    target = lines["label"].cast(pl.Boolean).to_numpy() if "label" in lines.columns else None
    return TrialScores(enrolled, tested, rows[0], rows[1], lines["score"].to_numpy(), target)
