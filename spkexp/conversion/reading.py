"""The files of another toolkit's checkpoint: where they are, and what they say, without running any of it."""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from torch.serialization import safe_globals

from spkexp import foreign, sources
from spkexp.conversion.family import Tensors
from spkexp.errors import UserError

WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
# Under which of its keys a file of more than tensors has them.
_STATE = ("state_dict", "model_state_dict", "model", "net", "embedding_model")
# Folders of a training run, at whose end its config stands: exp/models/avg_model.pt, results/save/CKPT+…/….ckpt
_KEPT_IN = re.compile(r"models|save|CKPT.*")
# What wrappers of a model put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "embedding_model.")


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read.

    file: of the weights. tensors: of the encoder and of what hangs on it, without wrappers' prefixes.
    rest: what else the file says. companions: other files that belong to it, by name.
    """

    file: Path
    tensors: Tensors
    rest: dict[str, Any]
    companions: dict[str, Path]


def locate(source: str, files: Sequence[str], companions: Sequence[str]) -> tuple[Path, dict[str, Path]]:
    """The file of weights that `source` means, with the companions that lie there. Raises UserError.

    source: a file or a folder here, an address with a checksum, an id of the hub (user/name) or hf:user/name/FILE.
    files: what weights are called in a folder, in the order in which they are looked for.
    """
    if source.startswith("hf:"):
        file = sources.file(source)
        beside = source.rpartition("/")[0]
    elif sources.is_remote(source) and not re.match(r"https?:", source):
        file, beside = _on_hub(source, files), f"hf:{source}"
    else:
        is_archive = source.partition("#")[0].lower().endswith(sources.ARCHIVES) and sources.is_remote(source)
        file, beside = Path(sources.local(source) if is_archive else sources.file(source)), ""
    if beside:  # the cache keeps the files of a repository in one folder
        for name in companions:
            with suppress(UserError):  # most repositories have only some
                sources.file(f"{beside}/{name}")
    if file.is_dir():
        file = _in_folder(file, files)
    elif not file.exists():
        raise UserError(f"checkpoint={source}: there is no such file or folder")
    return file, _companions(file, companions)


def _on_hub(source: str, files: Sequence[str]) -> Path:
    reasons = []
    for name in files:
        try:
            return sources.file(f"hf:{source}/{name}")
        except UserError as error:
            reasons.append(str(error))
    raise UserError(f"checkpoint={source}: none of {', '.join(files)} can be had from there: {reasons[0]}")


def _in_folder(folder: Path, files: Sequence[str]) -> Path:
    for name in files:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())
    if len(others) == 1:
        return folder / others[0]
    what = f"it has {', '.join(others[:8])}: name one" if others else "give the file"
    raise UserError(f"checkpoint={folder}: holds none of {', '.join(files)}; {what}")


def _companions(file: Path, names: Iterable[str]) -> dict[str, Path]:
    """Beside the file, or above the folders that the toolkits keep the checkpoints of a training run in."""
    found: dict[str, Path] = {}
    own = place = file.absolute().parent
    while True:
        for name in names:
            # A head beside other weights is not this one's.
            if (place == own or Path(name).suffix not in WEIGHTS) and (place / name).is_file():
                found.setdefault(name, place / name)
        if not _KEPT_IN.fullmatch(place.name):
            return found
        place = place.parent


class _Shell:
    """Stands for an object of another package that a checkpoint mentions; drops what it would be made of."""

    def __new__(cls, *values: Any, **named: Any) -> "_Shell":
        return object.__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read(file: Path, shells: Sequence[str] = ()) -> tuple[Tensors, dict[str, Any]]:
    """(the tensors of a file of weights, what else it says). Raises UserError.

    shells: classes whose objects are empty shells in what is returned; the classes themselves are not looked for.
    """
    # Still with weights_only: the names of these classes come to mean a class of ours that does nothing.
    with safe_globals([(_Shell, name) for name in shells]):
        content = foreign.read_tensors(file)
    key = next((key for key in _STATE if isinstance(content.get(key), dict)), None)
    state = content if key is None else content[key]
    rest = {} if key is None else {name: value for name, value in content.items() if name != key}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    others = [str(name) for name in state if str(name) not in tensors]
    if not tensors:
        raise UserError(f"{file}: holds no tensors by name; it has {', '.join(others[:8]) or 'nothing'}")
    if others and key is not None:
        raise UserError(f"{file}: its {key} holds what is no tensor: {', '.join(others[:8])}")
    rest |= {name: state[name] for name in others if name in state}
    return unwrapped(tensors), rest


def unwrapped(tensors: Tensors) -> Tensors:
    """Without what DistributedDataParallel, torch.compile and the like put before every name."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


class _InertLoader(foreign.PlainLoader):
    """A tag (!new:, !apply:, !ref) is not followed: its node is read as the plain mapping, list or text that it is."""

    def plain(self, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {"!": suffix} | self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return self.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_InertLoader.add_multi_constructor("!", _InertLoader.plain)
_InertLoader.add_multi_constructor("tag:yaml.org,2002:python/", _InertLoader.plain)


def read_settings(file: Path) -> dict[str, Any]:
    """A config in YAML whose values may be `<name>` or `!ref <name>` for other values of it. Raises UserError.

    What a tag would make is not made. A mapping with a tag has it under "!".
    """
    try:
        found = yaml.load(foreign.read_text(file), _InertLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no settings by name")
    return {str(key): _resolved(value, found) for key, value in found.items()}


def _resolved(value: Any, names: dict[Any, Any]) -> Any:
    if isinstance(value, dict):
        return {str(key): _resolved(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, names) for inner in value]
    match = re.fullmatch(r"<(\w+)>", value) if isinstance(value, str) else None
    named = names.get(match[1]) if match else None
    return named if isinstance(named, str | int | float | bool | list) else value


def read_labels(file: Path) -> list[str]:
    """Names of classes in the order of their numbers. Raises UserError.

    A JSON list; SpeechBrain's label_encoder.txt ('name' => number); or a text whose lines each begin with a name.
    """
    text = foreign.read_text(file, foreign.LABELS_BYTES)
    if text.lstrip().startswith("["):
        found = foreign.read_json(file, foreign.LABELS_BYTES)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(f"{file}: holds no list of names")
        return found
    if numbered := re.findall(r"^'(.*)' => (\d+)$", text.partition("\n====")[0], re.MULTILINE):
        by_number = {int(number): name for name, number in numbered}
        if sorted(by_number) != list(range(len(numbered))):
            raise UserError(f"{file}: its numbers are not 0 to {len(numbered) - 1}, each once")
        return [by_number[number] for number in range(len(numbered))]
    return [line.split()[0] for line in text.splitlines() if line.strip()]
