"""Checkpoints that a kill at any moment leaves whole.

A checkpoint is a folder. A new one is written beside the old under `NAME.partial`, flushed to disk, renamed to
`NAME.new` (from then on it is complete), and takes the place of the old one; `find` copes with what a kill in
between left.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spkexp.errors import UserError

MODEL, CONFIG, LABELS, STATE = "model.safetensors", "config.yaml", "labels.json", "train_state.pt"
HEAD = "head."  # the head's tensors are in the model file under this prefix


def save(
    folder: Path,
    model: nn.Module,
    head: nn.Module,
    config: DictConfig,
    labels: list[str],
    state: Mapping[str, Any],
) -> None:
    """Write the checkpoint `folder`, replacing the one of that name in one go.

    state: what training needs to go on; tensors, numbers, text and containers of them only.
    Raises UserError where the disk does not take it; the previous checkpoint is then untouched.
    """
    tensors = dict(model.state_dict())
    tensors |= {f"{HEAD}{name}": tensor for name, tensor in head.state_dict().items()}
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial / MODEL)
        OmegaConf.save(config, partial / CONFIG)
        (partial / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=0), encoding="utf-8")
        torch.save(dict(state), partial / STATE)
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        _replace(partial, folder)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        # torch and safetensors raise errors of their own for a full disk; the file system knows the reason.
        shutil.rmtree(partial, ignore_errors=True)
        cause = os.strerror(errno.ENOSPC) if _is_full(error) else str(error).splitlines()[0]
        raise UserError(
            f"{folder}: the checkpoint cannot be saved: {cause}. The previous one is whole; "
            f"make room, then go on with resume={folder.parent.parent}"
        ) from error


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or any(
        words in str(error) for words in ("No space left", "os error 28", "file write failed", "unexpected pos")
    )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(partial: Path, folder: Path) -> None:
    new, old = (folder.with_name(f"{folder.name}.{kind}") for kind in ("new", "old"))
    left = repaired(folder)
    if left is not None and left != folder:
        left.rename(folder)
    shutil.rmtree(new, ignore_errors=True)
    partial.rename(new)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find(source: str | Path, name: str = "best") -> Path:
    """The checkpoint folder that `source` means: a checkpoint folder itself, or checkpoints/`name` of a run folder.

    A run without `name` gives its last. Raises UserError.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(f"{source}: no such run folder")
    if (source / MODEL).is_file():
        return source
    for candidate in dict.fromkeys((name, "last")):
        if (folder := repaired(source / "checkpoints" / candidate)) is not None:
            return folder
    raise UserError(f"{source}: holds no checkpoint ({MODEL} or checkpoints/{name}/{MODEL}); give a run folder")


def repaired(folder: Path) -> Path | None:
    """`folder`, or what stands in for it where a kill fell between the renames of `save`; None: there is none."""
    for candidate in (folder, folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")):
        if (candidate / MODEL).is_file():
            return candidate
    return None


def load_config(folder: Path) -> DictConfig:
    """The config that stands in a run or checkpoint folder."""
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder}: has no {CONFIG}, so it is no run folder")
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    return config


def load_labels(folder: Path) -> list[str]:
    """Names of the classes of the head, in the order of its outputs."""
    return json.loads((folder / LABELS).read_text(encoding="utf-8"))


def load_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as `state`; runs no code from the file."""
    try:
        return torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{folder / STATE}: cannot be read ({_first_line(error)}); resume from another checkpoint"
        ) from error


def load_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the model, tensors of the head)."""
    try:
        tensors = load_file(folder / MODEL)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / MODEL}: cannot be read ({_first_line(error)})") from error
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}
    head = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    return model, head


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: Path, what: str) -> None:
    """Copy `tensors` into `module`, all of them and nothing else. Raises UserError that lists what does not fit."""
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not expected" for name in tensors if name not in own]
    wrong += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise UserError(f"{where}: does not fit this {what}: {'; '.join(wrong[:5])}" + (" …" if len(wrong) > 5 else ""))
    module.load_state_dict(dict(tensors))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
