"""Any folder of tar shards: ours, webdataset's, WeSpeaker's (`spkexp.data.tar_index` says how they are told apart)."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from spkexp.data.manifest import read_table
from spkexp.data.shards import BLOCK
from spkexp.data.tar_index import index
from spkexp.errors import UserError

log = logging.getLogger(__name__)

INDEX = "manifest.parquet"
THREADS = 8
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shards:
    """The utterances of all tars below a folder, read in place.

    Where manifest.parquet beside them knows every tar and fits it, it is used; else the headers of the tars are read,
    which takes about 50 us an utterance from a local disk (1.1 million: a minute, once: `prepared` keeps the table).
    """

    def sources(self, root: Path) -> list[Path]:
        """The tars, wherever below the root they lie: one that is written anew has other offsets."""
        return [root / INDEX, *map(Path, find_tars(root))]

    def table(self, root: Path) -> pl.DataFrame:
        """One row an utterance: id, path (absolute, of the tar), offset and bytes (of the audio file in it), speaker,
        duration (s, null where unknown) and what else the tars say. Raises UserError that names tar and member.
        """
        tars = find_tars(root)
        found = _from_index(root / INDEX, tars)
        if found is None:
            log.info("%s: reading the headers of %d tars", root, len(tars))
            with ThreadPoolExecutor(THREADS) as pool:  # threads hide the latency of the disk
                found = _checked(pl.concat(pool.map(index, tars), how="diagonal"))
        log.info("%s: %d utterances in %d tars", root, len(found), len(tars))
        return found


def find_tars(root: Path) -> list[str]:
    """The paths of all tars below `root`, sorted. Raises UserError where there are none, or compressed ones."""
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; expected a folder of .tar shards")
    tars: list[str] = []
    compressed: list[str] = []
    for where, folders, files in os.walk(os.path.abspath(root)):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".tar") and not name.startswith("."):
                tars.append(os.path.join(where, name))
            elif name.endswith(COMPRESSED):
                compressed.append(os.path.join(where, name))
    known = {tar.removesuffix(".tar") for tar in tars}
    packed = [name for name in compressed if name[: name.rindex(".tar" if ".tar." in name else ".tgz")] not in known]
    if packed:
        raise UserError(
            f"{packed[0]}: is compressed ({len(packed)} such tars), and nothing can be read from its middle; unpack it "
            f"to a .tar beside it (gzip -d, bzip2 -d, xz -d, zstd -d)"
        )
    if not tars:
        raise UserError(f"data.root={root}: holds no .tar; expected a folder of shards")
    return tars


def _from_index(file: Path, tars: list[str]) -> pl.DataFrame | None:
    """The rows of the index; None, and a line in the log, where it is not of these tars. Raises UserError for a tar
    that it knows and that is gone: without it there would be less data than before, and nobody would know.
    """
    if not file.is_file():
        return None
    table = read_table(file, None)
    if not {"offset", "bytes", "speaker"} <= set(table.columns):
        log.warning("%s: is no index of shards (no offset, bytes and speaker); not used", file)
        return None
    table = table.with_columns(pl.col("offset", "bytes").cast(pl.Int64))
    last = table.sort("offset").group_by("path", maintain_order=True).last()
    missing = sorted(set(last["path"]) - set(tars))
    if missing:
        raise UserError(
            f"{missing[0]}: no such shard, though {file} names it ({len(missing)} such shards); bring it back, or "
            f"remove {file} to use what is left"
        )
    if len(last) != len(tars):
        extra = sorted(set(tars) - set(last["path"]))
        log.warning("%s: does not know %s (%d such tars); not used", file, extra[0], len(extra))
        return None
    for path, offset, size in last.select("path", "offset", "bytes").iter_rows():
        if not _fits(path, offset, size):
            log.warning("%s: does not fit %s, which changed since; not used", file, path)
            return None
    return table


def _fits(path: str, offset: int, size: int) -> bool:
    """Whether a tar has a member of `size` bytes at `offset`: its header says so, and the file is long enough."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = os.pread(descriptor, BLOCK, offset - BLOCK) if offset >= BLOCK else b""
            length = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    except OSError:
        return False
    stated = header[124:135]  # the field for the size: octal digits (POSIX.1-1988); larger than 8 GB: another encoding
    digits = stated.strip(b" \0")
    return header[257:262] == b"ustar" and digits.isdigit() and int(digits, 8) == size and offset + size <= length


def _checked(table: pl.DataFrame) -> pl.DataFrame:
    twice = table.filter(pl.col("id").is_duplicated())
    if len(twice):
        first = twice.filter(pl.col("id") == twice["id"][0])["path"].to_list()
        raise UserError(f"{first[1]}: its utterance {twice['id'][0]!r} is in {first[0]} too; ids must be unique")
    silent = table.filter(pl.col("speaker").is_null())
    # Shards for another task (data.label) may name no speaker at all.
    if len(silent) and (len(silent) < len(table) or len(table.columns) == 6):
        raise UserError(
            f"{silent['path'][0]}: its utterance {silent['id'][0]!r} has no speaker ({len(silent)} of {len(table)}); "
            f"it is expected in its .json ('speaker'), .spk, .cls or .txt (one word)"
        )
    return table
