"""Segments of recordings, as an RTTM says them, to embed one by one."""

import logging

import polars as pl

from spkexp.data import rttm
from spkexp.data.look_up import look_up
from spkexp.data.manifest import SEGMENT_RATE
from spkexp.embedding.inputs import Items
from spkexp.embedding.words import counted
from spkexp.errors import UserError

log = logging.getLogger(__name__)


def segments(table: pl.DataFrame, file: str, on_error: str) -> tuple[Items, list[dict[str, str]]]:
    """(the segments of the RTTM `file` in the recordings of `table`, [{id, reason}] of those that are not in them).

    A segment is called `recording/000000`, by its number in the file among those of its recording. Recordings that are
    not in `table` are left out, and what lies behind the end of one is cut off; both are counted in the log. The file
    may call a recording by the last part of its id.
    on_error: raise has the first segment that cannot be had end it all. Raises UserError.
    """
    if "start" in table.columns:
        raise UserError(f"segments={file}: the rows of the manifest are segments already; give one of recordings")
    turns = pl.DataFrame(
        rttm.read(file),
        schema={"name": pl.String, "from": pl.Float64, "to": pl.Float64, "speaker": pl.String},
        orient="row",
    )
    if len(turns) == 0:
        raise UserError(f"segments={file}: holds no segments")
    found = rows_of(turns["name"].unique(maintain_order=True), table, file)
    recordings = table.drop("speaker", strict=False).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    rows = turns.join(found, on="name", how="inner", maintain_order="left")
    rows = rows.join(recordings, on="row", how="left", maintain_order="left").with_columns(recording="id")
    number = pl.int_range(pl.len()).over("recording").cast(pl.String).str.zfill(6)
    rows = rows.with_columns(
        id=pl.concat_str("recording", pl.lit("/"), number),
        length=pl.col("duration"),
        end=pl.min_horizontal("to", "duration"),
    )
    outside = rows["from"] * SEGMENT_RATE >= (rows["length"] * SEGMENT_RATE).floor()
    missing = [
        {"id": name, "reason": f"{file}: a segment begins at {start:g} s, but {recording} ends at {length:.3f} s"}
        for name, recording, start, length in rows.filter(outside)
        .select("id", "recording", "from", "length")
        .iter_rows()
    ]
    if missing and on_error == "raise":
        raise UserError(
            f"{missing[0]['reason']} ({counted(len(missing), 'such segment')} of {len(rows):,}; on_error=skip leaves "
            "them out)"
        )
    rows = rows.filter(~outside)
    if cut := int((rows["to"] > rows["length"]).sum()):
        most = float((rows["to"] - rows["length"]).to_numpy().max())
        log.warning(
            "segments=%s: %s cut off at the end of the recording, by up to %.3f s", file, counted(cut, "segment"), most
        )
    # Samples as Utterances counts them; a segment has one at least.
    begin = (rows["from"] * SEGMENT_RATE).round().cast(pl.Int64)
    end = (rows["end"] * SEGMENT_RATE).round().cast(pl.Int64)
    last = (rows["length"] * SEGMENT_RATE).floor().cast(pl.Int64)
    begin = pl.select(pl.min_horizontal(begin, last - 1)).to_series()
    end = pl.select(pl.max_horizontal(pl.min_horizontal(end, last), begin + 1)).to_series()
    place = [name for name in ("offset", "bytes") if name in rows.columns]
    own = rows.select("id", "path", *place).with_columns(start=begin, duration=(end - begin) / SEGMENT_RATE)
    columns = rows.select("recording", start=pl.col("from"), end=pl.col("end"), speaker=pl.col("speaker"))
    others = [name for name in table.columns if name not in (*own.columns, *columns.columns, "duration")]
    return Items(own, columns.hstack(rows.select(others))), missing


def rows_of(names: pl.Series, table: pl.DataFrame, file: str) -> pl.DataFrame:
    """Columns `name` and `row`: which row of `table` each recording of the RTTM `file` is, but for those of none.

    These are counted in the log. Raises UserError where no others are left.
    """
    found = look_up(names, table["id"], []).select("name", "row")
    own, foreign = found.drop_nulls("row"), found.filter(pl.col("row").is_null())["name"]
    if len(own) == 0:
        raise UserError(
            f"segments={file}: speaks of {foreign[0]}, which is no recording of the input (such as {table['id'][0]}), "
            "and of none that is; name recordings as the input does"
        )
    if len(foreign):
        others = f"{len(foreign):,} of {counted(len(found), 'recording')}"
        such = foreign[0] if len(foreign) == 1 else f"{foreign[0]}, …"
        log.warning("segments=%s: %s left out, not in the input: %s", file, others, such)
    if without := len(table) - own["row"].n_unique():
        log.warning("segments=%s: has none in %s of %s", file, f"{without:,}", counted(len(table), "recording"))
    return own
