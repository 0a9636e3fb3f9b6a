"""Copy what a table refers to onto the node's own disk before training: data.stage_dir.

The copy of /corpora/vox/shard-000000.tar is STAGE_DIR/corpora/vox/shard-000000.tar: the whole path of the source, so
that two sources never meet and every run finds what an earlier one copied, also where it uses other utterances. A
copy has the time of its source, and counts as whole if size and time agree; it gets its name when it is complete.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import polars as pl

from spkexp.bar import Bar
from spkexp.data.files import writing
from spkexp.errors import AudioError, UserError
from spkexp.lock import hold

log = logging.getLogger(__name__)

THREADS = 8  # copies at a time: a network filesystem gives one stream only a part of what it can
BLOCK_BYTES = 8 << 20
CHUNK = 256  # files a task, for what is quicker than a task
BATCH = 8192  # copies given to the threads at once: what waits there takes memory
TIME_SLACK_NS = 2 * 10**9  # what filesystems round times to, at most
REMEDY = "make room or choose another data.stage_dir, or none with data.stage_dir=null"


class _Copy(NamedTuple):
    source: str
    target: str
    bytes: int
    changed: int  # time of the source's last change, ns


class _Failure(NamedTuple):
    source: str
    error: AudioError


def staged(table: pl.DataFrame, stage_dir: Path, on_error: str = "raise") -> pl.DataFrame:
    """`table` with its `path` below `stage_dir`, and there what was at the paths: shards or single files.

    Of several processes on a node one copies and the others wait; each calls this. What is there already is kept, so
    that a call goes on where a killed one stopped. Raises UserError if the disk is too small (before anything is
    copied) or may not be written, and AudioError for a source that is gone or shrinks: with on_error=skip that one
    keeps its path, and a line in the log names it.
    """
    sources = table["path"].unique(maintain_order=True).to_list()
    targets = stage(sources, stage_dir, on_error)
    known = pl.DataFrame({"path": sources, "staged": targets}, schema={"path": pl.String, "staged": pl.String})
    joined = table.join(known, on="path", how="left", maintain_order="left")
    return joined.with_columns(pl.col("staged").alias("path")).select(table.columns)


def stage(paths: Sequence[str], stage_dir: Path, on_error: str = "raise") -> list[str]:
    """The paths of the copies of `paths`, in their order; see `staged`. What lies below `stage_dir` stays there."""
    base = os.path.abspath(stage_dir.expanduser())
    sources = [os.path.abspath(path) for path in paths]
    outside = {source: base.rstrip("/") + source for source in sources if not source.startswith(f"{base}/")}
    asked = time.time_ns()
    work = Path(base) / ".spkexp-staging"
    digest = hashlib.sha256("\0".join(sorted(outside)).encode(errors="surrogateescape")).hexdigest()[:16]
    done = work / f"{digest}.done"
    with hold(work / "lock", None, REMEDY):
        # Where another process finished the same while this one waited, there is nothing to look after.
        if not (done.exists() and done.stat().st_mtime_ns > asked):
            failed = _provide(outside, Path(base), work, on_error)
            with writing(done, REMEDY):
                done.write_text(json.dumps(failed))
        for source in json.loads(done.read_text()):
            del outside[source]
    return [outside.get(source, source) for source in sources]


def _provide(targets: dict[str, str], base: Path, work: Path, on_error: str) -> list[str]:
    """Copy what is missing; the sources that failed, which is only with on_error=skip. `work` is a folder on the disk
    of the copies for those that grow. Call under the lock."""
    items = list(targets.items())
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = [copy for chunk in pool.map(_missing, chunks) for copy in chunk]
    failed = [_left(failure, on_error) for failure in found if isinstance(failure, _Failure)]
    missing = [copy for copy in found if isinstance(copy, _Copy)]
    if not missing:
        log.info("%s: all %d files are there already", base, len(items) - len(failed))
        return failed
    growing = work / "growing"
    shutil.rmtree(growing, ignore_errors=True)  # of a process that was killed
    needed = sum(copy.bytes for copy in missing)
    with writing(growing, REMEDY):
        growing.mkdir(parents=True)
        free = shutil.disk_usage(base).free
    if needed > free:
        raise UserError(
            f"data.stage_dir={base}: {needed / 1e9:.2f} GB are needed for {len(missing)} files, "
            f"{free / 1e9:.2f} GB are free; {REMEDY}"
        )
    log.info("copying %d of %d files (%.2f GB) to %s", len(missing), len(items), needed / 1e9, base)
    start, count = time.monotonic(), 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        with Bar("staging: MB", round(needed / 1e6)) as bar:
            for first in range(0, len(missing), BATCH):
                numbers = range(first, min(first + BATCH, len(missing)))
                for size in pool.map(lambda number: _copied(missing[number], growing / str(number)), numbers):
                    if isinstance(size, _Failure):
                        failed.append(_left(size, on_error))
                        continue
                    count += size
                    bar.update(round(count / 1e6), f"{count / 1e6 / (time.monotonic() - start):.0f} MB/s")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(growing, ignore_errors=True)
    log.info("staged %.2f GB in %.0f s", count / 1e9, time.monotonic() - start)
    return failed


def _left(failure: _Failure, on_error: str) -> str:
    """The source that failed, if it may."""
    if on_error == "raise":
        raise failure.error
    log.warning("left where it is: %s", failure.error)
    return failure.source


def _missing(chunk: Sequence[tuple[str, str]]) -> list[_Copy | _Failure]:
    """Those of (source, target) whose target is not a whole copy."""
    found: list[_Copy | _Failure] = []
    for source, target in chunk:
        try:
            status = os.stat(source)
        except OSError as error:
            found.append(_Failure(source, _unstaged(source, error)))
            continue
        if not _is_copy(target, status):
            found.append(_Copy(source, target, status.st_size, status.st_mtime_ns))
    return found


def _is_copy(target: str, source: os.stat_result) -> bool:
    try:
        copied = os.stat(target)
    except OSError:
        return False
    same_time = abs(copied.st_mtime_ns - source.st_mtime_ns) <= TIME_SLACK_NS
    return copied.st_size == source.st_size and same_time


def _unstaged(source: str, error: OSError) -> AudioError:
    return AudioError(f"{source}: cannot be staged: {error.strerror}; check data.root")


def _copied(copy: _Copy, growing: Path) -> int | _Failure:
    try:
        return _copy(copy, growing)
    except AudioError as error:
        return _Failure(copy.source, error)


def _copy(copy: _Copy, growing: Path) -> int:
    """Copy a file by way of the name `growing`. Returns its size in bytes."""
    count = 0
    try:
        source = open(copy.source, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _unstaged(copy.source, error) from None
    with source, writing(Path(copy.target), REMEDY), growing.open("wb", buffering=0) as target:
        while block := _read(copy.source, source.fileno()):
            rest = memoryview(block)
            while rest:
                rest = rest[target.write(rest) :]
            count += len(block)
    if count != copy.bytes:
        raise AudioError(
            f"{copy.source}: changed while it was copied, from {copy.bytes} to {count} bytes; run the command again"
        )
    with writing(Path(copy.target), REMEDY):
        os.utime(growing, ns=(copy.changed, copy.changed))
        os.makedirs(os.path.dirname(copy.target), exist_ok=True)
        os.replace(growing, copy.target)
    return count


def _read(path: str, descriptor: int) -> bytes:
    try:
        return os.read(descriptor, BLOCK_BYTES)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror}") from None
