"""Small real material that several tests share."""

import atexit
import importlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import soundfile

from tests.wandb_server import WandbServer, wandb_server
from tests.wandb_tools import wandb_of_its_own

# Of everything that is run here, in this process and in others; synthetic voices have a place of their own.
os.environ["SPKEXP_CACHE"] = tempfile.mkdtemp(prefix="spkexp-cache-")
atexit.register(shutil.rmtree, os.environ["SPKEXP_CACHE"], ignore_errors=True)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real speech beside the repository."""
    if not (SHARED / "utterances.csv").is_file():
        pytest.skip(f"no real speech at {SHARED}")
    return SHARED


def voice(speaker: int, utterance: int, seconds: float) -> np.ndarray:
    """A buzz whose pitch and resonance are the speaker's: enough for a loss to fall."""
    rng = np.random.default_rng([speaker, utterance])
    time = np.arange(round(seconds * 16_000)) / 16_000
    pitch = 90 + 25 * speaker + rng.normal(0, 4)
    resonance = 500 + 180 * speaker
    harmonics = np.arange(1, 24) * pitch
    gains = 1 / (1 + ((harmonics - resonance) / 250) ** 2)
    wave = (gains[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time + rng.uniform(0, 6, (23, 1)))).sum(axis=0)
    return (0.1 * wave / np.abs(wave).max() + rng.normal(0, 0.003, len(time))).astype(np.float32)


Corpus = Callable[..., Path]


@pytest.fixture
def make_corpus(tmp_path: Path) -> Corpus:
    """make_corpus(speakers=…, utterances=…, seconds=…) writes wav files and a manifest.csv, and returns its path."""

    def make(speakers: int = 6, utterances: int = 8, seconds: float = 0.6, folder: str = "my speech ü") -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        rows = []
        for speaker in range(speakers):
            for number in range(utterances):
                name = f"spk{speaker}-{number}"
                wave = voice(speaker, number, seconds + 0.05 * (number % 3))
                soundfile.write(root / f"{name}.wav", wave, 16_000, subtype="PCM_16")
                split = "train" if speaker < speakers - 2 else "val"
                rows.append((name, f"{name}.wav", len(wave) / 16_000, f"s{speaker}", split))
        columns = ["id", "path", "duration", "speaker", "split"]
        pl.DataFrame(rows, schema=columns, orient="row").write_csv(root / "manifest.csv")
        return root / "manifest.csv"

    return make


class Done(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@contextmanager
def logging_restored() -> Iterator[None]:
    """A command sets up handlers and levels for its process, which here goes on to other tests."""
    root, package = logging.getLogger(), logging.getLogger("spkexp")
    handlers, levels = list(root.handlers), (root.level, package.level)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
    for logger, level in zip((root, package), levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    with logging_restored():
        yield


@pytest.fixture(autouse=True, scope="module")
def logging_as_it_was_before_the_module() -> Iterator[None]:
    """What a module's own fixtures run is not a test's."""
    with logging_restored():
        yield


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run_command("train", ARGUMENT, …) is `python -m spkexp.train ARGUMENT …`, in this process. Never a traceback."""

    def run(command: str, *arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", [f"spkexp.{command}", *arguments])
        capsys.readouterr()
        code = 0
        try:
            importlib.import_module(f"spkexp.{command}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(code, out, err)

    return run


@pytest.fixture
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """wandb as on a machine that has never seen it; gives what sets its variables."""
    with wandb_of_its_own(tmp_path, monkeypatch):
        yield monkeypatch


@pytest.fixture
def wandb_service(own_wandb: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server on this machine, to which wandb has the address and a key."""
    with wandb_server() as running:
        own_wandb.setenv("WANDB_BASE_URL", running.url)
        own_wandb.setenv("WANDB_API_KEY", "0" * 40)
        yield running
