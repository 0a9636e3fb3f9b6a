"""Every mistake in a config is found here, before data is touched and before torch is imported."""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError

from spkexp.errors import ConfigError, UserError
from spkexp.sections import Config
from spkexp.signature import Part, Signature, TargetError, holds_parts, read_signature
from spkexp.trust import untrusted

# Arguments that a config never states: `spkexp.build` derives them from the data or from another module.
RUN_TIME_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "model": ("features", "encoder", "pooling"),
    "model.encoder": ("in_channels",),
    "model.pooling": ("channels",),
    "augment": ("sample_rate",),  # of every node below it
    "loss": ("num_classes", "embedding_size", "class_counts", "steps_per_epoch"),  # and of every node below it
    "trainer.optimizer": ("params",),
    "trainer.schedule": ("total_steps", "steps_per_epoch"),
    "data.sampler": ("num_items", "label", "duration", "shard", "batch_size", "crop_seconds"),
}
# Nodes that `spkexp.build` turns into objects and that must be there.
REQUIRED_NODES = ("model.features", "model.encoder", "model.pooling")


def config_folder() -> Path:
    """Where conf/ lies: inside the package in a wheel, beside it in a checkout or an editable install."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"{package}: conf/config.yaml is not beside the package; reinstall spkexp")


def check(cfg: DictConfig) -> None:
    """Raise one ConfigError that lists all mistakes of `cfg`, each with its dotted key and the remedy.

    Sections are held against `spkexp.sections`, nodes with a `_target_` against the signature they name, which must be
    that of a class of spkexp or of what cfg.trust lists: this the command line alone may fill in.
    """
    container, mistakes = _plain(cfg)
    mistakes += _check_sections(container)
    trust = container.get("trust")
    foreign = untrusted(container, [name for name in trust or [] if isinstance(name, str)])
    mistakes += foreign
    named = {mistake.partition(":")[0] for mistake in foreign}
    for path, node in _nodes(container):
        if f"{path}._target_" not in named:  # what is not trusted is not even looked for
            mistakes += [mistake for mistake in check_node(path, node) if mistake.partition(":")[0] not in named]
    data = container.get("data")
    if isinstance(data, dict) and data.get("corpus") is not None and data.get("manifest"):
        mistakes.append("data.manifest: this corpus has utterances of its own; add data=manifest to use a manifest")
    mistakes += _check_distillation(container)
    for path in REQUIRED_NODES:
        if "_target_" not in (_at(container, path) or {}):
            mistakes.append(f"{path}: missing; it needs a '_target_' that names a class")
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


def _check_distillation(container: Mapping[str, Any]) -> list[str]:
    if _at(container, "distill.teacher") is not None:
        if _at(container, "trainer.batch_size") == "auto":
            return ["trainer.batch_size: auto does not count what distill.teacher takes of the memory; give a number"]
        return []
    given, defaults = container.get("distill"), OmegaConf.load(config_folder() / "config.yaml").distill
    given = given if isinstance(given, dict) else {}
    changed = [key for key in defaults if given.get(key, defaults[key]) not in (defaults[key], "???")]
    return [f"distill.{key}: needs a teacher; give distill.teacher=RUN, too, or leave it out" for key in changed]


def check_section(container: Mapping[Any, Any], section: str) -> list[str]:
    """Mistakes of the nodes below one section of a saved config, whose other sections may be of another version."""
    mistakes = [m for path, node in _nodes(container.get(section), section) for m in check_node(path, node)]
    for path in (section, *(path for path in REQUIRED_NODES if path.startswith(f"{section}."))):
        if not _is_node(_at(container, path)):
            mistakes.append(f"{path}: missing; it needs a '_target_' that names a class")
    return mistakes


def run_time_arguments(path: str) -> tuple[str, ...]:
    """The arguments that the node at `path` gets from `spkexp.build`."""
    section = path.partition(".")[0]
    return RUN_TIME_ARGUMENTS.get(section if section in ("augment", "loss") else path, ())


def check_node(path: str, node: Mapping[str, Any]) -> list[str]:
    """Mistakes of one `_target_` node: an unknown target, unknown or missing arguments, wrong types."""
    target = node["_target_"]
    if not isinstance(target, str):
        return [f"{path}._target_: expected the import path of a class, got {target!r}"]
    try:
        signature = read_signature(target)
    except TargetError as error:
        return [f"{path}._target_: {error}"]
    run_time = run_time_arguments(path)
    mistakes = []
    for key, value in node.items():
        if key == "_target_":
            continue
        if not isinstance(key, str):
            mistakes.append(f"{path}.{key}: {signature.name} takes arguments by name, and {key!r} is none")
        elif key not in signature.types:
            if not signature.accepts_any:
                known = [name for name in signature.types if name not in run_time or f"{path}.{name}" in REQUIRED_NODES]
                mistakes.append(_unknown(f"{path}.{key}", key, signature.name, known, node))
        elif f"{path}.{key}" in REQUIRED_NODES:
            continue
        elif key in run_time and not _is_node(value):
            mistakes.append(f"{path}.{key}: is worked out when the run starts; leave it out")
        elif value == "???" or _is_node(value):
            continue
        elif holds_parts(signature.types[key], value):
            mistakes += _check_parts(f"{path}.{key}", value)
        elif signature.types[key] is Part:
            mistakes.append(f"{path}.{key}: expected a node with a '_target_' that names a class, got {_text(value)}")
        else:
            mistakes += _check_value(f"{path}.{key}", value, signature.types[key])
    for key in sorted(signature.required - set(node) - set(run_time)):
        mistakes.append(f"{path}.{key}: missing; {_needs(signature, key)}")
    return mistakes


def _check_parts(path: str, parts: object) -> list[str]:
    """Mistakes of a mapping of nodes by name. null leaves a part out; the constructor says how many there must be."""
    if not isinstance(parts, dict):
        return [f"{path}: expected a mapping of nodes by name, got {_text(parts)}; leave one out by {path}.NAME=null"]
    there = [name for name, part in parts.items() if _is_node(part)]
    mistakes = []
    for name, part in parts.items():
        if part is not None and not _is_node(part):
            close = get_close_matches(str(name), there, n=1)
            remedy = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(there) or 'none'};"
            mistakes.append(
                f"{path}.{name}: no such part; {remedy} a new one needs a '_target_' that names a class, "
                f"and {path}.NAME=null leaves one out"
            )
    return mistakes


def _text(value: object) -> str:
    return "null" if value is None else repr(value)


def _needs(signature: Signature, key: str) -> str:
    return f"{signature.name} needs it, so set {key} in the group's yaml or on the command line"


def _plain(cfg: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """The config as plain containers, and the mistakes of keys that cannot be resolved."""
    # Not OmegaConf.missing_keys: it fails at an interpolation of a key that is missing.
    missing = sorted(_missing(OmegaConf.to_container(cfg, resolve=False)))
    mistakes = [f"{path}: missing; give it as {path}=VALUE" for path in missing]
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except InterpolationToMissingValueError as error:
        raise ConfigError(mistakes) from error
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ConfigError([*mistakes, f"{error.full_key or 'config'}: {message}"]) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}, mistakes


def _missing(value: object, path: str = "") -> Iterator[str]:
    """Paths of the keys that are "???"."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _missing(child, f"{path}.{key}" if path else str(key))
    elif value == "???":
        yield path


