"""Archives from somewhere else, unpacked so that nothing is written but plain files below one folder."""

import gzip
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from spkexp.errors import UserError
from spkexp.foreign import RATIO, SMALL_BYTES, open_zip, require_file

# What an archive of a model may unpack to, and how many files it may have.
UNPACKED_BYTES = 1 << 34
MEMBERS = 10_000
_BLOCK_BYTES = 1 << 20
# What tarfile raises for damaged ones. RecursionError: headers of headers without end
DAMAGED_TAR = (tarfile.TarError, EOFError, ValueError, ArithmeticError, RecursionError)
# RuntimeError: an encrypted zip
_DAMAGED = (*DAMAGED_TAR, zipfile.BadZipFile, zlib.error, OSError, RuntimeError)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar or .tar.gz into the empty `folder`.

    Raises UserError for a member that is no plain file or would leave the folder, for two of one name, and for what is
    out of proportion to the archive; what was unpacked before is left there.
    """
    require_file(archive)
    try:
        with archive.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        if not compressed and zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder, compressed)
    except _DAMAGED as error:
        raise UserError(f"{archive}: cannot be unpacked: {error}; fetch it again") from error


def refuse_unsafe(archive: str | Path, name: str, is_plain: bool) -> None:
    """Raise UserError for a member of an archive that is not to be unpacked, or read, under its name.

    is_plain: whether it is a file or a folder, and no link, device or sparse file.
    """
    if not name or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise UserError(f"{archive}: refused: its member {name!r} would be written outside of the folder")
    if not is_plain:
        raise UserError(f"{archive}: refused: its member {name!r} is a link, a device or a sparse file, not a file")


def is_plain(member: tarfile.TarInfo) -> bool:
    return (member.isreg() or member.isdir()) and not member.issparse()


class _Target:
    """The folder that an archive is unpacked into, and how much more it takes."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self._archive, self._folder = archive, folder
        self._room = room_of(archive)
        self._names: set[str] = set()

    def add(self, name: str, is_folder: bool, size: int, source: IO[bytes] | None) -> None:
        """Write the member `name`, which claims to have `size` bytes. Raises UserError."""
        self._room -= size
        if self._room < 0 or size < 0 or len(self._names) >= MEMBERS:
            raise UserError(
                f"{self._archive}: refused: it unpacks to more than {room_of(self._archive):,} bytes or {MEMBERS:,} "
                f"files, out of proportion to its {self._archive.stat().st_size:,} bytes"
            )
        path = self._folder / PurePosixPath(name)
        # Other systems have one file for names that differ in capitals or in how an accent is coded.
        same = unicodedata.normalize("NFC", str(PurePosixPath(name))).casefold()
        if is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        if same in self._names:
            raise UserError(f"{self._archive}: refused: it has two members {name!r}")
        self._names.add(same)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source is None:
            raise UserError(f"{self._archive}: refused: its member {name!r} has no content")
        with path.open("xb") as file:
            shutil.copyfileobj(source, file, _BLOCK_BYTES)


def room_of(archive: Path) -> int:
    """Bytes that `archive` may unpack to."""
    return min(UNPACKED_BYTES, max(archive.stat().st_size * RATIO, SMALL_BYTES))


def _unpack_zip(archive: Path, folder: Path) -> None:
    target = _Target(archive, folder)
    with open_zip(archive, MEMBERS) as source:
        for member in source.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            refuse_unsafe(archive, member.orig_filename, plain)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{archive}: refused: its member {member.filename!r} is compressed in a rare way")
            if member.is_dir():
                target.add(member.filename, True, 0, None)
                continue
            with source.open(member) as content:  # gives no more than file_size, and checks it
                target.add(member.filename, False, member.file_size, content)


def _unpack_tar(archive: Path, folder: Path, compressed: bool) -> None:
    target = _Target(archive, folder)
    with _opened(archive, compressed) as file, tarfile.open(fileobj=file, mode="r:") as source:
        for member in _members(source):
            refuse_unsafe(archive, member.name, is_plain(member))
            if member.isdir():
                target.add(member.name, True, 0, None)
            else:
                target.add(member.name, False, member.size, source.extractfile(member))


def _members(source: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := source.next()) is not None:
        source.members = []  # type: ignore[attr-defined]  # it would keep them all
        yield member


def _opened(archive: Path, compressed: bool) -> "BinaryIO | _Bounded":
    if not compressed:
        return archive.open("rb")
    return _Bounded(archive)


class _Bounded(gzip.GzipFile):
    """A .gz that is not read further, nor more of it at once, than an archive may hold.

    tarfile reads a header as long as the one before says that it is, into memory.
    """

    def __init__(self, archive: Path) -> None:
        super().__init__(archive, "rb")
        self._limit, self._archive = room_of(archive) + MEMBERS * 2048, archive

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > 2 * _BLOCK_BYTES:
            raise UserError(f"{self._archive}: refused: a header of {size:,} bytes")
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise UserError(
                f"{self._archive}: refused: it unpacks to more than {self._limit:,} bytes, out of proportion to its own"
            )
