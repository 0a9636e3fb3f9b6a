"""Has a folder of a million files changed? Told from the times of its upper folders and of the few files there."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from spkexp.data.tar_index import AUDIO

# A folder's time changes when something in it is added, removed or renamed. Three levels reach the speakers of
# every corpus that spkexp knows; a level of more entries than this is not looked at.
LEVELS = 3
MAX_ENTRIES = 10_000
AUDIO_FILES = tuple(f".{extension}" for extension in AUDIO)


def state_of(sources: Iterable[Path]) -> str:
    """A digest of the files and of the trees in `sources`: names, times of change, and sizes of files.

    Of a tree, some levels of folders count, and in them what is no audio (lists, tars). Single audio files are not
    looked at: one that was replaced deep below, or written over, is not noticed.
    """
    states: dict[str, tuple[int, ...]] = {}
    for source in sources:
        states |= _tree(str(source)) if source.is_dir() else {str(source): _state(str(source))}
    return hashlib.sha256(repr(sorted(states.items())).encode(errors="surrogateescape")).hexdigest()[:16]


def _tree(root: str) -> dict[str, tuple[int, ...]]:
    """State of `root`, and of what is below it, by path."""
    states = {root: _state(root)}
    folders = [root]
    entries = 0
    for _ in range(LEVELS):
        level: list[str] = []
        files: list[str] = []
        for folder in folders:
            for path, is_folder in _entries(folder):
                entries += 1
                if entries > MAX_ENTRIES:  # a whole level or nothing of it: the order is the disk's
                    return states
                if is_folder:
                    level.append(path)
                elif not path.lower().endswith(AUDIO_FILES):
                    files.append(path)
        states |= {path: _state(path) for path in (*level, *files)}
        folders = level
    return states


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a folder) of what is in `folder` and not hidden; nothing of one that cannot be read."""
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    yield entry.path, entry.is_dir()
    except OSError:
        return


def _state(path: str) -> tuple[int, ...]:
    """When `path` changed, in ns, and the size of a file; nothing where it cannot be looked at, or is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_mtime_ns,) if os.path.isdir(path) else (found.st_mtime_ns, found.st_size)