def _is_node(value: object) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _nodes(value: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, child in value.items():
            yield from _nodes(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _nodes(child, f"{path}.{index}")


def _at(container: Mapping[str, Any], path: str) -> Any:
    value: Any = container
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _check_sections(container: dict[str, Any]) -> list[str]:
    try:
        Config.model_validate(container)
    except ValidationError as error:
        return [
            describe_error(".".join(map(str, e["loc"])), e, Config)
            for e in error.errors()
            if e["input"] != "???"  # already reported as missing
        ]
    return []


def _check_value(path: str, value: Any, annotation: Any) -> list[str]:
    # Strict JSON mode: a list passes for a tuple and an integer for a float, but "3" or true not for 3.
    adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    try:
        adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        errors = error.errors()
        # For a union each member reports; the first that is about a value names the type people mean.
        return [describe_error(path, errors[0], None)]
    except (PydanticSerializationError, TypeError):
        return [f"{path}: {value!r} is no value that a config can hold"]
    return []


_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "tuple": "a list",
    "none": "null",
}
_RELATIONS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def describe_error(path: str, error: ErrorDetails, root: type | None) -> str:
    """pydantic's `error` about the key `path` of the model `root`, in words that name the remedy."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        parent, _, key = path.rpartition(".")
        return _unknown(path, key, f"'{parent}'" if parent else "the config", _known_keys(root, parent))
    if kind == "missing":
        return f"{path}: missing; give it as {path}=VALUE"
    if kind in _RELATIONS:
        limit = next(iter(context.values()))
        return f"{path}: must be {_RELATIONS[kind]} {limit:g}, got {value!r}"
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        close = get_close_matches(str(value), allowed.split(", "), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{path}: must be one of {allowed}; got {value!r}{hint}"
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        return f"{path}: must have {'at least' if kind == 'too_short' else 'at most'} {bound} items, got {value}"
    if kind == "value_error":
        return f"{path}: {context['error']}" if path else str(context["error"])
    if kind == "string_too_short":
        return f"{path}: is empty; give a value or leave it out"
    expected = _EXPECTED.get(kind.split("_")[0])
    return f"{path}: expected {expected}, got {value!r}" if expected else f"{path}: {error['msg']}, got {value!r}"


def _known_keys(root: type | None, path: str) -> list[str]:
    """Keys of the section at `path`."""
    section: Any = root
    for key in filter(None, path.split(".")):
        field = getattr(section, "model_fields", {}).get(key)
        section = field.annotation if field else None
    if path and section is None:
        section = root
    return [field.alias or name for name, field in getattr(section, "model_fields", {}).items()]


def _unknown(path: str, key: str, owner: str, known: list[str], node: Mapping[str, Any] | None = None) -> str:
    names = [name for name in known if not name.startswith("_")]
    close = get_close_matches(key, names, n=1)
    if not close and node is not None:  # the key may belong to a part: +model.chanels for model.encoder.channels
        parts = {inner: f"{part}.{inner}" for part, value in node.items() if _is_node(value) for inner in value}
        parent = path.rpartition(".")[0]
        close = [f"{parent}.{parts[inner]}" for inner in get_close_matches(key, parts, n=1)]
    remedy = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(names) or 'nothing'}"
    return f"{path}: {owner} takes no '{key}'; {remedy}"
