"""A table of utterances converted into a folder: files or shards, and a manifest with paths relative to it."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from spkexp.bar import Bar
from spkexp.counter import item_keys
from spkexp.data import audio
from spkexp.data.convert import REMEDY, Conversion, Outcome, Utterance, convert_to_bytes, convert_to_files, is_newer
from spkexp.data.files import whole, writing
from spkexp.data.manifest import IN_FOLDER, SEGMENT_RATE
from spkexp.data.prepared import summary, write_json
from spkexp.data.shards import ShardWriter
from spkexp.data.workers import in_processes
from spkexp.errors import UserError
from spkexp.lock import hold

log = logging.getLogger(__name__)

FACTS = "prepare.json"
CLIPPED = "clipped.txt"  # an id a line
TEMPORARY = ".partial"
BATCH = 8  # utterances a task
# Columns that say where the audio lies, which conversion makes anew.
PLACE = ("path", "duration", "start", "stop", "offset", "bytes")


@dataclass(frozen=True)
class Order:
    """What to convert, and where to. pack_bytes: size of a shard, None for a file each. identity: of the source."""

    table: pl.DataFrame
    identity: dict[str, Any]
    conversion: Conversion
    output: Path
    pack_bytes: int | None
    workers: int
    on_error: str
    max_bad_fraction: float
    left_out: Sequence[dict[str, str]] = ()  # rows that were unusable before: id, path, reason


class _Row(NamedTuple):
    """Where row `number` of the table lies now, relative to the output; the last two only in a shard."""

    number: int
    path: str
    frames: int
    offset: int | None = None
    size: int | None = None


def convert_table(order: Order) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(the manifest, what prepare.json says) of the converted utterances, with absolute paths.

    What an earlier call left in the folder is kept, if it was of the same source and settings. Raises UserError for
    a folder of other settings, for a disk that is full or may not be written, and as on_error says for bad files.
    """
    output = order.output
    with hold(output / ".prepare.lock", None, REMEDY):
        settings = {
            **asdict(order.conversion),
            "packed": order.pack_bytes is not None,
            "source": order.identity,
        }
        _require_same_settings(output / FACTS, settings)
        _require_own(output)
        temporary = output / TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)  # of a call that was killed
        write_json(output / FACTS, {"settings": settings}, temporary, REMEDY)
        losses = _Losses(order)
        rows = list(_to_files(order, losses) if order.pack_bytes is None else _to_shards(order, losses))
        if not rows:
            raise UserError(f"{output}: none of {len(order.table)} utterances could be converted")
        table = _manifest(order, rows)
        with whole(output / IN_FOLDER, temporary, REMEDY) as file:
            table.write_parquet(file, compression="zstd")
        facts = {
            "spkexp": version("spkexp"),
            "settings": settings,
            **summary(table),
            "clipped": losses.clipped(),
            "broken": [*order.left_out, *losses.broken],
        }
        write_json(output / FACTS, facts, temporary, REMEDY)
        shutil.rmtree(temporary, ignore_errors=True)
    return table, facts


