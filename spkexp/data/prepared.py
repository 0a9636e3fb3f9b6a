"""The manifest of a corpus, made once: its table with the durations that the headers of its files say.

Kept in a folder for caches, in a Parquet file and a JSON beside it, which is written last: where both are there and
the JSON is of the tree as it is now, the manifest is loaded and nothing else is looked at.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from spkexp.data.files import whole
from spkexp.data.headers import HeaderParts, read_headers
from spkexp.data.manifest import is_kaldi
from spkexp.data.tree_state import state_of
from spkexp.lock import hold

log = logging.getLogger(__name__)

# Raise this whenever what a manifest holds changes: those made before are then made anew.
FORMAT = 2
# What lists the utterances in a folder that is a manifest.
FOLDER_FILES = ("manifest.parquet", "wav.scp", "utt2spk")
# Listing may itself change the tree (a corpus that downloads), which must then be listed again.
LISTINGS = 3


@dataclass(frozen=True)
class Source:
    """Where a table of utterances comes from.

    name: the beginning of the manifest's file name. identity: what tells sources apart, as JSON holds it.
    state: a text that changes when the source does. listing: the table, from `id` and `path` on, made anew.
    """

    name: str
    identity: dict[str, Any]
    state: Callable[[], str]
    listing: Callable[[], pl.DataFrame]


@dataclass(frozen=True)
class Prepared:
    """A table with a duration (s) wherever the file has a readable header; `file` is None where nothing was kept."""

    table: pl.DataFrame
    file: Path | None
    facts: dict[str, Any]  # what the JSON says


def corpus_source(
    node: Any,
    root: Path,
    listing: Callable[[], pl.DataFrame],
    sources: Callable[[], Iterable[Path]] = tuple,
) -> Source:
    """The tree below `root` as the class that the config's `node` (class and arguments) describes lists it.

    sources: files and other trees that the listing reads as well, or would if they were there.
    """
    root = root.resolve()
    name = node["_target_"].rpartition(".")[2].lower()
    return Source(name, {"corpus": node, "root": str(root)}, lambda: state_of([root, *sources()]), listing)


def manifest_source(manifest: Path, root: Path | None, listing: Callable[[], pl.DataFrame]) -> Source:
    """A file or folder that `read_table` reads."""
    manifest = manifest.resolve()
    if root is None and is_kaldi(manifest):  # its relative paths start where the user stands
        root = Path.cwd()
    identity = {"manifest": str(manifest), "root": None if root is None else str(root.resolve())}

    def state() -> str:
        listed = [manifest / name for name in FOLDER_FILES] if manifest.is_dir() else [manifest]
        return state_of(listed)

    return Source(manifest.stem.lower(), identity, state, listing)


def prepare(source: Source, cache: Path, *, keep: bool, refresh: bool = False, threads: int | None = None) -> Prepared:
    """The table of `source`, from `cache` where it is there and still true, else listed, with durations read.

    keep: write the manifest in any case; otherwise only where headers had to be read for it. refresh: make it anew.
    Of several processes one does the work, and the others wait and load what it made. Killed half way, the next
    call goes on. A header that cannot be read leaves its duration null. What the listing warned of is kept, and said
    again by whoever loads the manifest. Raises UserError.
    """
    file = cache / f"{source.name}-{_digest(source.identity)}.parquet"
    if not refresh and (found := _load(file, source)) is not None:
        log.info("%s: made %s; python -m spkexp.prepare … refresh=true makes it anew", file, found.facts["made"])
        for warning in found.facts["warnings"]:
            log.warning("%s", warning)
        return found
    state, table, warnings = _listing(source)
    if not keep and "duration" in table.columns and not table["duration"].has_nulls():
        return Prepared(table, None, {})
    remedy = "choose another folder with data.cache_dir=…"
    started = time.time_ns()
    with hold(file.with_suffix(".lock"), None, remedy):
        # Another process may have finished while this one waited.
        found = _load(file, source, silent=True)
        if found is not None and (not refresh or file.with_suffix(".json").stat().st_mtime_ns > started):
            return found
        start = time.monotonic()
        # What a killed call left is taken up, but by a refresh only what another refresh left.
        parts = HeaderParts(file.with_suffix(".parts"), _digest([FORMAT, state, refresh]), remedy)
        table, broken = read_headers(table, parts, threads)
        facts = {
            "format": FORMAT,
            "spkexp": version("spkexp"),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            **source.identity,
            "state": state,
            **summary(table),
            "broken": broken,
            "warnings": warnings,
        }
        with whole(file, parts.folder, remedy) as partial:
            table.write_parquet(partial, compression="zstd")
        write_json(file.with_suffix(".json"), facts, parts.folder, remedy)
        parts.remove()
        log.info("%s: %s utterances in %.1f s", file, f"{len(table):,}", time.monotonic() - start)
        return Prepared(table, file, facts)


def summary(table: pl.DataFrame) -> dict[str, Any]:
    """Utterances, speakers and hours in all and of each split; hours of those whose duration is known."""

    def counts(rows: pl.DataFrame) -> dict[str, Any]:
        speakers = {"speakers": rows["speaker"].n_unique()} if "speaker" in rows.columns else {}
        return {"utterances": len(rows), **speakers, "hours": round((rows["duration"].sum() or 0) / 3600, 4)}

    splits = {}
    if "split" in table.columns:
        splits = {str(name): counts(rows) for (name,), rows in table.group_by("split", maintain_order=True)}
    return {**counts(table), "splits": splits}


def write_json(file: Path, facts: dict[str, Any], temporary: Path, remedy: str) -> None:
    """`facts` as the JSON file `file`; for `temporary` and `remedy` see `whole`."""
    with whole(file, temporary, remedy) as partial:
        partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _listing(source: Source) -> tuple[str, pl.DataFrame, list[str]]:
    """(the state of the source that the table is of, the table, what the log warned of meanwhile)."""
    state = source.state()
    for _ in range(LISTINGS):
        with _warnings() as warnings:
            table = source.listing()
        before, state = state, source.state()
        if state == before:
            break
    # A tree that still changes keeps the older state, so that the next call lists it again.
    return before, table, warnings


class _Collector(logging.Handler):
    """Appends the text of each warning to a list."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the package's log warns of in here; it is logged all the same."""
    found: list[str] = []
    handler = _Collector(found)
    package = logging.getLogger("spkexp.data")
    package.addHandler(handler)
    try:
        yield found
    finally:
        package.removeHandler(handler)


def _load(file: Path, source: Source, silent: bool = False) -> Prepared | None:
    """The manifest, if it is whole and of the source as it is now."""
    beside = file.with_suffix(".json")
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        made_by = (facts["format"], facts["spkexp"])
        why = None if made_by == (FORMAT, version("spkexp")) else "was made by another version of spkexp"
        if why is None and facts["state"] != source.state():
            why = "is older than the last change of what it lists"
        if why is None:
            return Prepared(pl.read_parquet(file, glob=False), file, facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        why = f"cannot be read ({str(error).splitlines()[0]})"
    if not silent:
        log.info("%s %s; making it anew", file, why)
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
