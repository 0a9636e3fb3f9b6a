"""Write utterances into tar shards: few large files instead of millions of small ones, for network filesystems.

A shard is a plain tar that `tar` and webdataset read as well: of every utterance KEY.wav (or .flac, …) and KEY.json
with its labels, its id among them. KEY is the id, escaped by `tar_index.member_key`. A shard grows under a hidden name
and gets its own when it is complete, so that a kill costs one shard.
"""

import io
import json
import math
import os
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl

from spkexp.data.files import writing
from spkexp.data.tar_index import AUDIO, index, member_key
from spkexp.errors import UserError

NAME = re.compile(r"shard-(\d{6,})\.tar")
BLOCK = 512
END = bytes(2 * BLOCK)
REMEDY = "make room or choose another folder, and run the command again to go on"
SCHEMA = {"id": pl.String, "path": pl.String, "offset": pl.Int64, "bytes": pl.Int64}


class ShardWriter:
    """Shards of at most `max_bytes` each below `folder`, after the complete ones that are already there.

    An utterance that is larger has a shard of its own. One process at a time writes to a folder. Raises UserError
    where the disk is full or the folder may not be written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be > 0, got {max_bytes}")
        self.folder, self.max_bytes = folder, max_bytes
        with writing(self.folder, REMEDY):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".shard-*.tar.partial"):  # by a run that was killed
                left.unlink()
        earlier = self.finished(folder)
        self._earlier = earlier
        self._ids = set(earlier["id"])
        self._rows: list[tuple[str, str, int, int]] = []
        self._number = max((int(NAME.fullmatch(name)[1]) + 1 for name in _shards(folder)), default=0)  # type: ignore[index]
        self._file: io.BufferedWriter | None = None
        self._size = 0

    @staticmethod
    def finished(folder: Path) -> pl.DataFrame:
        """What the complete shards below `folder` hold: id, path (relative to it), offset, bytes. Raises UserError
        for a shard that is broken.
        """
        tables = []
        for name in _shards(folder):
            table = index(str(folder / name)).select("id", pl.lit(name).alias("path"), "offset", "bytes")
            tables.append(table)
        return pl.concat(tables) if tables else pl.DataFrame(schema=SCHEMA)

    def __contains__(self, utterance: str) -> bool:
        """Whether an utterance is in a shard, perhaps since an earlier run."""
        return utterance in self._ids

    def add(self, id: str, suffix: str, data: bytes, meta: dict[str, Any]) -> None:
        """Append an audio file (`suffix` without dot: wav) and its labels; those that are None are left out."""
        if suffix not in AUDIO:
            raise ValueError(f"{id}: expected a suffix of {', '.join(AUDIO)}, got {suffix!r}")
        if not id or id in self._ids:
            raise UserError(f"{self.folder}: the id {id!r} is empty, or in a shard already; ids must be unique")
        key = member_key(id)
        known = {name: value for name, value in meta.items() if value is not None and not _is_nan(value)}
        labels = json.dumps({**known, "id": id}, ensure_ascii=False, allow_nan=False).encode()
        head, tail = _header(f"{key}.{suffix}", len(data)), _member(f"{key}.json", labels)
        padding = bytes(-len(data) % BLOCK)
        size = len(head) + len(data) + len(padding) + len(tail)
        if self._file is not None and self._size + size + len(END) > self.max_bytes:
            self._finish()
        with writing(self.folder, REMEDY):
            if self._file is None:
                self._file, self._size = self._partial.open("wb"), 0
            for block in (head, data, padding, tail):
                self._file.write(block)
        self._ids.add(id)
        self._rows.append((id, self._name, self._size + len(head), len(data)))
        self._size += size

    def table(self) -> pl.DataFrame:
        """Where everything lies: id, path (relative to the folder), offset, bytes; earlier runs' utterances first.
        Files of these names are there once the writer is closed.
        """
        return pl.concat([self._earlier, pl.DataFrame(self._rows, schema=SCHEMA, orient="row")])

    @property
    def _name(self) -> str:
        return f"shard-{self._number:06d}.tar"

    @property
    def _partial(self) -> Path:
        return self.folder / f".{self._name}.partial"

    def _finish(self) -> None:
        if self._file is None:
            return
        with writing(self.folder, REMEDY):
            self._file.write(END)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self.folder / self._name)
        self._file = None
        self._number += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:  # its end may be half a member, and a full disk needs the room
            # close() flushes, and would fail once more on that disk.
            self._partial.unlink(missing_ok=True)
            with suppress(OSError):
                self._file.close()
            self._file = None


def _shards(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if NAME.fullmatch(name)) if folder.is_dir() else []


def _header(name: str, size: int) -> bytes:
    """What precedes a member's bytes. The same for the same content: no time, no user."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _member(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(-len(content) % BLOCK)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
