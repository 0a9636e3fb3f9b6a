"""Fetching and unpacking, against a real server on this machine."""

import errno
import fcntl
import hashlib
import io
import multiprocessing
import os
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.data.corpora import mini_librispeech
from spkexp.data.corpora.download import Archive, fetch, locked, unpack
from spkexp.data.corpora.mini_librispeech import MiniLibriSpeech
from spkexp.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves `files`. `ranges`: it understands Range. `cut`: it hangs up after so many bytes of a body. `requests`:
    the path and the Range header of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cut: int | None = None
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.02,)).start()
    yield server
    server.shutdown()
    server.server_close()


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
    monkeypatch.setattr("spkexp.data.corpora.download.TIMEOUT_SECONDS", 0.3)
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
        with pytest.raises(UserError, match=r"data: cannot be written: Permission denied; choose another data\.root"):
            with locked(tmp_path / "data"):
                pass
    finally:
        os.seteuid(before)


def pack(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Archive:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return Archive("http://127.0.0.1:9/x.tar.gz", path, hashlib.md5(path.read_bytes()).hexdigest())


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
        (_special("LibriSpeech/sub/link", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (_special("LibriSpeech/sub/hard", tarfile.LNKTYPE, "LibriSpeech/sub/a"), "link or a device"),
        (_special("LibriSpeech/sub/device", tarfile.CHRTYPE), "link or a device"),
        (_special("LibriSpeech/sub/pipe", tarfile.FIFOTYPE), "link or a device"),
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


@pytest.fixture
def corpus(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., MiniLibriSpeech]:
    """Mini LibriSpeech in small on the server: two speakers of train-clean-5, one of dev-clean-2."""
    wave = np.random.default_rng(0).integers(-99, 99, 1_600).astype(np.int16)
    soundfile.write(tmp_path / "x.flac", wave, 16_000)
    flac = (tmp_path / "x.flac").read_bytes()
    speakers = {"train-clean-5": (1, 2), "dev-clean-2": (3,)}
    for subset, numbers in speakers.items():
        members = [(f"LibriSpeech/{subset}/{n}/7/{n}-7-{i:04d}.flac", flac) for n in numbers for i in range(2)]
        made = pack(tmp_path / f"{subset}.made", [("LibriSpeech/SPEAKERS.TXT", b"; "), *members])
        server.files[f"/31/{subset}.tar.gz"] = made.path.read_bytes()
        monkeypatch.setitem(mini_librispeech.MD5, subset, made.md5)

    def build(*subsets: str, download: bool = True) -> MiniLibriSpeech:
        return MiniLibriSpeech(subsets=list(subsets), download=download, mirror=f"{server.url}/31/")

    return build


def test_mini_librispeech_is_fetched_once(
    server: Server, corpus: Callable[..., MiniLibriSpeech], tmp_path: Path
) -> None:
    root = tmp_path / "root of data"
    table = corpus("train-clean-5").table(root)
    assert table["id"].to_list() == ["1-7-0000", "1-7-0001", "2-7-0000", "2-7-0001"]
    assert table.columns == ["id", "path", "duration", "speaker", "chapter"]  # one subset: data.split decides
    assert table["path"][0] == str(root / "LibriSpeech/train-clean-5/1/7/1-7-0000.flac")
    table = corpus("train-clean-5", "dev-clean-2").table(root)
    assert table["split"].to_list() == ["train"] * 4 + ["val"] * 2
    assert [path for path, _ in server.requests] == ["/31/train-clean-5.tar.gz", "/31/dev-clean-2.tar.gz"]
    server.files.clear()
    for given in (root, root / "LibriSpeech"):
        assert len(corpus("train-clean-5", "dev-clean-2", download=False).table(given)) == 6
    # An archive put there by hand serves as well, without the network.
    shutil.rmtree(root / "LibriSpeech")
    assert len(corpus("train-clean-5", download=False).table(root)) == 4
    assert len(server.requests) == 2


def test_mini_librispeech_says_what_is_missing(corpus: Callable[..., MiniLibriSpeech], tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(UserError) as caught:
        corpus("dev-clean-2", download=False).table(root)
    for part in ("data.corpus.download=true", "/31/dev-clean-2.tar.gz", f"as {root / 'dev-clean-2.tar.gz'}", "md5"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"data\.corpus\.subsets: expected some of train-clean-5, dev-clean-2, got"):
        corpus("train-clean-100")


def _table(corpus: MiniLibriSpeech, root: Path, found: "multiprocessing.Queue[int]") -> None:
    found.put(len(corpus.table(root)))


def test_processes_at_once_fetch_once(server: Server, corpus: Callable[..., MiniLibriSpeech], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # the checksums are patched in this process
    found = context.Queue()
    workers = [
        context.Process(target=_table, args=(corpus("train-clean-5"), tmp_path / "root", found)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert [found.get() for _ in workers] == [4] * 4
    assert len(server.requests) == 1


def test_lock_excludes(tmp_path: Path) -> None:
    with locked(tmp_path), (tmp_path / ".download.lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / ".download.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_published_checksums() -> None:
    # https://www.openslr.org/resources/31/md5sum.txt
    assert mini_librispeech.MD5["train-clean-5"] == "5df7d4e78065366204ca6845bb08f490"
    assert mini_librispeech.MD5["dev-clean-2"] == "6d7ab67ac6a1d2c993d050e16d61080d"
