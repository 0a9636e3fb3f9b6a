"""What a run leaves: whether all of it can be read, and what two runs came to, to be compared bit for bit."""

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def last_step(folder: Path) -> int:
    return max((line["step"] for line in metrics(folder)), default=0)


def saved_step(folder: Path) -> int:
    """The newest step that the folder of a run holds, whichever name a kill left it under; 0 where there is none."""
    places = [folder / "checkpoints" / name for name in ("last", "last.new", "previous")]
    states = [place / "train_state.pt" for place in places if (place / "train_state.pt").is_file()]
    return max((torch.load(file, weights_only=True)["position"]["step"] for file in states), default=0)


def lost_steps(folder: Path, reached: int) -> int:
    """Steps that a run which got as far as `reached` has to do again."""
    return max(0, reached - saved_step(folder))


def broken_files(folder: Path) -> list[str]:
    """Every file below the run folder that its reader cannot read; what is marked as being written does not count."""
    wrong = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(part.endswith(".partial") for part in file.relative_to(folder).parts):
            continue
        try:
            _read(file)
        except Exception as error:
            wrong.append(f"{file.relative_to(folder)}: {type(error).__name__}: {str(error)[:100]}")
    return wrong


def _read(file: Path) -> None:
    """Raises where `file` is not whole."""
    if file.name == "SHA256SUMS" or file.suffix == ".sha256":
        for line in file.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            if not line.startswith("#") and hashlib.sha256((file.parent / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} has another checksum")
    elif file.suffix == ".jsonl":
        for line in file.read_text(encoding="utf-8").splitlines():
            json.loads(line)
    elif file.suffix == ".json":
        json.loads(file.read_text(encoding="utf-8"))
    elif file.suffix == ".yaml":
        OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    elif file.suffix == ".safetensors":
        load_file(file)
    elif file.suffix == ".pt":
        torch.load(file, weights_only=True)
    elif file.suffix == ".png":
        if not file.read_bytes().endswith(b"IEND\xaeB`\x82"):
            raise ValueError("cut short")
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as stream:
            if len({len(row) for row in csv.reader(stream)}) != 1 or not file.read_bytes().endswith(b"\n"):
                raise ValueError("cut short")
    elif file.parent.name == "scores":
        text = file.read_text(encoding="utf-8")
        if not text.endswith("\n") or any(len(line.split()) != 4 for line in text.splitlines()):
            raise ValueError("cut short")


# What depends on the clock, or on how often a run was broken.
CLOCK = {"seconds", "train_seconds", "utterances_per_second", "data_wait", "checkpoint_seconds"}


def result(folder: Path) -> dict[str, Any]:
    """All that a run came to, for `differences`: checkpoints, metrics, results and scores, without times."""
    found: dict[str, Any] = {"metrics": _timeless(metrics(folder))}
    for name in ("last", "best"):
        place = folder / "checkpoints" / name
        found[f"{name} weights"] = load_file(place / "model.safetensors")
        found[f"{name} state"] = _timeless(torch.load(place / "train_state.pt", weights_only=True))
    found["results"] = _timeless(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    found["scores"] = {file.name: file.read_text(encoding="utf-8") for file in sorted((folder / "scores").iterdir())}
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in CLOCK}
    return [_timeless(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Dotted names of all that is not the same, tensors bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{where}.{key}: only in one" for key in sorted(map(str, a.keys() ^ b.keys()))]
        return missing + [line for key in a if key in b for line in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [line for index in range(len(a)) for line in differences(a[index], b[index], f"{where}.{index}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [f"{where}: tensors differ"]
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return [] if a == b or both_nan else [f"{where}: {a!r} and {b!r}"]
