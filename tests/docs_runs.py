"""The commands of the pages run for real, in small: trainings of two steps, sweeps of two jobs, hardly any data."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import docs_material, fake_slurm
from tests.docs_commands import ROOT, Command, call_of_ours, moved
from tests.docs_material import SMALL_VOICES, TEACHER

PLACEHOLDER_RUNS = ["RUN", "RUN2", "RUN3"]
# Keys of training that make it small, whatever the page gives them.
_SMALL = {
    "trainer.max_steps": "2",
    "trainer.epochs": "1",
    "trainer.batch_size": "4",
    "trainer.log_every": "1",
    "scoring.bootstrap": "10",
    "scoring.projection": "null",
}
_SELF_SUPERVISED = ("wav2vec2", "hubert", "wavlm")


def reduced(name: str, arguments: list[str]) -> list[str]:
    """The arguments of a command of ours with what makes it take seconds, and paths below the current folder."""
    words = [moved(word) for word in arguments]
    runs = iter(PLACEHOLDER_RUNS)
    if name in ("compare", "calibrate"):
        words = [next(runs) if word == "RUN" else word for word in words]
    if name == "profile":
        given = {word.partition("=")[0] for word in words}
        words += [word for word in ("batch_sizes=1", "seconds=0.5") if word.partition("=")[0] not in given]
        return [word for word in words if not word.startswith("steps=")] + ["steps=0"]
    if name != "train" or {"--help", "--cfg"} & set(words):
        return words
    keys = dict(word.partition("=")[::2] for word in words)
    if keys.get("resume", "auto") not in ("auto", "never"):
        return words
    small, swept = dict(_SMALL), 0
    for index, word in enumerate(words):
        if re.fullmatch(r"[\w./]+=[\w.-]+(,[\w.-]+)+", word):  # of a sweep two jobs
            words[index] = ",".join(word.split(",")[: 1 if swept else 2])
            swept += 1
    if keys.get("data.crop_seconds") != "null":
        small["data.crop_seconds"] = "0.5"
    if keys.get("data", "synthetic") == "synthetic":
        small |= SMALL_VOICES
    if any(model in _SELF_SUPERVISED for model in keys.get("model", "").split(",")):
        small |= {"model.encoder.pretrained": "null", "model.encoder.num_layers": "1"}
    if "trainer.nproc" in keys:
        small["trainer.nproc"] = "2"
    for key, value in (("hydra/sweeper", "hydra.sweeper.n_trials=2"), ("hydra/launcher", "hydra.launcher.nodes=1")):
        if keys.get(key) in ("optuna", "submitit_slurm"):
            small[value.partition("=")[0]] = value.partition("=")[2]
    if keys.get("distill.target") == "scores":  # of the same speakers
        small["distill.teacher"] = TEACHER
    if keys.get("init_from") == "RUN" and "model" in keys:  # of the same model
        shape = [f"{key}={value}" for key, value in small.items() if key.startswith("model.")]
        small["init_from"] = docs_material.untrained([f"model={keys['model']}", *shape])
    kept = [word for word in words if word.partition("=")[0] not in small]
    return [*kept, *(f"{key}={value}" for key, value in small.items())]


def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it in the current folder, in small; one of ours in this process where that can be. It must succeed."""
    ours = call_of_ours(command.words)
    if ours is None:
        if command.words[:2] == ("python", "-c"):
            exec(compile(command.words[2], command.place, "exec"), {})
        return
    name, arguments = ours[0], reduced(*ours)
    arguments = [path for word in arguments for path in _expanded(word)]
    launcher = next((word.partition("=")[2] for word in arguments if word.startswith("hydra/launcher=")), None)
    with monkeypatch.context() as patch:
        for variable, value in command.variables:
            patch.setenv(variable, value)
        if command.words[0] == "torchrun" or launcher is not None:
            _run_apart(command, name, arguments, launcher)
            return
        patch.setattr(sys, "argv", [f"spkexp.{name}", *arguments])
        code: Any = 0
        try:
            importlib.import_module(f"spkexp.{name}").main()
        except SystemExit as end:
            code = end.code
        assert not code, f"{command.place}: {command.text} ended with exit code {code}"


def _expanded(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) or [word] if "*" in word and "=" not in word else [word]


def _run_apart(command: Command, name: str, arguments: list[str], launcher: str | None) -> None:
    """In processes of its own: launches, and launchers, Slurm's on the commands of tests/fake_slurm.py."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m"]
    if command.words[0] == "torchrun":
        program += ["torch.distributed.run", "--nproc-per-node=2", "-m"]
    if launcher == "submitit_slurm":
        environment |= fake_slurm.install(Path("slurm").absolute())
    done = subprocess.run(
        [*program, f"spkexp.{name}", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command.place}: {command.text}\n{done.stdout}\n{done.stderr}"
