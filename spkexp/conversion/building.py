"""From another toolkit's tensors to a model of ours, every one of them accounted for."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from spkexp import build
from spkexp.compose import compose_config
from spkexp.config import check
from spkexp.conversion.family import Architecture, Family, Settings, Tensors, renamed
from spkexp.conversion.reading import Found
from spkexp.conversion.toolkit import Toolkit
from spkexp.errors import ConfigError, UserError
from spkexp.models.speaker import SpeakerModel

_SHOWN = 40  # names in an error; the rest are counted


@dataclass(frozen=True)
class Built:
    """left_out: names of their tensors by the reason why they have no place in ours."""

    family: str
    model: SpeakerModel
    config: DictConfig
    left_out: dict[str, list[str]] = field(default_factory=dict)


def built(toolkit: Toolkit, found: Found, settings: Settings, overrides: list[str]) -> Built:
    """The model that `found` is, filled. Raises UserError that lists every tensor for which there is no place.

    overrides: of the model section, as typed: model=NAME in place of what the shapes say, model.KEY=VALUE.
    """
    tensors, left_out = _without(toolkit, found.tensors)
    family = _family(toolkit, found, tensors)
    try:
        architecture = family.architecture(tensors, settings)
    except UserError as error:
        raise UserError(f"{found.file}: {error}") from error
    except build.UNEXPECTED as error:
        raise UserError(
            f"{found.file}: looks like {family.name} of {toolkit.name}, but tensors are missing from which sizes are "
            f"read: {error}"
        ) from error

    def make() -> tuple[DictConfig, SpeakerModel]:
        config = _config(toolkit, family, architecture, toolkit.features(found, settings), overrides)
        return config, build.model(config.model).eval()

    config, model = build.within(found.file, tensors, make)
    _fill(model, tensors, family, found)
    return Built(family.name, model, config, left_out)


def settings_of(toolkit: Toolkit, found: Found) -> Settings:
    """What the toolkit's own config says of the model. Raises UserError."""
    try:
        return toolkit.settings(found)
    except build.UNEXPECTED as error:
        files = ", ".join(str(path) for path in found.companions.values()) or found.file
        raise UserError(f"{files}: is no config of {toolkit.name} as it is known here: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _without(toolkit: Toolkit, tensors: Tensors) -> tuple[Tensors, dict[str, list[str]]]:
    """(those that are converted, the names of the others by the reason)."""
    kept, left_out = dict[str, Tensor](), dict[str, list[str]]()
    for name, tensor in tensors.items():
        reason = next((rule.reason for rule in toolkit.left_out if re.search(rule.pattern, name)), None)
        if reason is None:
            kept[name] = tensor
        else:
            left_out.setdefault(reason, []).append(name)
    return kept, left_out


def _family(toolkit: Toolkit, found: Found, tensors: Tensors) -> Family:
    for refused in toolkit.refused:
        if name := next((name for name in tensors if re.search(refused.pattern, name)), None):
            raise UserError(f"{found.file}: {refused.what}, is not read (it has {name})")
    for family in toolkit.families:
        if all(any(re.search(mark, name) for name in tensors) for mark in family.marks):
            return family
    known = ", ".join(dict.fromkeys(family.name for family in toolkit.families))
    raise UserError(
        f"{found.file}: is none of the architectures of {toolkit.name} that are read ({known}); it has "
        f"{listed(list(tensors), 8)}"
    )


def _config(
    toolkit: Toolkit, family: Family, architecture: Architecture, features: dict[str, Any], overrides: list[str]
) -> DictConfig:
    """A whole config as conf/config.yaml composes it, with the model section of the checkpoint. Raises UserError."""
    named = [value for key, _, value in (line.partition("=") for line in overrides) if key == "model"]
    base = named[-1] if named else architecture.model
    try:
        # Trials are files: the data that it was trained on is not known.
        config = compose_config([f"model={base}", "data=manifest", "data.manifest=null", "augment=none"])
    except Exception as error:
        raise ConfigError([f"model={base}: {_first_line(error)}"]) from error
    with open_dict(config):
        config.model.features = {"num_mels": architecture.changes.get("features.num_mels")} | features
        if features["_target_"].endswith(".Waveform"):
            del config.model.features["num_mels"]
        for key, value in architecture.changes.items():
            # What was named outright is meant as it stands; the front end is the checkpoint's all the same.
            if not named and not (key == "features.num_mels" and "num_mels" not in config.model.features):
                OmegaConf.update(config.model, key, value, merge=False)
        config.data.resample = config.data.mix_channels = True
        config.names.model = f"{family.name.lower().replace(' ', '_')}-{toolkit.name}"
        config.names.data = "unknown"
        _override(config, [line for line in overrides if line.startswith("model.")])
    check(config)
    return config


def _override(config: DictConfig, lines: list[str]) -> None:
    """Put model.KEY=VALUE in place; `check` finds a key that is none. Raises ConfigError for what cannot be read."""
    for line in lines:
        try:
            config.merge_with(OmegaConf.from_dotlist([line]))
        except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError) as error:
            raise ConfigError([f"{line}: cannot be read: {_first_line(error)}"]) from error


def _fill(model: SpeakerModel, tensors: Tensors, family: Family, found: Found) -> None:
    """Copy `tensors` into `model` under our names. Raises UserError that lists all for which that does not work."""
    own = model.state_dict()
    origin: dict[str, str] = {}
    wrong: list[str] = []
    for name, tensor in tensors.items():
        ours = renamed(name, family.rules)
        if ours in origin:
            wrong.append(f"{name}: would be our {ours}, as is {origin[ours]}")
        origin[ours] = name
        if tensor.layout != torch.strided or tensor.is_complex():
            wrong.append(f"{name}: is {tensor.layout} of {tensor.dtype}, no plain numbers")
        elif not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{name}: has values that are no numbers (nan or inf)")
    filled = {ours: tensors[name] for ours, name in origin.items()}
    try:
        filled = family.finish(filled)
    except build.UNEXPECTED as error:  # the shapes are wrong then, and are listed, too
        wrong.append(f"the tensors do not go together: {_first_line(error)}")
    for ours, tensor in filled.items():
        name = origin.get(ours, ours)
        if ours not in own:
            wrong.append(f"{name}: no rule of {family.name} knows this tensor {list(tensor.shape)}")
        elif (fitted := _fitted(tensor, own[ours].shape)) is None:
            expected = f"{list(own[ours].shape)} as our {ours}"
            wrong.append(f"{name}: has the shape {list(tensor.shape)}, expected {expected}")
        else:
            filled[ours] = fitted
    # Files of old versions of torch have no counts of batches, and no result depends on them.
    missing = [name for name in own if name not in filled and not name.endswith(".num_batches_tracked")]
    wrong += [f"our {name} {list(own[name].shape)}: nothing in the file fills it" for name in missing]
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong[:_SHOWN])
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"{found.file}: is no {family.name} as it is known here; {len(wrong)} tensors:\n{lines}{more}")
    model.load_state_dict(own | filled)


def _fitted(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """`tensor` in this shape; a convolution of one frame is the matrix of a linear layer. None: it does not fit."""

    def without_ones(sizes: torch.Size) -> list[int]:
        sizes_left = list(sizes)
        while len(sizes_left) > 1 and sizes_left[-1] == 1:
            sizes_left.pop()
        return sizes_left

    if tensor.layout != torch.strided or without_ones(tensor.shape) != without_ones(shape):
        return None
    return tensor.reshape(shape)


def listed(names: list[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
