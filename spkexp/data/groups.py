"""Lists of `NAME utterance [utterance ...]`: the enrolment of models, cohorts, Kaldi's spk2utt."""

import logging
from pathlib import Path

import polars as pl

from spkexp.data.trial_lists import read_lines
from spkexp.errors import UserError
from spkexp.whole_file import replacing

log = logging.getLogger(__name__)


def read_groups(file: str | Path, what: str) -> pl.DataFrame:
    """Columns `name`, `utterance`, `line`: a row for each utterance of each name, in the file's order.

    A name may have several lines. CN-Celeb's enroll.map and enroll.lst and SITW's enroll-core.lst are such lists.
    what: such as 'list of models', for errors. Raises UserError with file and line.
    """
    file = Path(file).expanduser()
    lines = read_lines(file, what)
    words = lines.select("line", pl.col("text").str.extract_all(r"\S+").alias("words"))
    name, rest = pl.col("words").list.first().alias("name"), pl.col("words").list.slice(1)
    wrong = words.filter(pl.col("words").list.len() < 2)
    if len(wrong):
        raise UserError(
            f"{file}:{wrong['line'][0]}: expected 'NAME utterance [utterance ...]', got only {wrong['words'][0][0]!r}"
        )
    rows = words.select(name, rest.alias("utterance"), "line").explode("utterance")
    times = rows.filter(pl.col("utterance").str.contains(r"^\d+\.\d+$"))
    if len(times):
        raise UserError(
            f"{file}:{times['line'][0]}: {times['utterance'][0]!r} is a time, not an utterance; list the segments "
            f"in a manifest, with start and stop in samples, and name them here"
        )
    once = rows.unique(["name", "utterance"], keep="first", maintain_order=True)
    if len(once) < len(rows):
        log.warning("%s: %d utterances repeat one of the same name; each counts once", file, len(rows) - len(once))
    return once


def write_groups(file: str | Path, rows: pl.DataFrame) -> None:
    """Write `rows`, with columns `name` and `utterance`, as one line a name, in their order. Raises UserError.

    The file is there when it is whole.
    """
    file = Path(file)
    for column in ("name", "utterance"):
        wrong = rows.filter(pl.col(column).str.contains(r"\s|^#|^$"))
        if len(wrong):
            raise UserError(f"{file}: {wrong[column][0]!r} cannot stand in a list whose names are parted by blanks")
    lines = rows.group_by("name", maintain_order=True).agg(pl.col("utterance").str.join(" "))
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for name, utterances in lines.iter_rows():
            stream.write(f"{name} {utterances}\n")
