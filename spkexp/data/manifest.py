"""Tables of utterances: read from the formats people have, and checked.

A table is a polars frame with the columns `id`, `path`, `duration` (s, null where unknown), `speaker`, and any
other.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from spkexp.errors import UserError

# What other toolkits call a column; SpeechBrain: ID, wav, length, spk_id.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "ID", "utterance", "utt"),
    "path": ("path", "wav", "file", "filename"),
    "duration": ("duration", "length"),
    "speaker": ("speaker", "spk_id", "speaker_id", "spk"),
}
_NUMBERS = {"duration": pl.Float64, "start": pl.Int64, "stop": pl.Int64, "offset": pl.Int64, "bytes": pl.Int64}

_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, UnicodeDecodeError, OSError, RecursionError)

# Hz; what start and stop count samples at, whatever the rate of the file.
SEGMENT_RATE = 16_000

# The manifest in a folder that `python -m spkexp.prepare output=FOLDER` writes.
IN_FOLDER = "manifest.parquet"


def read_table(source: str | Path, root: str | Path | None) -> pl.DataFrame:
    """Read a manifest: CSV (or TSV), JSON as SpeechBrain writes it, Parquet, a folder that `spkexp.prepare` wrote, or
    a Kaldi folder.

    root: replaces `{data_root}` in paths, and is where relative paths start; None: the manifest's folder.
    Raises UserError that names the file, and the line or column, and the remedy.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(
            f"{source}: no such manifest; set data.manifest to a CSV, JSON or Parquet file or a Kaldi folder"
        )
    if (source / IN_FOLDER).is_file():
        source = source / IN_FOLDER
    if is_kaldi(source):
        table, base = _read_kaldi(source), Path.cwd()
    else:
        table, base = _read_file(source), source.parent
    table = _canonical(table, source)
    if root is not None and not (base := Path(root).expanduser()).is_dir():
        raise UserError(f"data.root: {base} is no folder")
    base = base.resolve()
    paths = table["path"]
    if paths.str.contains("data_root", literal=True).any():
        for placeholder in ("{data_root}", "$data_root"):
            paths = paths.str.replace_all(placeholder, str(base), literal=True)
    if not (absolute := paths.str.starts_with("/")).all():
        table = table.with_columns(paths, absolute=absolute).with_columns(
            pl.when("absolute").then("path").otherwise(pl.concat_str(pl.lit(f"{base}/"), "path")).alias("path")
        )
        return table.drop("absolute")
    return table.with_columns(paths)


def is_kaldi(source: Path) -> bool:
    """Whether a manifest is a Kaldi folder, whose relative paths start in the current folder."""
    return source.is_dir() and not (source / IN_FOLDER).is_file()


def _read_file(source: Path) -> pl.DataFrame:
    if source.stat().st_size == 0:
        raise UserError(f"{source}: the manifest is empty")
    try:
        match source.suffix.lower():
            case ".csv" | ".tsv" | ".txt":
                separator = "\t" if source.suffix.lower() == ".tsv" else ","
                # Everything is text first: a speaker '00000020' is a name, not the number 20.
                return pl.read_csv(source, separator=separator, infer_schema=False, glob=False)
            case ".json":
                return _read_json(source)
            case ".parquet":
                return pl.read_parquet(source, glob=False)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: cannot be read as {source.suffix[1:]}: {reason}") from error
    raise UserError(
        f"{source}: unknown kind of manifest; it must end in .csv, .tsv, .json or .parquet, or be a Kaldi folder"
    )


