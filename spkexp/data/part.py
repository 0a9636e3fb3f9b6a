"""Audio files inside shards: a byte range of an open file, read in place.

A few hundred shards hold a corpus of a million utterances, and crops come from all of them in random order. Their
descriptors stay open: an open costs a round trip to the server of a network filesystem, which on a cluster is what
keeps a loader waiting (on a local disk it costs 3 us, and keeping them open neither gains nor loses).
"""

import io
import os
import resource
import threading
from collections import OrderedDict

from spkexp.errors import AudioError

OF_A_MANIFEST = "; check data.root and the paths of the manifest"  # the remedy where a file is not there
Part = tuple[int, int]  # (offset, bytes): where an audio file lies inside its shard

_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
MAX_OPEN_SHARDS = 256 if _LIMIT == resource.RLIM_INFINITY else min(256, max(1, _LIMIT // 4))
_shards: OrderedDict[str, int] = OrderedDict()  # the one used last comes last
_lock = threading.Lock()


def _new_lock() -> None:
    """In a forked process: another thread may have held the lock. The descriptors serve on: `pread` moves no offset."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def open_file(path: str) -> int:
    """A descriptor of `path`, which the caller closes. Raises AudioError."""
    try:
        # Without O_NONBLOCK a named pipe would hang here.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file{OF_A_MANIFEST}") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened: {error.strerror}") from None


def open_shard(path: str) -> int:
    """Like `open_file`, from the descriptors that are kept open.

    The caller gets a duplicate: the kept one may be closed by another thread that needs the room. A shard that was
    deleted or replaced by another file of its name is opened anew.
    """
    with _lock:
        kept = _shards.pop(path, None)
        if kept is not None and not _is_current(kept):
            os.close(kept)
            kept = None
        if kept is None:
            kept = open_file(path)
            while len(_shards) >= MAX_OPEN_SHARDS:
                os.close(_shards.popitem(last=False)[1])
        _shards[path] = kept
        return os.dup(kept)


def _is_current(descriptor: int) -> bool:
    """Whether the open file still has a name. On network filesystems the question itself may fail (stale handle)."""
    try:
        return os.fstat(descriptor).st_nlink > 0
    except OSError:
        return False


class Window(io.RawIOBase):
    """The bytes `offset` to `offset + size` of an open file, as a file to read. It does not close the descriptor."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._offset, self._size = descriptor, offset, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        rest = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        count = os.preadv(self._descriptor, [rest], self._offset + self._position) if rest else 0
        self._position += count
        return count
