"""One process at a time trains in a run folder."""

import errno
import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from spkexp.errors import UserError

log = logging.getLogger(__name__)

LOCK = ".lock"
_HELD: set[int] = set()  # file descriptors of this process
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def _let_go_in_child() -> None:
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


# flock belongs to the open file, which a forked child shares: a data worker that outlives its parent by seconds would
# keep the run locked. So a child closes it at once, which frees nothing in the parent. (Locks of lockf are not
# inherited, but the process loses them when anything in it opens and closes the file, and is never refused by itself.)
# Programs that are started close it in exec.
os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the one that trains in `folder`. Raises UserError where another process is, or the folder cannot be written.

    The kernel frees the lock at any end of the process, so none is ever left behind; what `folder`/.lock says is only
    for people. Where the file system has no locks, a warning says so.
    """
    file = folder / LOCK
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written: {error.strerror}; training needs the right to write in its run folder"
        ) from error
    _HELD.add(handle)
    owner = os.getpid()
    try:
        _lock(handle, folder)
        yield
    finally:
        if os.getpid() == owner:  # in a forked child the number may be another file's by now
            _HELD.discard(handle)
            os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{folder} is being trained by {_holder(handle)}; wait for it, or stop it") from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise UserError(f"{folder / LOCK}: cannot be locked: {error.strerror}") from error
        log.warning(
            "%s: the file system has no locks (%s), so nothing keeps a second training out of this folder",
            folder,
            error.strerror,
        )
        return
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    _write(handle, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}) + "\n", folder)


def _write(handle: int, text: str, folder: Path) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    except OSError as error:  # a full disk, which is found out, and told better, where more is written
        log.warning("%s: cannot be written: %s; the lock holds all the same", folder / LOCK, error.strerror)


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is there, but has not written yet who it is
        return "another process"