def _read_json(source: Path) -> pl.DataFrame:
    try:
        entries = json.loads(_text(source))
    except json.JSONDecodeError as error:
        raise UserError(f"{source}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f'{source}: expected {{"id": {{"wav": …, "length": …, "spk_id": …}}, …}}')
    rows = [
        {"id": name, **{key: None if value is None else str(value) for key, value in entry.items()}}
        for name, entry in entries.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}:{line}: is not UTF-8 ({error.object[error.start]:#x}); write it so, e.g. iconv -f latin1 -t utf-8"
        ) from error


def _read_kaldi(folder: Path) -> pl.DataFrame:
    columns = {"path": "wav.scp", "speaker": "utt2spk"}
    tables = []
    for column, name in columns.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder}: a Kaldi folder needs {name}")
        keys, values = [], []
        for number, line in enumerate(_text(file).splitlines(), 1):
            key, value, *_ = [*line.split(maxsplit=1), "", ""]
            if not value.strip():
                raise UserError(
                    f"{file}:{number}: expected 'UTTERANCE {column.upper()}', got {line!r}; complete or remove the line"
                )
            if value.rstrip().endswith("|"):
                raise UserError(f"{file}:{number}: is a command; write the audio to files and list those")
            keys.append(key)
            values.append(value.strip())
        tables.append(pl.DataFrame({"id": keys, column: values}, schema={"id": pl.String, column: pl.String}))
    merged = tables[0].join(tables[1], on="id", how="left", maintain_order="left")
    missing = merged.filter(pl.col("speaker").is_null())
    if len(missing):
        raise UserError(f"{folder / 'utt2spk'}: has no line for {missing['id'][0]} of wav.scp ({len(missing)} in all)")
    return merged


def _canonical(table: pl.DataFrame, source: Path) -> pl.DataFrame:
    """Our column names and types, an id for every row, no row without a path."""
    if len(table) == 0:
        raise UserError(f"{source}: the manifest has no rows")
    names = [name.strip() for name in table.columns]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: two columns are called {name!r}; rename or remove one of them")
    table.columns = names
    for name, aliases in _ALIASES.items():
        known = [alias for alias in aliases if alias in table.columns]
        if known and name not in table.columns:
            table = table.rename({known[0]: name})
    if "path" not in table.columns:
        raise UserError(
            f"{source}: no column for the audio file; it must be called path or wav, "
            f"and the columns are {', '.join(table.columns)}"
        )
    if "id" not in table.columns:
        table = table.with_columns(pl.col("path").alias("id"))
    table = table.with_columns(_typed(table, name, source) for name in table.columns)
    if {"start", "stop"} & set(table.columns):
        table = _segments(table, source)
    if {"offset", "bytes"} & set(table.columns):
        _check_parts(table, source)
    for name in ("path", "id"):
        empty = (table[name].is_null() | (table[name] == "")).arg_true()
        if len(empty):
            raise UserError(f"{_place(source, table, empty[0])}: {name} is empty")
    # Hashes are compared ten times faster than texts; only where two are equal the texts have to be looked at.
    if table["id"].hash().n_unique() < len(table) and len(twice := table.filter(pl.col("id").is_duplicated())):
        count = twice["id"].n_unique()
        raise UserError(
            f"{source}: id {twice['id'][0]} stands in more than one row ({count} such ids); ids must be unique"
        )
    return table


def _place(source: Path, table: pl.DataFrame, row: int) -> str:
    """Where people find a row: in text its line, else its number and id."""
    if source.suffix.lower() in (".csv", ".tsv", ".txt"):
        return f"{source}:{row + 2}"
    return f"{source}: row {row + 1} (id {table['id'][row]})"


def _typed(table: pl.DataFrame, name: str, source: Path) -> pl.Series:
    """The column as text, or as the kind of number that it must be."""
    column, dtype = table[name], _NUMBERS.get(name, pl.String)
    try:
        if dtype == pl.String:
            return column.cast(pl.String)
        numbers = column.cast(pl.Float64, strict=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{source}: the column {name} holds {column.dtype}, neither text nor numbers; write it so, or leave it out"
        ) from error
    # A length that is NaN falls under data.on_error, later; a place in a file cannot.
    odd = numbers.is_infinite() if dtype == pl.Float64 else ~numbers.is_finite()
    if len(wrong := (column.is_not_null() & (numbers.is_null() | odd)).arg_true()):
        raise UserError(f"{_place(source, table, wrong[0])}: {name} is no number: {column[wrong[0]]!r}")
    if dtype == pl.Int64 and len(wrong := (numbers != numbers.floor()).fill_null(False).arg_true()):
        remedy = f"; it counts samples, seconds x {SEGMENT_RATE:,}" if name in ("start", "stop") else ""
        raise UserError(f"{_place(source, table, wrong[0])}: {name} is no whole number: {column[wrong[0]]!r}{remedy}")
    return numbers.cast(dtype)


def _check_parts(table: pl.DataFrame, source: Path) -> None:
    """Rows whose audio file is a stretch of `path`, a tar shard. Raises UserError."""
    if not {"offset", "bytes"} <= set(table.columns):
        raise UserError(f"{source}: offset and bytes (of a file in a tar) come together; one of the columns is missing")
    offset, size = table["offset"], table["bytes"]
    wrong = ((offset.is_null() != size.is_null()) | (offset < 0) | (size < 1)).fill_null(False).arg_true()
    if len(wrong):
        raise UserError(
            f"{_place(source, table, wrong[0])}: offset {offset[wrong[0]]} and bytes {size[wrong[0]]} are no part of a "
            "file; give both, or neither where the audio is a file of its own"
        )


def _segments(table: pl.DataFrame, source: Path) -> pl.DataFrame:
    """Rows that are segments of files, as SpeechBrain cuts VoxCeleb: start and stop in samples at 16 kHz."""
    if not {"start", "stop"} <= set(table.columns):
        raise UserError(f"{source}: start and stop (in samples) come together; one of the columns is missing")
    start, stop = table["start"], table["stop"]
    wrong = (start.is_null() | stop.is_null() | (start < 0) | (stop <= start)).arg_true()
    if len(wrong):
        raise UserError(
            f"{_place(source, table, wrong[0])}: start {start[wrong[0]]} and stop {stop[wrong[0]]} are no segment; "
            f"they count samples at {SEGMENT_RATE:,} Hz"
        )
    return table.with_columns(((stop - start) / SEGMENT_RATE).alias("duration"))


def filter_table(table: pl.DataFrame, condition: str | None) -> pl.DataFrame:
    """The rows that meet the SQL `condition` on the table's columns, as in data.filter."""
    if condition is None:
        return table
    try:
        kept = pl.SQLContext(frame=table, eager=True).execute(f"SELECT * FROM frame WHERE {condition}")
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"data.filter: {str(error).splitlines()[0]}; it is an SQL condition on the columns "
            f"{', '.join(table.columns)}, e.g. \"speaker != 'x'\""
        ) from error
    if len(kept) == 0:
        raise UserError(f"data.filter: no row of {len(table)} meets {condition!r}")
    return kept
