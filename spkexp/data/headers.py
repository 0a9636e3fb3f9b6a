"""Durations of many files from their headers, in parts that outlive a kill."""

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import polars as pl

from spkexp.bar import Bar
from spkexp.data import audio
from spkexp.data.files import whole, writing
from spkexp.errors import AudioError

log = logging.getLogger(__name__)

# Rows of a part: what a kill costs is at most so many headers, or so many seconds.
PART_ROWS = 20_000
PART_SECONDS = 30.0
CHUNK = 64  # files a task: a task costs more than the header of a wav file
SCHEMA = {"path": pl.String, "offset": pl.Int64, "found": pl.Float64, "reason": pl.String}
KEY = ["path", "offset"]

File = tuple[str, int | None, int | None]  # path, offset and bytes in a shard
Header = tuple[str, int | None, float | None, str | None]  # as in SCHEMA


class HeaderParts:
    """What was read so far of a tree in the state `state`: Parquet files in `folder`.

    Rows are known by their path (and offset in a shard) alone, without size or time of the file: those would cost a
    stat a file, as much as the header of a wav file itself. Instead parts of another state of the tree are thrown
    away, and files that could not be read are tried again.
    """

    def __init__(self, folder: Path, state: str, remedy: str) -> None:
        self.folder, self._state, self._remedy = folder, state, remedy
        self._number = 0

    def read(self) -> pl.DataFrame:
        """Columns as in SCHEMA, of the files whose header could be read."""
        current = self.folder / self._state
        with writing(self.folder, self._remedy):
            if self.folder.exists() and not current.exists():
                shutil.rmtree(self.folder)
            current.mkdir(parents=True, exist_ok=True)
        files = sorted(current.glob("[0-9]*.parquet"))
        self._number = max((int(file.stem) + 1 for file in files), default=0)
        tables = [table for file in files if (table := self._part(file)) is not None]
        return pl.concat([pl.DataFrame(schema=SCHEMA), *tables]).filter(pl.col("found").is_not_null())

    def _part(self, file: Path) -> pl.DataFrame | None:
        """A part; None for one that a crash of the machine left without its content, which is removed."""
        try:
            return pl.read_parquet(file, glob=False, schema=SCHEMA)
        except (OSError, pl.exceptions.PolarsError) as error:
            log.warning("%s: cannot be read (%s); its headers are read again", file, str(error).splitlines()[0])
            with writing(file, self._remedy):
                file.unlink()
            return None

    def append(self, rows: pl.DataFrame) -> None:
        with whole(self.folder / self._state / f"{self._number:06d}.parquet", self.folder, self._remedy) as partial:
            rows.write_parquet(partial)
        self._number += 1

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def read_headers(
    table: pl.DataFrame, parts: HeaderParts, threads: int | None = None
) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """(`table` with the missing durations in seconds, [{id, path, reason}] of the rows that still have none).

    threads: None: as many as there are cores, and at least 8, to hide the latency of a disk. FFmpeg (m4a) and the
    system calls let other threads run; processes were measured no faster for m4a, and wav and flac need neither.
    """
    if "duration" not in table.columns:
        table = table.with_columns(pl.lit(None, dtype=pl.Float64).alias("duration"))
    offset = pl.col("offset") if "offset" in table.columns else pl.lit(None, dtype=pl.Int64).alias("offset")
    size = pl.col("bytes") if "bytes" in table.columns else pl.lit(None, dtype=pl.Int64).alias("bytes")
    wanted = table.filter(pl.col("duration").is_null()).select("path", offset, size).unique(KEY, maintain_order=True)
    if len(wanted) == 0:
        return table, []
    done = parts.read()
    missing = wanted.join(done, on=KEY, how="anti", nulls_equal=True, maintain_order="left")
    collected = [done, *_read_and_keep(missing, len(wanted), parts, threads)]
    known = pl.concat(collected).unique(KEY, keep="last")
    joined = table.with_columns(offset).join(known, on=KEY, how="left", nulls_equal=True, maintain_order="left")
    joined = joined.with_columns(pl.coalesce("duration", "found").alias("duration"))
    broken = joined.filter(pl.col("duration").is_null()).select("id", "path", "reason").to_dicts()
    return joined.select(table.columns), broken


def _read_and_keep(
    missing: pl.DataFrame, total: int, parts: HeaderParts, threads: int | None
) -> Iterator[pl.DataFrame]:
    """The rows of `missing` with what their headers say, part by part, each kept as soon as it is full."""
    rows: list[Header] = []
    first = count = total - len(missing)
    start = kept = time.monotonic()
    try:
        with Bar("header", total, first) as bar:
            for chunk in _chunks(missing, threads or max(8, os.cpu_count() or 1)):
                rows += chunk
                count += len(chunk)
                bar.update(count, f"{(count - first) / (time.monotonic() - start):,.0f} headers/s")
                if len(rows) >= PART_ROWS or time.monotonic() - kept > PART_SECONDS:
                    yield _keep(rows, parts)
                    rows, kept = [], time.monotonic()
    finally:
        if rows:  # the last ones, or what there is at Ctrl-C
            last = _keep(rows, parts)
    if rows:
        yield last


def _keep(rows: list[Header], parts: HeaderParts) -> pl.DataFrame:
    part = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    parts.append(part)
    return part


def _chunks(missing: pl.DataFrame, threads: int) -> Iterator[list[Header]]:
    """Chunks of results in order, a few ahead of what is taken."""
    slices = (missing.slice(i, CHUNK).rows() for i in range(0, len(missing), CHUNK))
    pool = ThreadPoolExecutor(threads)
    try:
        ahead: deque[Future[list[Header]]] = deque(pool.submit(_read, rows) for rows in islice(slices, 4 * threads))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(_read, rows) for rows in islice(slices, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(rows: list[File]) -> list[Header]:
    found: list[Header] = []
    for path, offset, size in rows:
        part = None if offset is None or size is None else (offset, size)
        try:
            found.append((path, offset, audio.info(path, part=part).duration, None))
        except AudioError as error:
            found.append((path, offset, None, str(error)))
    return found
