"""Files from the web: a kill or a broken connection at any moment costs no more than the rest of the work.

A download grows in `NAME.partial` and gets its name when its checksum is right. What has its name is complete.
"""

import hashlib
import http.client
import logging
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spkexp.errors import UserError

log = logging.getLogger(__name__)

# For the connection and for every wait on its data.
TIMEOUT_SECONDS = 10.0
BLOCK_BYTES = 1 << 20
# A connection that breaks is taken up again so often, as long as each attempt brings bytes.
ATTEMPTS = 20
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Download:
    """A file on the web. `path`: its place here; `expected`: its checksum, in hex; `remedy`: where it cannot be had."""

    url: str
    path: Path
    algorithm: Literal["md5", "sha256"]
    expected: str
    remedy: str

    def wrong(self, found: str) -> str:
        return f"its {self.algorithm} is {found}, expected {self.expected}"


def fetch(download: Download) -> None:
    """Bring `download` to its path, going on with what an earlier call left. Call under a lock.

    Raises UserError if the server cannot be reached or has no such file, if the disk is full or may not be
    written, or if the checksum is wrong.
    """
    path = download.path
    partial = path.with_name(path.name + ".partial")
    resumed = _size(partial) > 0
    _download(download, partial)
    found = digest(partial, download.algorithm)
    if found != download.expected and resumed:
        # The beginning may be of another file; it is the one thing that a fresh start can mend.
        log.warning("%s: wrong checksum after going on with an earlier download; starting again", partial)
        partial.unlink()
        _download(download, partial)
        found = digest(partial, download.algorithm)
    if found != download.expected:
        partial.unlink()
        raise UserError(f"{download.url}: {download.wrong(found)}; {download.remedy}")
    partial.replace(path)


def digest(path: Path, algorithm: Literal["md5", "sha256"]) -> str:
    """The checksum of a file, in hex. Raises UserError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _download(download: Download, partial: Path) -> None:
    """Append to `partial` until the server has no more, over as many connections as it takes."""
    for _ in range(ATTEMPTS):
        before = _size(partial)
        try:
            if _transfer(download, partial):
                return
        except urllib.error.HTTPError as error:
            raise UserError(
                f"{download.url}: the server answers {error.code} {error.reason}; {download.remedy}"
            ) from None
        except (OSError, http.client.HTTPException, ValueError, _BrokenConnectionError) as error:
            # Once bytes have come, a broken connection is worth another one; one that never stood is not.
            if _size(partial) == before:
                reason = getattr(error, "reason", error)
                raise UserError(f"{download.url}: cannot be downloaded: {reason}; {download.remedy}") from None
        if _size(partial) <= before:
            break
        log.info("%s: the connection broke after %.1f MB; going on", download.url, _size(partial) / 1e6)
    raise UserError(
        f"{download.url}: the connection keeps breaking ({_size(partial) / 1e6:.1f} MB have come); run the command "
        f"again to go on, or {download.remedy}"
    )


def _transfer(download: Download, partial: Path) -> bool:
    """One connection. Returns whether `partial` now is as long as the server says that the file is."""
    have = _size(partial)
    request = urllib.request.Request(download.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = open_url(request, TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond: all is here, or of another file, as the checksum tells
            return True
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:  # the server sends the whole file
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        log.info("downloading %s%s to %s", download.url, f" from {have / 1e6:.1f} MB on" if have else "", partial)
        with writing(partial), partial.open("ab" if resumed else "wb") as file:
            shown = time.monotonic()
            while block := _receive(response):
                file.write(block)
                have += len(block)
                if time.monotonic() - shown > PROGRESS_SECONDS:
                    shown = time.monotonic()
                    log.info("%s: %.0f%s MB", download.path.name, have / 1e6, f" of {total / 1e6:.0f}" if total else "")
    return total is None or have >= total


class _BrokenConnectionError(Exception):
    """The network's fault, where an OSError would mean the disk's."""


def _receive(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnectionError(str(error) or type(error).__name__) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails in here is the disk."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; {_space(path.parent)}") from None


def open_url(request: str | urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    """The answer to a request; OSError after `timeout` seconds: also where looking up the host's name hangs."""
    found: list[http.client.HTTPResponse | Exception] = []

    def ask() -> None:
        try:
            found.append(urllib.request.urlopen(request, timeout=timeout))
        except Exception as error:  # raised again by the caller's thread
            found.append(error)

    # A look-up has no time-out of its own, so that it is left behind in a thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout + 1.0)
    if not found:
        raise TimeoutError(f"no answer within {timeout:g} seconds")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there; make room or choose another place"
    except OSError:
        return "choose another place"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