class _Losses:
    """What could not be converted, and what went beyond full scale."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.broken: list[dict[str, str]] = []
        self._clipped = order.output / CLIPPED

    def clipped(self) -> int:
        """How many were clipped, by an earlier call or now."""
        ids = self._clipped.read_text(encoding="utf-8").splitlines() if self._clipped.exists() else []
        return len(set(ids) & set(self._order.table["id"]))

    def count(self, name: str, path: str, outcome: Outcome) -> bool:
        """Whether the outcome is of use. Raises UserError as data.on_error and data.max_bad_fraction say."""
        if outcome.clipped:
            with writing(self._clipped, REMEDY), self._clipped.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
        if outcome.error is None:
            return True
        if self._order.on_error == "raise":
            raise UserError(f"{outcome.error} (data.on_error=skip leaves it out; what is converted is kept)")
        self.broken.append({"id": name, "path": path, "reason": outcome.error})
        log.warning("skipped %s: %s", name, outcome.error)
        if len(self.broken) > self._order.max_bad_fraction * len(self._order.table):
            raise UserError(
                f"{len(self.broken)} of {len(self._order.table)} files cannot be used, more than "
                f"data.max_bad_fraction={self._order.max_bad_fraction}; the first is {self.broken[0]['path']}"
            )
        return False


def _to_files(order: Order, losses: _Losses) -> Iterator[_Row]:
    names = file_names(order.table, order.conversion.format)
    work = partial(_convert_batch_to_files, order.output, order.conversion)
    utterances = list(_utterances(order))
    tasks = ((utterances[i : i + BATCH], names[i : i + BATCH]) for i in range(0, len(names), BATCH))
    for index, outcome in _shown(in_processes(work, tasks, order.workers), len(names)):
        if losses.count(order.table["id"][index], utterances[index].path, outcome):
            yield _Row(index, names[index], outcome.frames)


def _to_shards(order: Order, losses: _Losses) -> Iterator[_Row]:
    """In an order drawn once, so that a shard mixes speakers; complete shards of an earlier call are kept."""
    assert order.pack_bytes is not None
    ids = order.table["id"].to_list()
    index_of = {name: index for index, name in enumerate(ids)}
    finished = ShardWriter.finished(order.output)
    done = finished.filter(pl.col("id").is_in(index_of.keys()))
    yield from _placed(order, done, index_of)
    kept = set(done["id"])
    source_of = dict(zip(ids, order.table["path"].to_list(), strict=True))
    for name, path in done.select("id", "path").iter_rows():
        if is_newer(source_of[name], order.output / path):
            raise UserError(
                f"{source_of[name]}: changed after it went into {order.output / path}, which is not written anew; "
                "remove that shard, or choose another folder with output=…"
            )
    shuffled = np.argsort(item_keys(0, 0, np.arange(len(ids))), kind="stable").tolist()
    todo = [index for index in shuffled if ids[index] not in kept]
    utterances = list(_utterances(order))
    tasks = ([utterances[i] for i in todo[first : first + BATCH]] for first in range(0, len(todo), BATCH))
    work = partial(convert_to_bytes, conversion=order.conversion)
    frames: dict[str, int] = {}
    with ShardWriter(order.output, order.pack_bytes) as writer:
        for position, outcome in _shown(in_processes(work, tasks, order.workers), len(ids), len(kept)):
            name = ids[todo[position]]
            if losses.count(name, utterances[todo[position]].path, outcome) and outcome.data is not None:
                writer.add(name, order.conversion.format, outcome.data, _labels(order.table, todo[position]))
                frames[name] = outcome.frames
    written = writer.table().filter(~pl.col("id").is_in(kept))
    for name, path, offset, size in written.select("id", "path", "offset", "bytes").iter_rows():
        yield _Row(index_of[name], path, frames[name], offset, size)


def _placed(order: Order, done: pl.DataFrame, index_of: dict[str, int]) -> Iterator[_Row]:
    """Rows of what complete shards hold; how long they are their headers say."""
    for name, path, offset, size in done.select("id", "path", "offset", "bytes").iter_rows():
        info = audio.info(order.output / path, (offset, size))
        yield _Row(index_of[name], path, info.frames, offset, size)


def _labels(table: pl.DataFrame, index: int) -> dict[str, Any]:
    return {name: value for name, value in table.row(index, named=True).items() if name not in PLACE}


def _convert_batch_to_files(
    output: Path, conversion: Conversion, task: tuple[list[Utterance], list[str]]
) -> list[Outcome]:
    utterances, names = task
    return convert_to_files(utterances, [output / name for name in names], output / TEMPORARY, conversion)


def _shown(batches: Iterator[list[Outcome]], total: int, first: int = 0) -> Iterator[tuple[int, Outcome]]:
    """(position, outcome) of each utterance in turn, with a progress bar."""
    position, start = 0, time.monotonic()
    with Bar("utterance", total, first) as bar:
        for batch in batches:
            for outcome in batch:
                yield position, outcome
                position += 1
            bar.update(first + position, f"{position / (time.monotonic() - start):,.0f} utterances/s")


def _utterances(order: Order) -> Iterator[Utterance]:
    table, rate = order.table, order.conversion.sample_rate
    columns = [table[name].to_list() if name in table.columns else [None] * len(table) for name in PLACE]
    for path, duration, start, _, offset, size in zip(*columns, strict=True):
        part = None if offset is None or size is None else (offset, size)
        yield Utterance(
            path, part, None if start is None else (round(start * rate / SEGMENT_RATE), round(duration * rate))
        )


def file_names(table: pl.DataFrame, suffix: str) -> list[str]:
    """A path of its own for each row, below a folder of the kind of file: SPEAKER/ID, or ID where that begins so.
    Raises UserError where two ids would become one path."""
    speakers = table["speaker"].to_list() if "speaker" in table.columns else [None] * len(table)
    names = []
    for name, speaker in zip(table["id"].to_list(), speakers, strict=True):
        folder = [] if not speaker or name.startswith(f"{speaker}/") else [speaker.replace("/", "%2F")]
        parts = [_safe(part) for part in [*folder, *name.split("/")]]
        names.append("/".join([suffix, *parts]) + f".{suffix}")
    named = pl.DataFrame({"id": table["id"], "name": names})
    twice = named.filter(pl.col("name").is_duplicated()).sort("name")
    if len(twice):
        raise UserError(
            f"{twice['id'][0]} and {twice['id'][1]} would both be written to {twice['name'][0]}; "
            "rename one of them, or pack them with pack_mb=512"
        )
    return names


def _safe(part: str) -> str:
    """A part of a path that is no step upward; different parts stay different."""
    part = part.replace("%", "%25").replace("\0", "%00") or "%"
    return part.replace(".", "%2E") if part.strip(".") == "" else part


def _manifest(order: Order, rows: list[_Row]) -> pl.DataFrame:
    """The rows' labels and places, in the order of the table."""
    rows.sort()
    schema = {"number": pl.UInt32, "path": pl.String, "frames": pl.Int64, "offset": pl.Int64, "bytes": pl.Int64}
    places = pl.DataFrame(rows, schema=schema, orient="row")
    labels = order.table.drop([name for name in PLACE if name in order.table.columns])[places["number"]]
    place = places.select("path", (pl.col("frames") / order.conversion.sample_rate).alias("duration"))
    if order.pack_bytes is not None:
        place = place.hstack(places.select("offset", "bytes"))
    return pl.concat([labels.select("id"), place, labels.drop("id")], how="horizontal")


def _require_own(output: Path) -> None:
    """Raise UserError for audio that no conversion has put there: it would count as converted."""
    if (output / FACTS).exists():
        return
    found = [output / name for name in ("wav", "flac") if (output / name).is_dir()] + sorted(output.glob("shard-*.tar"))
    if found:
        raise UserError(
            f"{found[0]}: is there already, and not by a conversion (no {FACTS} beside it); choose another folder "
            "with output=…"
        )


def _require_same_settings(file: Path, settings: dict[str, Any]) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove the folder or choose another output=…") from None
    different = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if different:
        key = different[0]
        raise UserError(
            f"{file.parent}: holds a conversion with {key}={before.get(key)}, and now it is {settings.get(key)}; "
            "choose another folder with output=…, or remove this one"
        )
