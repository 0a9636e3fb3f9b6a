"""Checkpoints that a kill at any moment leaves whole, and that tell when a disk did not.

A checkpoint is a folder. A new one is written beside the old under `NAME.partial`, with SHA256SUMS, flushed to disk,
renamed to `NAME.new` (from then on it is complete), and takes the place of the old one. The `last` of before stays as
`previous`, for the day that the disk spoils the last. Readers cope with what a kill in between left.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from spkexp import durable, foreign, saved_config, sources
from spkexp.errors import UserError

log = logging.getLogger(__name__)

MODEL, CONFIG, LABELS, STATE = "model.safetensors", "config.yaml", "labels.json", "train_state.pt"
PORTABLE = (MODEL, CONFIG, LABELS)  # what a user of the trained model needs
FILES = (*PORTABLE, STATE)
LAST, PREVIOUS, BEST = "last", "previous", "best"  # in the folder `checkpoints` of a run
RESULTS = "results.json"
HEAD = "head."  # the head's tensors are in the model file under this prefix
UNWRITTEN = (OSError, RuntimeError, safetensors.SafetensorError)  # torch and safetensors have errors of their own


def save(
    folder: Path,
    model: nn.Module,
    head: nn.Module,
    config: DictConfig,
    labels: list[str],
    state: Mapping[str, Any],
) -> None:
    """Write the checkpoint `folder`, replacing the one of that name in one go; a former `last` becomes `previous`.

    state: what training needs to go on; tensors, numbers, text and containers of them only.
    Raises UserError where the disk does not take it; the checkpoints that were there are then untouched.
    """

    def write(partial: Path) -> None:
        _write_portable(partial, tensors_of(model, head), config, labels)
        # Into a file of our own, for torch hides the reason why one of its own cannot be written.
        with (partial / STATE).open("wb") as file:
            torch.save(dict(state), file)

    former = folder.with_name(PREVIOUS) if folder.name == LAST else None
    try:
        _write_in_one_go(folder, write, former)
    except UNWRITTEN as error:
        raise not_saved(folder, folder.parent, error) from error


def save_portable(
    folder: Path, model: nn.Module, head: nn.Module | None, config: DictConfig, labels: list[str]
) -> None:
    """Write what a user of the model needs, and nothing to go on training from, into `folder` in one go.

    head: None where the model has none; `labels` is then empty. What was in a folder of that name is gone.
    Raises UserError where the disk does not take it.
    """
    tensors = tensors_of(model, head)
    try:
        _write_in_one_go(folder, lambda partial: _write_portable(partial, tensors, config, labels), None)
    except UNWRITTEN as error:
        cause, remedy = durable.cause_and_remedy(error)
        raise UserError(f"{folder}: cannot be written: {cause}; {remedy}") from error


def _write_portable(folder: Path, tensors: dict[str, Tensor], config: DictConfig, labels: list[str]) -> None:
    save_file(tensors, folder / MODEL)
    OmegaConf.save(config, folder / CONFIG, resolve=True)
    (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=0), encoding="utf-8")


def _write_in_one_go(folder: Path, write: Callable[[Path], None], former: Path | None) -> None:
    """Have `write` fill a folder, seal it and put it in the place of `folder`, which becomes `former`."""
    partial = durable.beside(folder, "partial")
    try:
        for left in (partial, durable.beside(former or folder, "partial")):
            if left.exists():
                shutil.rmtree(left)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(folder))
        partial.mkdir(parents=True)
        write(partial)
        durable.seal(partial)
        durable.replace(partial, folder, former)
    except UNWRITTEN:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def tensors_of(model: nn.Module, head: nn.Module | None) -> dict[str, Tensor]:
    """Those of both, on the CPU."""
    tensors = dict(model.state_dict())
    if head is not None:
        tensors |= {f"{HEAD}{name}": tensor for name, tensor in head.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def not_saved(path: Path, checkpoints: Path, error: Exception) -> UserError:
    cause, remedy = durable.cause_and_remedy(error)
    before = any(os.path.isdir(checkpoints / name) for name in (LAST, BEST))
    untouched = "what was saved before is untouched; " if before else ""
    remedy = f"{remedy}, then go on with resume={checkpoints.parent}"
    return UserError(f"{path}: cannot be saved: {cause}; {untouched}{remedy}")


def verify(folder: Path, files: Collection[str] = FILES) -> str | None:
    """What is wrong with the checkpoint `folder`, in words: which file is missing, truncated or has changed.

    None: it is whole, or was written by a version that kept no checksums.
    """
    if not durable.there(folder / MODEL):
        return f"{MODEL} is missing"
    return durable.verify(folder, files)


def newest(run_folder: Path) -> Path | None:
    """The checkpoint to go on from: the newest of a run that is whole; None: the run has none.

    Each that is newer and damaged is warned of. Raises UserError where there are some and none is whole.
    """
    damaged: list[str] = []
    for folder in _existing(run_folder / "checkpoints", (LAST, PREVIOUS, BEST)):
        wrong = verify(folder)
        if wrong is None:
            for what in damaged:
                log.warning("%s; %s is whole and is used instead", what, folder)
            return folder
        damaged.append(f"{folder}: {wrong}")
    if damaged:
        raise UserError(
            "\n".join([*damaged, f"{run_folder}: no checkpoint is whole; bring one back from a copy, or start anew"])
        )
    return None


def settle(run_folder: Path, used: Path) -> None:
    """Make `used`, which `newest` found, the run's `last`, and remove the damaged ones that are newer.

    The next save then keeps it as `previous`, rather than a damaged one. The best stays what it is.
    """
    last = run_folder / "checkpoints" / LAST
    if used == last:
        durable.discard(durable.beside(last, "new"))
    elif used == durable.beside(last, "new"):
        durable.promote(last, last.with_name(PREVIOUS))
    else:
        for damaged in _existing(last.parent, (LAST, PREVIOUS)):
            if damaged == used:
                used.rename(last)
                return
            durable.discard(damaged)


def _existing(checkpoints: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Those of `names` that are there, with what a kill between the renames of `save` left, the newest first."""
    for name in names:
        folder = checkpoints / name
        places = (durable.beside(folder, "new"), folder, durable.beside(folder, "old"))
        yield from (place for place in places if durable.there(place) and place.is_dir())


