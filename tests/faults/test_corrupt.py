"""A checkpoint that the disk spoilt is found out by its checksum; the one before it is used, and the log says so."""

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Victim
from tests.faults.traces import saved_step


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[2 * len(content) // 3] ^= 4
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.fixture(scope="module")
def stopped(corpus: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped before its end, with two checkpoints to go on from."""
    first = Victim(corpus, tmp_path_factory.mktemp("stopped") / "run")
    run = first.start()
    first.reaches(5, run)
    run.signal(signal.SIGTERM)
    assert run.wait() == 143, run.text()
    assert (first.folder / "checkpoints" / "previous").is_dir()
    return first.folder


@pytest.fixture
def spoilt(stopped: Path, victim: Victim) -> Victim:
    shutil.copytree(stopped, victim.folder)
    return victim


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip_a_bit),
        pytest.param("train_state.pt", truncate, marks=slow),
        pytest.param("train_state.pt", flip_a_bit, marks=slow),
        pytest.param("model.safetensors", truncate, marks=slow),
        pytest.param("model.safetensors", Path.unlink, marks=slow),
        pytest.param("labels.json", empty, marks=slow),
        pytest.param("SHA256SUMS", flip_a_bit, marks=slow),
        pytest.param("config.yaml", flip_a_bit, marks=slow),
    ],
)
def test_the_one_before_is_used(spoilt: Victim, whole: Path, name: str, damage: Callable[[Path], None]) -> None:
    saved = saved_step(spoilt.folder)
    damage(spoilt.folder / "checkpoints" / "last" / name)
    run = spoilt.resume()
    assert run.wait() == 0, run.text()
    found = re.search(r"resumed at step (\d+)", run.text())
    assert found
    assert saved - 1 <= int(found[1]) <= saved  # of one and the same step, where it was validated in between
    assert name in run.text()
    assert "checkpoints/previous" in run.text()
    spoilt.assert_finishes_like(whole, run)


def test_where_both_are_spoilt_the_run_refuses(spoilt: Victim) -> None:
    for name in ("last", "previous"):
        flip_a_bit(spoilt.folder / "checkpoints" / name / "model.safetensors")
    before = sorted(path for path in spoilt.folder.rglob("checkpoints/**/*"))
    run = spoilt.resume()
    assert run.wait() == 2, run.text()
    for place in ("checkpoints/last", "checkpoints/previous"):
        assert place in run.text()
    assert "checksum" in run.text()
    assert "Traceback" not in run.text()
    assert sorted(path for path in spoilt.folder.rglob("checkpoints/**/*")) == before
