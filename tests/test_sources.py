"""Models from afar: addresses with a checksum, repositories of the hub, and the cache where neither can be reached."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from spkexp import sources
from spkexp.errors import UserError
from tests.archive_server import serving
from tests.hub_server import TOKEN, Hub, commit_hash

FILES = {"model.safetensors": b"weights", "config.yaml": b"model: {}\n", "labels.json": b"[]"}
ELSEWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPKEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    at(monkeypatch, found.url)
    yield found
    found.close()


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the hub be at `url`."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template[template.index("/{repo_id}") :])


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archive(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, value in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    return packed.getvalue()


def test_a_path_is_left_alone(tmp_path: Path) -> None:
    Path("models").mkdir()
    for path in ("models/nix", "./me/model", "runs/2026", "/nowhere/at/all", "model", "ein modell/mit leer", "a/b/c"):
        assert sources.local(path) == Path(path)
    Path("me/model").mkdir(parents=True)
    assert sources.local("me/model") == Path("me/model")  # a folder here comes before the hub
    with pytest.raises(UserError, match="only what is on the hub has revisions"):
        sources.local("models/nix", "main")


def test_what_is_no_address() -> None:
    for address in ("https://[::1/x.tar.gz", "http://[a]b/x.tar.gz"):
        with pytest.raises(UserError, match=r"/x.tar.gz: is no address: "):
            sources.local(address)
    assert sources.local("//[a") == Path("//[a")


def test_a_file_cannot_be_called_as_the_lock_is() -> None:
    value = b"weights"
    with serving() as server:
        for asked, name in ((".lock", "lock"), ("..", "file")):
            server.files[f"/{asked}"] = value
            found = sources.file(f"{server.url}/{asked}#sha256={hashlib.sha256(value).hexdigest()}")
            assert (found.name, found.read_bytes()) == (name, value)


def test_a_repository_is_fetched_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.add("me/model", FILES | {"pytorch_model.bin": b"a pickle", "notes.py": b"import os"})
    folder = sources.local("me/model")
    assert content(folder) == FILES  # nothing else of it
    hub.requests.clear()
    assert sources.local("me/model") == folder
    assert not any(request.startswith("GET") and "/resolve/" in request for request in hub.requests)
    hub.add("me/model", {"labels.json": b'["a"]'})
    assert content(sources.local("me/model"))["labels.json"] == b'["a"]'
    assert content(sources.local(f"me/model@{first}")) == content(sources.local("me/model", first)) == FILES
    with pytest.raises(UserError, match=r"me/model@main: names the revision main, and revision=other another one"):
        sources.local("me/model@main", "other")


def test_without_a_network_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/model", FILES)
    folder = sources.local("me/model")
    at(monkeypatch, ELSEWHERE)
    assert sources.local("me/model") == folder
    with pytest.raises(UserError, match=r"me/other: is no path here, the hub cannot be asked .*hf download me/other"):
        sources.local("me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    at(monkeypatch, hub.url)
    hub.requests.clear()
    assert sources.local("me/model") == folder
    assert hub.requests == []
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        sources.local("me/other")


def test_what_the_hub_refuses_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/model", FILES)
    with pytest.raises(UserError, match=r"me/none: there is no such path here and no such repository.*hf auth login"):
        sources.local("me/none")
    with pytest.raises(UserError, match="me/model: the repository has no revision v9"):
        sources.local("me/model", "v9")
    with pytest.raises(UserError, match=r"a--b/c: is neither a path here nor an id of the hub"):
        sources.local("a--b/c")
    hub.private.add("me/model")
    with pytest.raises(UserError, match="no such repository"):
        sources.local("me/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert content(sources.local("me/model")) == FILES


def test_a_file_of_the_hub(hub: Hub) -> None:
    hub.add("peer/model", {"exp/a.ckpt": b"weights", "b.ckpt": b"others"})
    assert sources.file("hf:peer/model/exp/a.ckpt").read_bytes() == b"weights"
    assert sources.file(f"hf:peer/model@{commit_hash('peer/model', 0)}/b.ckpt").read_bytes() == b"others"
    with pytest.raises(UserError, match=r"hf:peer/model/c.ckpt: peer/model has no file c.ckpt"):
        sources.file("hf:peer/model/c.ckpt")
    with pytest.raises(UserError, match="expected hf:USER/NAME/FILE"):
        sources.file("hf:peer/model")


@pytest.mark.parametrize("prefix", ["", "my model/"])
def test_an_archive_from_the_web(prefix: str, tmp_path: Path) -> None:
    packed = archive({prefix + name: value for name, value in FILES.items()})
    with serving() as server:
        server.files["/a%20b/model.tar.gz"] = packed
        url = f"{server.url}/a%20b/model.tar.gz#sha256={hashlib.sha256(packed).hexdigest()}"
        folder = sources.local(url)
        assert content(folder) == FILES
        assert sources.local(url) == folder
        assert len(server.requests) == 1
    assert sources.local(url) == folder  # with the server gone
    (tmp_path / "cache/models" / url[-64:] / "model.tar.gz").write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"model.tar.gz: its sha256 is .*; remove it, and it is fetched again"):
        sources.local(url)


def test_an_address_that_cannot_be_trusted() -> None:
    packed = archive(FILES)
    with serving() as server:
        server.files |= {"/model.tar.gz": packed, "/evil.tar.gz": archive({"../evil": b"x"})}
        with pytest.raises(UserError, match=r"needs the checksum of its file, .*/model.tar.gz#sha256=HEX"):
            sources.local(f"{server.url}/model.tar.gz")
        with pytest.raises(UserError, match=f"its sha256 is {hashlib.sha256(packed).hexdigest()}, expected {'0' * 64}"):
            sources.local(f"{server.url}/model.tar.gz#sha256={'0' * 64}")
        with pytest.raises(UserError, match="expected an archive of a model's folder"):
            sources.local(f"{server.url}/model.bin#sha256={'0' * 64}")
        evil = hashlib.sha256(server.files["/evil.tar.gz"]).hexdigest()
        for _ in range(2):  # what was refused is not there the next time either
            with pytest.raises(UserError, match=r"evil.tar.gz: refused: its member '../evil'"):
                sources.local(f"{server.url}/evil.tar.gz#sha256={evil}")
    with pytest.raises(UserError, match=r"127.0.0.1:9/x.zip: cannot be downloaded: .*put it at .*x.zip"):
        sources.local(f"{ELSEWHERE}/x.zip#sha256={'0' * 64}")
