"""What `python -m spkexp.embed` is to embed: files, a folder of them, a manifest or a list of paths, as one table."""

import hashlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from spkexp.data.corpora.tree import EXTENSIONS, audio_files
from spkexp.data.headers import HeaderParts, read_headers
from spkexp.data.manifest import IN_FOLDER, SEGMENT_RATE, read_table
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError

log = logging.getLogger(__name__)

MANIFESTS = (".csv", ".tsv", ".txt", ".json", ".parquet")
_READ = ("id", "path", "duration", "start", "offset", "bytes")  # columns that say what is read
_THREADS = 8  # hide the latency of a network file system
_ROWS_AT_ONCE = 100_000


@dataclass(frozen=True)
class Items:
    """N stretches of audio: utterances, recordings, or segments of them."""

    rows: pl.DataFrame  # id, path, duration (s), and where they say which part is meant: start, offset, bytes
    columns: pl.DataFrame  # (N rows) what is written beside the embeddings

    @property
    def kind(self) -> str:
        """What one of them is called."""
        return "segment" if "start" in self.rows.columns else "recording"

    def utterances(self) -> Utterances:
        return Utterances.of(self.rows.with_columns(nobody=pl.lit("")), "nobody")


def digest(*tables: pl.DataFrame) -> str:
    """Changes with anything in the tables."""
    found = hashlib.sha256()
    for table in tables:
        for some in table.iter_slices(_ROWS_AT_ONCE):
            text = io.BytesIO()
            some.write_csv(text)
            found.update(text.getvalue())
    return found.hexdigest()[:16]


def state_of(table: pl.DataFrame) -> str:
    """Changes with what is listed, and with the size or the time of any of its files."""
    paths = table["path"].unique(maintain_order=True).to_list()
    return digest(table, pl.DataFrame({"state": _states(paths)}))


def listed(source: str, root: str | None) -> pl.DataFrame:
    """Columns id and path (absolute), and of a manifest its others; a row for everything that `source` names.

    source: an audio file; a folder, searched for audio files; a manifest or a Kaldi folder, as `read_table` reads it;
    or "-", standard input, a path a line. root: data.root of a manifest. Raises UserError.
    """
    place = Path(source).expanduser()
    if source != "-" and not place.exists():
        raise UserError(f"input={source}: no such file or folder; input=- reads a list of paths, one a line")
    is_manifest = place.suffix.lower() in MANIFESTS if place.is_file() else _lists_utterances(place)
    if is_manifest and source != "-":
        return read_table(place, root)
    if root is not None:
        raise UserError(f"data.root: is where the paths of a manifest start, and input={source} is none; leave it out")
    if source == "-":
        names = _lines(sys.stdin.buffer.read())
        paths = [os.path.abspath(os.path.expanduser(name)) for name in names]
    elif place.is_dir():
        names = audio_files(place).to_list()
        paths = [os.path.join(os.path.abspath(place), name) for name in names]
        if not names:
            raise UserError(f"input={source}: no file below it ends in {', '.join(f'.{e}' for e in EXTENSIONS)}")
    else:
        names, paths = [place.name], [os.path.abspath(place)]
    return pl.DataFrame({"id": unique_names(names), "path": paths}, schema={"id": pl.String, "path": pl.String})


def _lists_utterances(folder: Path) -> bool:
    return (folder / IN_FOLDER).is_file() or (folder / "wav.scp").is_file()


def _lines(content: bytes) -> list[str]:
    """The paths of a list, each of them once. Raises UserError with the line."""
    first: dict[str, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            name = line.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"input=-: line {number} is not UTF-8 ({error.reason}); rename the file") from error
        if name in first:
            raise UserError(f"input=-: line {number} names {name} again, after line {first[name]}; list it once")
        if name:
            first[name] = number
    if not first:
        raise UserError("input=-: standard input holds no path; give one a line: find DIR -name '*.wav' | … input=-")
    return list(first)


def unique_names(paths: Sequence[str]) -> list[str]:
    """`paths`, all different, without their extensions; with it those that would be alike without."""
    stems = pl.Series([os.path.splitext(path)[0] for path in paths], dtype=pl.String)
    names = [path if twice else stem for path, stem, twice in zip(paths, stems, stems.is_duplicated(), strict=True)]
    return names if len(set(names)) == len(names) else list(paths)  # `a.wav` beside `a.wav.flac`


def measured(table: pl.DataFrame, kept: Path, state: str, remedy: str) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """(`table` with a `duration` (s) in every row, [{id, reason}] of those left out: no header of theirs can be read).

    kept: the folder where headers that were read are kept, for a call that goes on with the table in the same `state`.
    """
    table, broken = read_headers(table, HeaderParts(kept, state, remedy))
    reasons = {entry["id"]: entry["reason"] for entry in broken}
    length = pl.col("duration")
    usable = length.is_not_null() & length.is_not_nan() & (length > 0)
    left_out = [
        {"id": name, "reason": reasons.get(name, f"{path}: the duration {duration} is no length; correct the manifest")}
        for name, path, duration in table.filter(~usable.fill_null(False)).select("id", "path", "duration").iter_rows()
    ]
    return table.filter(usable.fill_null(False)), left_out


def whole(table: pl.DataFrame) -> Items:
    """Every row of `table` as it is."""
    own = table.select(name for name in _READ if name in table.columns)
    columns = table.drop("path", "start", "stop", "offset", "bytes", "id", strict=False)
    if "start" in table.columns:  # segments of files: where, in seconds
        start = table["start"] / SEGMENT_RATE
        columns = columns.with_columns(start=start, end=start + table["duration"])
    return Items(own, columns)


def _states(paths: Sequence[str]) -> list[str]:
    """Size and time of change of each file."""

    def states(some: Sequence[str]) -> list[str]:
        found = []
        for path in some:
            try:
                status = os.stat(path)
            except OSError as error:  # it is named when it is read
                found.append(str(error.errno))
            else:
                found.append(f"{status.st_size} {status.st_mtime_ns}")
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = [paths[first : first + 256] for first in range(0, len(paths), 256)]
        return [state for some in pool.map(states, chunks) for state in some]
