"""Has a folder of a million files changed? Told from the times of its upper folders alone."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

# A folder's time changes when something in it is added, removed or renamed. Three levels reach the speakers of
# every corpus that spkexp knows; a level of more entries than this is not looked at.
LEVELS = 3
MAX_ENTRIES = 10_000


def state_of(root: Path) -> str:
    """A digest of names and times of change of `root` and of the folders below it, some levels deep.

    The files themselves are not looked at: one that was replaced deep below, or written over, is not noticed.
    """
    if not root.is_dir():  # whoever lists it says so
        return "absent"
    times = {"": _changed(str(root))}
    folders = [str(root)]
    entries = 0
    for _ in range(LEVELS):
        level: list[str] = []
        for folder in folders:
            for name in _folders_in(folder):
                entries += 1
                if entries > MAX_ENTRIES:  # a whole level or nothing of it: the order is the disk's
                    return _digest(times)
                if name is not None:
                    level.append(name)
        times |= {folder: _changed(folder) for folder in level}
        folders = level
    return _digest(times)


def _folders_in(folder: str) -> Iterator[str | None]:
    """The folders in `folder`, and None for each entry that is none. One that cannot be read has no entries."""
    try:
        with os.scandir(folder) as found:
            for entry in found:
                yield entry.path if entry.is_dir() else None
    except OSError:
        return


def _changed(folder: str) -> int:
    """When `folder` changed, in ns; 0 where that cannot be known."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _digest(times: dict[str, int]) -> str:
    return hashlib.sha256(repr(sorted(times.items())).encode(errors="surrogateescape")).hexdigest()[:16]
