"""The archives of corpora: fetched, and unpacked so that a tree has its name once it is whole."""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from spkexp.archives import DAMAGED_TAR, is_plain, refuse_unsafe
from spkexp.download import Download, digest, writing
from spkexp.download import fetch as fetch_file
from spkexp.errors import UserError


@dataclass(frozen=True)
class Archive:
    """A tar file on the web. `path` is its place here; `md5` the checksum of its publisher, in hex."""

    url: str
    path: Path
    md5: str


def fetch(archive: Archive) -> None:
    """Bring `archive` to its path; see `spkexp.download.fetch`. The error says which file to put where by hand."""
    fetch_file(Download(archive.url, archive.path, "md5", archive.md5, _by_hand(archive)))


def unpack(archive: Archive, tree: Path) -> None:
    """Unpack `archive` so that its folder LibriSpeech/NAME or NAME becomes `tree`, whose name is NAME; the files
    beside that folder (licence, speakers) go beside `tree`. Call under a lock.

    Raises UserError for a wrong checksum, for a member that would leave the folder or is no plain file, for an
    archive without the folder, and for a disk that is full or may not be written.
    """
    found = digest(archive.path, "md5")
    if found != archive.md5:
        raise UserError(
            f"{archive.path}: its md5 is {found}, expected {archive.md5}: broken or another file; remove it and "
            f"{_by_hand(archive)}"
        )
    work = tree.parent / f".{tree.name}.unpacking"
    try:
        with writing(work):
            if work.exists():  # of a process that was killed
                shutil.rmtree(work)
            work.mkdir(parents=True)
            with tarfile.open(archive.path) as tar:
                for member in tar:
                    refuse_unsafe(archive.path, member.name, is_plain(member))
                    tar.extract(member, work, filter="data")
            inner = next((path for path in (work / "LibriSpeech" / tree.name, work / tree.name) if path.is_dir()), None)
            if inner is None:
                raise UserError(f"{archive.path}: holds no folder {tree.name}")
            for extra in inner.parent.iterdir():
                if extra.is_file() and not (tree.parent / extra.name).exists():
                    extra.replace(tree.parent / extra.name)
            inner.replace(tree)
    except DAMAGED_TAR as error:
        raise UserError(f"{archive.path}: cannot be unpacked: {error}; remove it and {_by_hand(archive)}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _by_hand(archive: Archive) -> str:
    return (
        f"set data.corpus.mirror to another server, or fetch {archive.url} yourself and put it at {archive.path} "
        f"(md5 {archive.md5})"
    )
