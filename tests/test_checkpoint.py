"""A checkpoint is whole after a kill at any moment, a full disk included."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from spkexp import checkpoint
from spkexp.errors import UserError

CONFIG = OmegaConf.create({"model": {"_target_": "x"}, "seed": 0})


def modules(value: float) -> tuple[nn.Module, nn.Module]:
    model, head = nn.Linear(300, 300), nn.Linear(3, 2)
    for parameter in (*model.parameters(), *head.parameters()):
        nn.init.constant_(parameter, value)
    return model, head


def save(folder: Path, value: float) -> None:
    checkpoint.save(folder, *modules(value), CONFIG, ["a", "ü"], {"step": int(value), "optimizer": {"state": {}}})


def value_of(folder: Path) -> float:
    """The one value that all tensors of a whole checkpoint hold."""
    found = checkpoint.repaired(folder)
    assert found is not None
    model, head = checkpoint.load_tensors(found)
    values = {float(v) for tensor in (*model.values(), *head.values()) for v in tensor.flatten()}
    assert len(values) == 1
    assert checkpoint.load_state(found)["step"] == next(iter(values))
    assert checkpoint.load_labels(found) == ["a", "ü"]
    assert checkpoint.load_config(found).seed == 0
    return next(iter(values))


def test_saves_and_replaces(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "last"
    save(folder, 1.0)
    save(folder, 2.0)
    assert value_of(folder) == 2.0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["last"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "labels.json",
        "model.safetensors",
        "train_state.pt",
    ]
    assert checkpoint.find(tmp_path / "run") == folder
    assert checkpoint.find(folder) == folder


def test_loading_names_what_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "last", 1.0)
    model, _ = checkpoint.load_tensors(tmp_path / "last")
    with pytest.raises(UserError, match=r"weight has shape \[300, 300\], expected \[5, 300\]"):
        checkpoint.load_into(nn.Linear(300, 5), model, tmp_path, "model")
    with pytest.raises(UserError, match="bias is not expected"):
        checkpoint.load_into(nn.Linear(300, 300, bias=False), model, tmp_path, "model")
    with pytest.raises(UserError, match="no such run folder"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.find(tmp_path)
    (tmp_path / "last" / "train_state.pt").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"train_state.pt: cannot be read"):
        checkpoint.load_state(tmp_path / "last")
    (tmp_path / "last" / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read"):
        checkpoint.load_tensors(tmp_path / "last")


def test_state_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    save(tmp_path / "last", 1.0)
    torch.save({"step": Evil()}, tmp_path / "last" / "train_state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_state(tmp_path / "last")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("left", ["new", "old", "both"])
def test_kill_between_the_renames(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "last"
    if left in ("new", "both"):
        save(folder, 2.0)
        folder.rename(tmp_path / "last.new")
    if left in ("old", "both"):
        save(tmp_path / "x", 1.0)
        (tmp_path / "x").rename(tmp_path / "last.old")
    assert value_of(folder) == (1.0 if left == "old" else 2.0)
    save(folder, 3.0)
    assert value_of(folder) == 3.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_sigkill_at_any_moment(tmp_path: Path) -> None:
    """A process that saves without pause is killed again and again; what is left is always whole, and never older."""
    script = tmp_path / "saver.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from tests.test_checkpoint import save, value_of
        folder = Path({str(tmp_path / "last")!r})
        start = int(value_of(folder)) if folder.parent.joinpath("begun").exists() else 0
        for value in range(start + 1, start + 10_000):
            save(folder, float(value))
            folder.parent.joinpath("begun").touch()
            print(value, flush=True)
        """)
    )
    latest = 0.0
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        confirmed = int(process.stdout.readline())
        time.sleep(0.013 * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        confirmed = max([confirmed, *(int(line) for line in process.stdout if line.endswith("\n"))])
        process.wait()
        found = value_of(tmp_path / "last")
        assert found >= confirmed > latest
        latest = found


def test_full_disk_leaves_the_previous_one(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "last"
    save(folder, 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # A limit on the size of files makes writes fail half way, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            UserError, match=r"last: the checkpoint cannot be saved: .*previous one is whole.*resume=.*run"
        ):
            save(folder, 2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert value_of(folder) == 1.0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["last"]
