"""wandb in tests: an installation that nothing outside of the test touches, and its offline files read back."""

import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def wandb_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb as on a machine that has never seen it: no key, no settings, and the test's own variables only."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = folder / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.teardown()  # its settings are read once a process
    yield
    wandb.teardown()


def records(folder: Path) -> list[Any]:
    """The records of the one offline run below `folder`, a run folder."""
    import wandb

    wandb.teardown()  # the end of the process: until then the last records may be on their way
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read(file)


def read(file: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes.

    https://github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KB hold pieces of (checksum: 4 bytes,
    length: 2, kind: 1, data); kind 1 is a whole record, 2 the first, 3 a middle and 4 the last piece of one.
    """
    from wandb.proto import wandb_internal_pb2

    content, position, data, found = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if (left := 32_768 - position % 32_768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(data))
            data = b""
    return found


def of_kind(found: Iterable[Any], kind: str) -> list[Any]:
    """The content of the records of one kind: run, history, summary, metric, …"""
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def items(entries: Any) -> dict[str, Any]:
    """{key: value} of a record's items; a nested key is joined with slashes."""
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def steps(found: Iterable[Any]) -> list[int]:
    """Our own step of each line of history that has one."""
    lines = [items(history.item) for history in of_kind(found, "history")]
    return [line["step"] for line in lines if "step" in line]
