"""One process at a time: files that are held until their holder ends, however it ends."""

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
def hold(file: Path, busy: str | None, remedy: str) -> Iterator[None]:
    """Be the only process that holds `file`, which is made if need be, with its folder.

    busy: what to say where another process holds it, with {holder} in the place of who; None: wait for it.
    remedy: what to do where the file cannot be written.

    The kernel frees the lock at any end of the process, so none is ever left behind; what the file says is only for
    people. Where the file system has no locks, a warning says so. Raises UserError.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}; {remedy}") from error
    _HELD.add(handle)
    owner = os.getpid()
    try:
        _lock(handle, file, busy, remedy)
        yield
    finally:
        if os.getpid() == owner:  # in a forked child the number may be another file's by now
            _HELD.discard(handle)
            os.close(handle)


def _lock(handle: int, file: Path, busy: str | None, remedy: str) -> None:
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if busy is not None:
                raise UserError(busy.replace("{holder}", _holder(handle))) from error
            log.info("%s: waiting for %s, which works there", file.parent, _holder(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise UserError(f"{file}: cannot be locked: {error.strerror}; {remedy}") from error
        log.warning(
            "%s: the file system has no locks (%s), so nothing keeps a second process out of %s",
            file,
            error.strerror,
            file.parent,
        )
        return
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    _write(handle, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}) + "\n", file)


def _write(handle: int, text: str, file: Path) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    except OSError as error:  # a full disk, which is found out, and told better, where more is written
        log.warning("%s: cannot be written: %s; the lock holds all the same", file, error.strerror)


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is there, but has not written yet who it is
        return "another process"
