"""Mini LibriSpeech, fetched from a real server on this machine."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.data.corpora import mini_librispeech
from spkexp.data.corpora.mini_librispeech import MiniLibriSpeech
from spkexp.errors import UserError
from tests.archive_server import Server, pack, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


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
    assert table.columns == ["id", "path", "speaker", "chapter"]  # one subset: data.split decides
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


def test_not_into_another_corpus(server: Server, corpus: Callable[..., MiniLibriSpeech], tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech/train-clean-100/1/7").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "LibriSpeech"):
        with pytest.raises(UserError, match=r"this is LibriSpeech, and .*choose another data\.root.*data=librispeech"):
            corpus("train-clean-5").table(root)
    assert server.requests == []


def test_what_is_missing_of_the_known_counts(
    corpus: Callable[..., MiniLibriSpeech], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus("train-clean-5", "dev-clean-2").table(tmp_path / "root")
    assert "train-clean-5: 2 of 28 speakers, 4 of 1,519 utterances" in caplog.text
    assert "dev-clean-2: 1 of 38 speakers, 2 of 1,089 utterances" in caplog.text


def _table(mirror: str, checksums: dict[str, str], root: Path, found: "multiprocessing.Queue[int]") -> None:
    mini_librispeech.MD5.update(checksums)
    found.put(len(MiniLibriSpeech(subsets=["train-clean-5"], download=True, mirror=mirror).table(root)))


@pytest.mark.usefixtures("corpus")
def test_processes_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    arguments = (f"{server.url}/31", dict(mini_librispeech.MD5), tmp_path / "root", found)
    workers = [context.Process(target=_table, args=arguments, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [found.get(timeout=30) for _ in workers] == [4] * 2
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0
    assert len(server.requests) == 1