def repaired(folder: Path) -> Path | None:
    """`folder`, or what stands in for it where a kill fell between the renames of `save`; None: there is none."""
    candidates = _existing(folder.parent, (folder.name,))
    return next((candidate for candidate in candidates if durable.there(candidate / MODEL)), None)


def find(source: str | Path, name: str = BEST) -> Path:
    """The checkpoint folder that `source` means: a checkpoint folder itself, or checkpoints/`name` of a run folder.

    What is far is fetched first, see `sources`. A run without `name` gives its last. Raises UserError, also where the
    model in it is damaged.
    """
    source = sources.local(source)
    if not durable.there(source):
        raise UserError(f"{source}: no such run folder")
    if durable.there(source / MODEL) or durable.there(source / durable.SUMS):
        return _whole(source)
    for candidate in dict.fromkeys((name, LAST, PREVIOUS)):
        if (folder := repaired(source / "checkpoints" / candidate)) is not None:
            return _whole(folder)
    raise UserError(f"{source}: holds no checkpoint ({MODEL} or checkpoints/{name}/{MODEL}); give a run folder")


def results_files(folder: Path) -> list[Path]:
    """Where the results of the checkpoint `folder` stand, the nearest first; empty: nowhere.

    Beside the model, where it was published or scored by itself, and in the run whose best it is (or is in the place of
    after a kill, best.new or best.old): the others of a run were not measured.
    """
    places = [folder]
    if folder.parent.name == "checkpoints" and folder.name.partition(".")[0] == BEST:
        places.append(folder.parent.parent)
    return [place / RESULTS for place in places if (place / RESULTS).is_file()]


def _whole(folder: Path) -> Path:
    """`folder`. Raises UserError where its model is damaged."""
    wrong = verify(folder, PORTABLE)
    if wrong is None:
        return folder
    others = (path for path in _existing(folder.parent, (BEST, LAST, PREVIOUS)) if path != folder)
    other = next((path for path in others if verify(path, PORTABLE) is None), None)
    remedy = f"{other} is whole: give that instead" if other else "bring the checkpoint back from a copy"
    raise UserError(f"{folder}: {wrong}; {remedy}")


def load_config(folder: Path, trust: Sequence[str] = ()) -> DictConfig:
    """The config that stands in a run or checkpoint folder; it may name classes of spkexp and of the packages `trust`.

    What it names is looked for nowhere. Raises UserError.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{folder}: has no {CONFIG}, so it is no run folder")
    config = saved_config.read(file)
    if not isinstance(config.get("model"), DictConfig):
        raise UserError(f"{file}: holds no config of a run; bring it back from a copy")
    saved_config.require_trusted(config, file, trust)
    return config


def named(config: DictConfig, what: Literal["model", "data"]) -> str:
    """What a config calls its model, or its data; "model" and "unknown" where it has no name for it."""
    names = config.get("names")
    name = names.get(what) if isinstance(names, DictConfig) else None
    return name if isinstance(name, str) and name else {"model": "model", "data": "unknown"}[what]


def load_labels(folder: Path) -> list[str]:
    """Names of the classes of the head, in the order of its outputs."""
    file = folder / LABELS
    labels = foreign.read_json(file, foreign.LABELS_BYTES)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{file}: holds no list of names; bring it back from a copy")
    return labels


def load_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as `state`; runs no code from the file."""
    try:
        return foreign.read_tensors(folder / STATE)
    except UserError as error:
        reason = _first_line(error.__cause__ or error)
        raise UserError(f"{folder / STATE}: cannot be read ({reason}); resume from another checkpoint") from error


def load_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the model, tensors of the head)."""
    return split(read_model(folder / MODEL))


def read_model(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError."""
    return foreign.read_tensors(file)


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
