"""Fetch an archive over HTTP and unpack it, so that a kill at any moment costs no more than the rest of the work.

A download grows in `NAME.partial` and gets its name when its checksum is right; a tree grows in a hidden folder
and gets its name when it is whole. What has its name is complete.
"""

import hashlib
import http.client
import logging
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from spkexp.errors import UserError

log = logging.getLogger(__name__)

# For the connection and for every wait on its data.
TIMEOUT_SECONDS = 10.0
BLOCK_BYTES = 1 << 20
# A connection that breaks is taken up again so often, as long as each attempt brings bytes.
ATTEMPTS = 20
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Archive:
    """A tar file on the web. `path` is its place here; `md5` the checksum of its publisher, in hex."""

    url: str
    path: Path
    md5: str


def fetch(archive: Archive) -> None:
    """Bring `archive` to its path, going on with what an earlier call left. Call under a lock.

    Raises UserError if the server cannot be reached or has no such file, if the disk is full or may not be
    written, or if the checksum is wrong; it says which file to put where by hand.
    """
    partial = archive.path.with_name(archive.path.name + ".partial")
    resumed = partial.exists() and partial.stat().st_size > 0
    _download(archive, partial)
    found = md5(partial)
    if found != archive.md5 and resumed:
        # The beginning may be of another file; it is the one thing that a fresh start can mend.
        log.warning("%s: wrong checksum after going on with an earlier download; starting again", partial)
        partial.unlink()
        _download(archive, partial)
        found = md5(partial)
    if found != archive.md5:
        partial.unlink()
        raise UserError(f"{archive.url}: its md5 is {found}, expected {archive.md5}; {_by_hand(archive)}")
    partial.replace(archive.path)


def unpack(archive: Archive, tree: Path) -> None:
    """Unpack `archive` so that its folder LibriSpeech/NAME or NAME becomes `tree`, whose name is NAME; the files
    beside that folder (licence, speakers) go beside `tree`. Call under a lock.

    Raises UserError for a wrong checksum, for a member that would leave the folder or is no plain file, for an
    archive without the folder, and for a disk that is full or may not be written.
    """
    found = md5(archive.path)
    if found != archive.md5:
        raise UserError(
            f"{archive.path}: its md5 is {found}, expected {archive.md5}: broken or another file; remove it and "
            f"{_by_hand(archive)}"
        )
    work = tree.parent / f".{tree.name}.unpacking"
    try:
        with _writing(work):
            if work.exists():  # of a process that was killed
                shutil.rmtree(work)
            work.mkdir(parents=True)
            with tarfile.open(archive.path) as tar:
                for member in tar:
                    _refuse_unsafe(archive.path, member)
                    tar.extract(member, work, filter="data")
            inner = next((path for path in (work / "LibriSpeech" / tree.name, work / tree.name) if path.is_dir()), None)
            if inner is None:
                raise UserError(f"{archive.path}: holds no folder {tree.name}")
            for extra in inner.parent.iterdir():
                if extra.is_file() and not (tree.parent / extra.name).exists():
                    extra.replace(tree.parent / extra.name)
            inner.replace(tree)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive.path}: cannot be unpacked: {error}; remove it and {_by_hand(archive)}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def md5(path: Path) -> str:
    """The checksum of a file, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _download(archive: Archive, partial: Path) -> None:
    """Append to `partial` until the server has no more, over as many connections as it takes."""
    for _ in range(ATTEMPTS):
        before = _size(partial)
        try:
            if _transfer(archive, partial):
                return
        except urllib.error.HTTPError as error:
            raise UserError(
                f"{archive.url}: the server answers {error.code} {error.reason}; {_by_hand(archive)}"
            ) from None
        except (OSError, http.client.HTTPException, ValueError, _BrokenConnectionError) as error:
            # Once bytes have come, a broken connection is worth another one; one that never stood is not.
            if _size(partial) == before:
                reason = getattr(error, "reason", error)
                raise UserError(f"{archive.url}: cannot be downloaded: {reason}; {_by_hand(archive)}") from None
        if _size(partial) <= before:
            break
        log.info("%s: the connection broke after %.1f MB; going on", archive.url, _size(partial) / 1e6)
    raise UserError(
        f"{archive.url}: the connection keeps breaking ({_size(partial) / 1e6:.1f} MB have come); run the command "
        f"again to go on, or {_by_hand(archive)}"
    )


def _transfer(archive: Archive, partial: Path) -> bool:
    """One connection. Returns whether `partial` now is as long as the server says that the file is."""
    have = _size(partial)
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond: it is all here, or of another file, as md5 will tell
            return True
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:  # the server sends the whole file
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        log.info("downloading %s%s to %s", archive.url, f" from {have / 1e6:.1f} MB on" if have else "", partial)
        with _writing(partial), partial.open("ab" if resumed else "wb") as file:
            shown = time.monotonic()
            while block := _receive(response):
                file.write(block)
                have += len(block)
                if time.monotonic() - shown > PROGRESS_SECONDS:
                    shown = time.monotonic()
                    log.info("%s: %.0f%s MB", archive.path.name, have / 1e6, f" of {total / 1e6:.0f}" if total else "")
    return total is None or have >= total


class _BrokenConnectionError(Exception):
    """The network's fault, where an OSError would mean the disk's."""


def _receive(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnectionError(str(error) or type(error).__name__) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What fails in here is the disk."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; {_space(path.parent)}") from None


def _refuse_unsafe(archive: Path, member: tarfile.TarInfo) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{archive}: refused: its member {member.name!r} would be written outside of the folder")
    if not (member.isreg() or member.isdir()):
        raise UserError(f"{archive}: refused: its member {member.name!r} is a link or a device, not a file")


def _by_hand(archive: Archive) -> str:
    return (
        f"set data.corpus.mirror to another server, or fetch {archive.url} yourself and put it at {archive.path} "
        f"(md5 {archive.md5})"
    )


def _space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there; make room or choose another data.root"
    except OSError:
        return "choose another data.root"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
