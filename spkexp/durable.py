"""Folders and files that a kill at any moment leaves whole, and checksums that tell when a disk did not."""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spkexp.errors import UserError
from spkexp.foreign import read_text

SUMS = "SHA256SUMS"  # as coreutils write it: `sha256sum -c SHA256SUMS` in the folder checks it
# Sizes stand in comments, which sha256sum skips: they tell what is truncated from what has changed, at no cost.
_SIZE = re.compile(r"# (\d+) bytes  (.+)")
_DIGEST = re.compile(r"([0-9a-f]{64}) [ *](.+)")

_ROOM, _MOVE, _RIGHTS = "make room", "move that away", "give this user the right to write there"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "mount the file system for writing",
    errno.EIO: "have the disk, or the network to it, checked",
    errno.ENOTDIR: _MOVE,
    errno.EEXIST: _MOVE,
}
# What says of an error that a file could not be written, unlike ENOENT, say.
_UNWRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def seals(folder: Path, name: str) -> bool:
    """Whether the checksums of `folder` are of its file `name`, too."""
    sums = folder / SUMS
    return sums.is_file() and f"  {name}\n" in read_text(sums)


def seal(folder: Path) -> None:
    """Write SHA256SUMS for the files of `folder` and flush all of them to disk."""
    files = sorted(file for file in folder.iterdir() if file.name != SUMS)
    # The disk and the checksums have nothing to wait for from one another.
    with ThreadPoolExecutor(1) as side:
        flushed = [side.submit(flush, file) for file in files]
        lines = [_entry(file, file.name) for file in files]
    for done in flushed:
        done.result()
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    flush(folder / SUMS)
    flush(folder)


def _entry(file: Path, name: str) -> str:
    return f"# {file.stat().st_size} bytes  {name}\n{digest(file)}  {name}\n"


def write(file: Path, into: Callable[[Path], None]) -> None:
    """Have `into` write `file` in one go, with its checksum in `file`.sha256 beside it."""
    partial, sums = beside(file, "partial"), beside(file, "sha256")
    into(partial)
    flush(partial)
    file.unlink(missing_ok=True)  # or a kill would leave it with the other's checksum
    sums.write_text(_entry(partial, file.name), encoding="utf-8")
    flush(sums)
    partial.rename(file)
    flush(file.parent)


def prune(folder: Path, pattern: str, kept: Collection[Path]) -> None:
    """Of the files that `write` wrote as `pattern`, remove all but `kept`, and what a kill left half done."""
    names = {file.name for file in kept}
    for path in folder.glob(f"{pattern}*"):
        if path.name.removesuffix(".sha256") not in names:
            path.unlink()


def there(path: Path) -> bool:
    """Whether `path` exists. Raises UserError where this cannot be seen: that is not to be taken for a no."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give this user the right to read it") from error
    return True


def flush(path: Path) -> None:
    """Have the operating system write a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def verify(folder: Path, wanted: Collection[str]) -> str | None:
    """What is wrong with the files `wanted` of a sealed folder, in words; None: nothing, or it is not sealed."""
    before = identity(folder)
    wrong = next(_wrong(folder, wanted), None)
    if wrong is not None and identity(folder) != before:  # a training that goes on replaced the folder meanwhile
        wrong = next(_wrong(folder, wanted), None)
    return wrong


def identity(folder: Path) -> tuple[int, int] | None:
    """Another one for every folder that takes the name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def verify_file(file: Path) -> str | None:
    """What is wrong with what `write` wrote, in words; None: nothing, or it has no checksum beside it."""
    return next(_wrong(file.parent, [file.name], beside(file, "sha256").name), None)


def _wrong(folder: Path, wanted: Collection[str], sums: str = SUMS) -> Iterator[str]:
    try:
        if not os.path.lexists(folder / sums):
            return  # written by a version that kept no checksums
        lines = read_text(folder / sums).splitlines()
    except UserError as error:
        yield f"{sums} cannot be read ({error})"
        return
    sizes = {match[2]: int(match[1]) for line in lines if (match := _SIZE.fullmatch(line))}
    digests = {match[2]: match[1] for line in lines if (match := _DIGEST.fullmatch(line))}
    for name in wanted:
        if name not in sizes or name not in digests:
            yield f"{sums} is damaged: it does not list {name}"
        elif (wrong := _compare(folder / name, sizes[name], digests[name])) is not None:
            yield wrong


def _compare(file: Path, size: int, expected: str) -> str | None:
    """What is wrong with `file` against its size in bytes and its SHA-256; None: nothing."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without an end
            return f"{file.name} is no plain file"
        found = status.st_size
        if found != size:
            return f"{file.name} {'is truncated' if found < size else 'has changed'}: {found} of {size} bytes"
        return None if digest(file) == expected else f"{file.name} has changed since it was written (other checksum)"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"


def replace(partial: Path, folder: Path, former: Path | None) -> None:
    """Put the finished folder `partial` in the place of `folder`; what was there becomes `former`, None: is removed.

    In between, `partial` is `folder`.new: complete, and newer than `folder`.
    """
    new = beside(folder, "new")
    if new.exists():  # a kill fell between the renames of the time before
        if verify(new, [file.name for file in new.iterdir() if file.name != SUMS]) is None:
            promote(folder, former)
        else:
            discard(new)
    partial.rename(new)
    promote(folder, former)


def promote(folder: Path, former: Path | None) -> None:
    """Give `folder`.new its name."""
    old = former or beside(folder, "old")
    if folder.exists():
        discard(old)
        folder.rename(old)
    beside(folder, "new").rename(folder)
    flush(folder.parent)
    discard(beside(folder, "old"))


def discard(folder: Path) -> None:
    """Remove a folder; a kill on the way leaves it under a name that nobody reads and the next save removes."""
    if folder.exists():
        trash = beside(folder, "partial")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def not_written(error: BaseException, run: Path) -> UserError | None:
    """What the user does about an `error` of writing in the folder of a run; None: that is not what it is."""
    if not isinstance(error, OSError) or error.errno not in _UNWRITTEN:
        return None
    if error.filename is None:  # of a file that was open already
        of_the_run = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not _is_of_shared_memory(error)
    else:
        of_the_run = Path(os.fsdecode(error.filename)).absolute().is_relative_to(run.absolute())
    if not of_the_run:
        return None
    cause, remedy = cause_and_remedy(error)
    return UserError(f"{run}: cannot be written: {cause}; {remedy}, then go on with resume={run}")


def _is_of_shared_memory(error: OSError) -> bool:
    """Whether what has no room is not a disk: for multiprocessing's locks and buffers it is said alike."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "multiprocessing" in Path(trace.tb_frame.f_code.co_filename).parts


def cause_and_remedy(error: BaseException) -> tuple[str, str]:
    """Why something could not be written, and what the user does about it.

    torch and safetensors raise errors of their own; the operating system's is behind them, or its number in the text.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno is not None:
            place = f" ({behind.filename})" if behind.filename else ""
            return f"{os.strerror(behind.errno)}{place}", _REMEDIES.get(behind.errno, "mend that")
        behind = behind.__cause__ or behind.__context__
    text = (str(error).splitlines() or [type(error).__name__])[0]
    number = re.search(r"\(os error (\d+)\)", text)
    if number is None:
        return text, "mend that"
    return os.strerror(int(number[1])), _REMEDIES.get(int(number[1]), "mend that")
