"""Fetching and unpacking, against a real server on this machine."""

import errno
import fcntl
import hashlib
import os
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spkexp.data.corpora.download import Archive, fetch, unpack
from spkexp.errors import UserError
from spkexp.lock import hold
from tests.archive_server import Server, pack, serving

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def archive(server: Server, tmp_path: Path) -> Archive:
    server.files["/x.tar.gz"] = CONTENT
    return Archive(f"{server.url}/x.tar.gz", tmp_path / "x.tar.gz", hashlib.md5(CONTENT).hexdigest())


def partial(archive: Archive) -> Path:
    return archive.path.with_name("x.tar.gz.partial")


def test_fetch(server: Server, archive: Archive) -> None:
    fetch(archive)
    assert archive.path.read_bytes() == CONTENT
    assert not partial(archive).exists()
    assert server.requests == [("/x.tar.gz", None)]


def test_goes_on_where_an_earlier_call_stopped(server: Server, archive: Archive) -> None:
    partial(archive).write_bytes(CONTENT[:1_000_001])
    fetch(archive)
    assert archive.path.read_bytes() == CONTENT
    assert server.requests == [("/x.tar.gz", "bytes=1000001-")]


def test_server_that_ignores_range(server: Server, archive: Archive) -> None:
    server.ranges = False
    partial(archive).write_bytes(CONTENT[:1_000_001])
    fetch(archive)
    assert archive.path.read_bytes() == CONTENT


def test_connection_that_breaks_again_and_again(server: Server, archive: Archive) -> None:
    server.cut = 1_100_000
    fetch(archive)
    assert archive.path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=1100000-", "bytes=2200000-"]


def test_connection_that_breaks_without_range_keeps_what_came(server: Server, archive: Archive) -> None:
    server.cut, server.ranges = 1_100_000, False
    with pytest.raises(UserError, match=r"keeps breaking \(1.1 MB have come\); run the command again"):
        fetch(archive)
    assert partial(archive).read_bytes() == CONTENT[:1_100_000]
    server.cut = None
    fetch(archive)
    assert archive.path.read_bytes() == CONTENT


def test_beginning_of_another_file_is_fetched_again(server: Server, archive: Archive) -> None:
    for stale in (b"another file" * 1_000, CONTENT + b"more"):  # the longer one makes the server answer 416
        partial(archive).write_bytes(stale)
        fetch(archive)
        assert archive.path.read_bytes() == CONTENT
        archive.path.unlink()


def test_complete_partial_needs_no_bytes(server: Server, archive: Archive) -> None:
    partial(archive).write_bytes(CONTENT)
    fetch(archive)
    assert archive.path.read_bytes() == CONTENT
    assert server.requests == [("/x.tar.gz", "bytes=3000000-")]


def test_wrong_checksum(server: Server, archive: Archive) -> None:
    other = CONTENT[:-1] + b"!"
    server.files["/x.tar.gz"] = other
    with pytest.raises(UserError, match=f"its md5 is {hashlib.md5(other).hexdigest()}, expected {archive.md5}"):
        fetch(archive)
    assert not archive.path.exists()
    assert not partial(archive).exists()


def test_missing_on_the_server(server: Server, archive: Archive) -> None:
    del server.files["/x.tar.gz"]
    with pytest.raises(UserError, match=f"answers 404 Not Found; .*data.corpus.mirror.*put it at {archive.path}"):
        fetch(archive)


def test_no_network_fails_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as free:  # bound but not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        for host in (f"127.0.0.1:{free.getsockname()[1]}", "no-such-host.invalid"):
            archive = Archive(f"http://{host}/x.tar.gz", tmp_path / "x.tar.gz", "0" * 32)
            began = time.monotonic()
            with pytest.raises(UserError) as caught:
                fetch(archive)
            assert time.monotonic() - began < 10
            assert "cannot be downloaded" in str(caught.value)
            for part in (archive.url, str(archive.path), archive.md5):
                assert part in str(caught.value)


def test_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spkexp.download.TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        archive = Archive(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "x", "0" * 32)
        with pytest.raises(UserError, match="cannot be downloaded: timed out"):
            fetch(archive)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here to play the full disk")
def test_full_disk_is_named(server: Server, archive: Archive) -> None:
    partial(archive).symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"x\.tar\.gz\.partial: cannot be written: No space left on device; .* GB are free"
    ):
        fetch(archive)


def test_root_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    before = os.geteuid()
    tmp_path.chmod(0o555)
    if before == 0:
        os.seteuid(65534)
    try:
        expected = r"data/lock: cannot be written: Permission denied; choose another data\.root"
        with (
            pytest.raises(UserError, match=expected),
            hold(tmp_path / "data" / "lock", None, "choose another data.root"),
        ):
            pass
    finally:
        os.seteuid(before)


def test_unpack(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "x.tar.gz",
        [("LibriSpeech/LICENSE.TXT", b"CC"), ("LibriSpeech/SPEAKERS.TXT", b"new"), ("LibriSpeech/sub/1/2/a", b"A")],
    )
    tree = tmp_path / "LibriSpeech" / "sub"
    tree.parent.mkdir()
    (tree.parent / "SPEAKERS.TXT").write_text("mine")
    killed = tree.parent / ".sub.unpacking"  # what a process left that was killed half way
    killed.mkdir()
    (killed / "half").write_text("of a file")
    unpack(archive, tree)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["LibriSpeech/LICENSE.TXT", "LibriSpeech/SPEAKERS.TXT", "LibriSpeech/sub/1/2/a", "x.tar.gz"]
    assert (tree / "1/2/a").read_bytes() == b"A"
    assert (tree.parent / "SPEAKERS.TXT").read_text() == "mine"


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("/tmp/evil", "outside of the folder"),
        ("LibriSpeech/../../evil", "outside of the folder"),
        (_special("LibriSpeech/sub/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link, a device"),
        (_special("LibriSpeech/sub/hard", tarfile.LNKTYPE, "LibriSpeech/sub/a"), "is a link, a device"),
        (_special("LibriSpeech/sub/device", tarfile.CHRTYPE), "is a link, a device"),
        (_special("LibriSpeech/sub/pipe", tarfile.FIFOTYPE), "is a link, a device"),
    ],
)
def test_unsafe_members_are_refused(tmp_path: Path, member: str | tarfile.TarInfo, message: str) -> None:
    archive = pack(tmp_path / "x.tar.gz", [("LibriSpeech/sub/a", b"A"), (member, b"")])
    with pytest.raises(UserError, match=message):
        unpack(archive, tmp_path / "in/here/sub")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [archive.path]


def test_archives_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "x.tar.gz", [("LibriSpeech/sub/a", b"A" * 100)])
    with pytest.raises(UserError, match="holds no folder other"):
        unpack(archive, tmp_path / "other")
    with pytest.raises(UserError, match=r"x\.tar\.gz: its md5 is .*, expected .*; remove it and .*put it at"):
        unpack(Archive(archive.url, archive.path, "0" * 32), tmp_path / "sub")
    archive.path.write_bytes(b"no tar at all")
    with pytest.raises(UserError, match=r"x\.tar\.gz: cannot be unpacked"):
        unpack(Archive(archive.url, archive.path, hashlib.md5(b"no tar at all").hexdigest()), tmp_path / "sub")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = pack(tmp_path / "x.tar.gz", [("LibriSpeech/sub/a", b"A" * 100)])
    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        unpack(archive, tmp_path / "sub")
    assert not (tmp_path / ".sub.unpacking").exists()


def test_lock_excludes(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock, None, ""), lock.open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
