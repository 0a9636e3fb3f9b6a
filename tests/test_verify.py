"""`python -m spkexp.verify` and `spkexp.load`: what is typed wrongly is named, and what holds no voice is told."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import spkexp
from spkexp.errors import UserError
from spkexp.inference.gallery import Gallery
from tests.conftest import Run, voice
from tests.inference_tools import tiny_model

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a threshold, two recordings (one with an equals sign in its name), silence, and a click."""
    folder = tmp_path_factory.mktemp("verify")
    tiny_model(folder / "model")
    for name, wave in (
        ("a.wav", voice(0, 0, 0.6)),
        ("take=2.wav", voice(1, 0, 0.6)),
        ("silence.wav", np.zeros(RATE)),
        ("click.wav", voice(0, 0, 0.6)[:48]),
    ):
        soundfile.write(folder / name, wave, RATE, subtype="PCM_16")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modle=model", "a.wav", "b.wav"], "modle: verify takes no 'modle'; did you mean 'model'?"),
        (["--model=model", "a.wav", "b.wav"], "--model: write it as model=VALUE"),
        (["--model", "model", "a.wav", "b.wav"], "--model: write it as model=VALUE"),
        (["model=model", "speed=3", "a.wav", "b.wav"], "speed: verify takes no 'speed'; it takes device, model, "),
        (["model=model", "--fast", "a.wav", "b.wav"], "fast: verify takes no 'fast'; it takes"),
        (["model=model", "a.wav", "a.wav", "threshold=2"], "threshold: must be <= 1, got '2'"),
        (["model=model", "a.wav", "a.wav", "device=gpu"], "device=gpu: expected auto, cpu, cuda or cuda:NUMBER; did"),
    ],
)
def test_mistakes(
    run_command: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    done = run_command("verify", *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_threshold_of_ones_own(run_command: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = ["model=model", "a.wav", "take=2.wav", "device=cpu"]  # a file's name may look like a key
    undecided = run_command("verify", *arguments)
    assert undecided.out.endswith("so there is no threshold; threshold=T decides at a score of yours\n")
    score = float(undecided.out.split()[1])
    assert -1 < score < 1
    for threshold, verdict in ((-1, "same speaker"), (1, "different speakers")):
        done = run_command("verify", *arguments, f"threshold={threshold}")
        assert done == (0, f"score {score:.4f}\n{verdict} (threshold {threshold:.4f}, given by the caller)\n", "")


def test_a_file_that_is_not_there_has_nothing_to_do_with_a_manifest(run_command: Run, folder: Path) -> None:
    done = run_command("verify", f"model={folder / 'model'}", str(folder / "a.wav"), "nope.wav")
    assert (done.code, done.err) == (2, "spkexp: nope.wav: no such file\n")


def test_what_holds_no_voice_is_told_once_a_call(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = spkexp.load(folder / "model", device="cpu")
    silence, click, whole = (str(folder / f"{name}.wav") for name in ("silence", "click", "a"))
    told = [
        f"{silence}: 1 s: digital silence: its embedding means nothing (and 1 more)",
        f"{click}: 0.003 s: too short for its embedding to mean anything",
    ]
    calls: list[tuple[Any, list[str]]] = [
        (lambda: model.embed([click, whole, silence, np.zeros(RATE)], batch_seconds=1.0), told),
        (lambda: model.verify(whole, click), told[1:]),
        (lambda: model.classify(click), told[1:]),
        (lambda: model.embed([whole, voice(0, 0, 0.1), 1e-4 * np.ones(RATE)]), []),
    ]
    for call, expected in calls:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "spkexp"):
            call()
        assert caplog.messages == expected


def test_the_command_warns_of_silence(run_command: Run, folder: Path) -> None:
    done = run_command("verify", f"model={folder / 'model'}", str(folder / "a.wav"), str(folder / "silence.wav"))
    assert done.code == 0
    assert "silence.wav: 1 s: digital silence: its embedding means nothing" in done.err


def test_what_is_printed_and_what_is_refused(folder: Path) -> None:
    model = spkexp.load(folder / "model", device="cpu")
    assert f"{model!r}" == (
        f"TrainedModel({folder / 'model'}: embedding of 24, 16000 Hz, on cpu, fp32, 4 classes, threshold none)"
    )
    assert repr(model.gallery) == "Gallery(0 speakers)"
    gallery = Gallery(2)
    for name in "abcdef":
        gallery.add(name, np.ones((1, 2), dtype=np.float32))
        if name == "a":
            assert repr(gallery) == "Gallery(1 speaker: a)"
    assert repr(gallery) == "Gallery(6 speakers: a, b, c, d, e, …)"
    with pytest.raises(UserError, match="precision=fp16: expected fp32 or bf16"):
        spkexp.load(folder / "model", precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="named by a path or user/name, as text, not by None"):
        spkexp.load(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["embed", "verify"])
def test_help_fits_a_terminal(run_command: Run, command: str) -> None:
    assert [line for line in run_command(command, "--help").out.splitlines() if len(line) > 80] == []
