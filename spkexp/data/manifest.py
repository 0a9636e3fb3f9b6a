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
    if source.is_dir():
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
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{source}: cannot be read as {source.suffix[1:]}: {str(error).splitlines()[0]}") from error
    raise UserError(
        f"{source}: unknown kind of manifest; it must end in .csv, .tsv, .json or .parquet, or be a Kaldi folder"
    )


def _read_json(source: Path) -> pl.DataFrame:
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{source}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f'{source}: expected {{"id": {{"wav": …, "length": …, "spk_id": …}}, …}}')
    rows = [
        {"id": name, **{key: None if value is None else str(value) for key, value in entry.items()}}
        for name, entry in entries.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _read_kaldi(folder: Path) -> pl.DataFrame:
    columns = {"path": "wav.scp", "speaker": "utt2spk"}
    tables = []
    for column, name in columns.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder}: a Kaldi folder needs {name}")
        keys, values = [], []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            key, *rest = line.split(maxsplit=1)
            value = rest[0] if rest else ""
            if not value.strip():
                raise UserError(f"{file}:{number}: expected 'UTTERANCE {column.upper()}', got {line!r}")
            if value.rstrip().endswith("|"):
                raise UserError(f"{file}:{number}: is a command; write the audio to files and list those")
            keys.append(key)
            values.append(value.strip())
        tables.append(pl.DataFrame({"id": keys, column: values}))
    merged = tables[0].join(tables[1], on="id", how="left", maintain_order="left")
    missing = merged.filter(pl.col("speaker").is_null())
    if len(missing):
        raise UserError(f"{folder / 'utt2spk'}: has no line for {missing['id'][0]} of wav.scp ({len(missing)} in all)")
    return merged


def _canonical(table: pl.DataFrame, source: Path) -> pl.DataFrame:
    """Our column names and types, an id for every row, no row without a path."""
    if len(table) == 0:
        raise UserError(f"{source}: the manifest has no rows")
    table = table.rename({name: name.strip() for name in table.columns if name != name.strip()})
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
    others = [name for name in table.columns if name not in _NUMBERS]
    table = table.with_columns(pl.col(others).cast(pl.String))
    for name, dtype in _NUMBERS.items():
        if name not in table.columns:
            continue
        numbers = table[name].cast(pl.Float64, strict=False)
        if numbers.null_count() > table[name].null_count():
            row = (table[name].is_not_null() & numbers.is_null()).arg_true()[0]
            raise UserError(f"{source}:{row + 2}: {name} is no number: {table[name][row]!r}")
        table = table.with_columns(numbers.cast(dtype).alias(name))
    if {"start", "stop"} & set(table.columns):
        table = _segments(table, source)
    for name in ("path", "id"):
        empty = (table[name].is_null() | (table[name] == "")).arg_true()
        if len(empty):
            raise UserError(f"{source}:{empty[0] + 2}: {name} is empty")
    # Hashes are compared ten times faster than texts; only where two are equal the texts have to be looked at.
    if table["id"].hash().n_unique() < len(table) and len(twice := table.filter(pl.col("id").is_duplicated())):
        count = twice["id"].n_unique()
        raise UserError(
            f"{source}: id {twice['id'][0]} stands in more than one row ({count} such ids); ids must be unique"
        )
    return table


def _segments(table: pl.DataFrame, source: Path) -> pl.DataFrame:
    """Rows that are segments of files, as SpeechBrain cuts VoxCeleb: start and stop in samples at 16 kHz."""
    if not {"start", "stop"} <= set(table.columns):
        raise UserError(f"{source}: start and stop (in samples) come together; one of the columns is missing")
    known = pl.col("start").is_not_null() & pl.col("stop").is_not_null()
    wrong = table.with_row_index("row", offset=2).filter(
        ~known | (pl.col("start") < 0) | (pl.col("stop") <= pl.col("start"))
    )
    if len(wrong):
        raise UserError(
            f"{source}:{wrong['row'][0]}: start {wrong['start'][0]} and stop {wrong['stop'][0]} are no segment"
        )
    return table.with_columns(((pl.col("stop") - pl.col("start")) / 16_000).alias("duration"))


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
