"""From a checked config to objects. The only caller of hydra.utils.instantiate."""

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from spkexp import checkpoint, saved_config
from spkexp.allowance import Allowance
from spkexp.augment.augmentation import Augmentation, FeatureAugmentation, described
from spkexp.augment.chain import prepared
from spkexp.config import check_section, run_time_arguments
from spkexp.data.corpora.noises import PLACE
from spkexp.data.recordings import Bank
from spkexp.data.sampler import Sampler
from spkexp.data.utterances import Utterances
from spkexp.errors import ConfigError, UserError
from spkexp.losses.head import Head, Loss
from spkexp.models import lora
from spkexp.models.speaker import SpeakerModel
from spkexp.signature import holds_parts, read_signature

log = logging.getLogger(__name__)

# Values that the building of any model may need beside those of its weights: filters and windows of the features.
_SPARE_VALUES = 1 << 23
# What values of other types, and tensors of other shapes, than were thought of provoke in code that takes them.
UNEXPECTED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(StopIteration, TypeError, ValueError),
)


def build(node: DictConfig, path: str = "", **run_time: Any) -> Any:
    """The object that `node` describes; of `run_time` it gets the arguments that `config` lists for `path`.

    A class takes only those of them that it names.
    """
    parameters = inspect.signature(hydra.utils.get_object(node._target_)).parameters
    arguments = OmegaConf.to_container(node, resolve=True)
    assert isinstance(arguments, dict)
    return _instantiate(arguments, path, {k: run_time[k] for k in run_time_arguments(path) if k in parameters})


def _instantiate(arguments: dict[Any, Any], path: str, objects: dict[str, Any]) -> Any:
    """The object that a node with `arguments` describes, with `objects` as further arguments."""
    # Lists stay Python lists: what is saved in a model must not be a config object.
    try:
        return hydra.utils.instantiate(arguments, **objects, _recursive_=False, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        # What the signature cannot say (sizes that must divide, say) the constructor does, by ValueError.
        if isinstance(error.__cause__, ValueError | TypeError):
            raise UserError(f"{path or arguments['_target_']}: {error.__cause__}") from error
        raise


def augmentation(node: DictConfig | None, path: str, sample_rate: int) -> Any:
    """The augmentation that `node` describes, ready to be used; None for none. sample_rate in Hz."""
    if node is None:
        return None
    banks: list[Any] = []
    found = _with_parts(_plain(node), path, {"sample_rate": sample_rate}, banks)
    kind = FeatureAugmentation if path == "augment.features" else Augmentation
    if not isinstance(found, kind):
        raise UserError(f"{path}: must be {described(kind)}, but {type(found).__name__} is none")
    try:
        found = prepared(found)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if banks:
        found.banks = tuple(banks)
    return found


def _plain(node: DictConfig) -> dict[str, Any]:
    resolved = OmegaConf.to_container(node, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _with_parts(node: dict[str, Any], path: str, run_time: dict[str, Any], banks: list[Any]) -> Any:
    """The object that `node` describes; nodes among its arguments, also in mappings by name, are built first.

    Each gets those of the `run_time` arguments that it names. `banks` gets what reads files, which is told its place in
    the config.
    """
    signature, objects = read_signature(node["_target_"]), dict[str, Any]()
    for key, value in node.items():
        if not isinstance(value, dict):
            continue
        if "_target_" in value:
            objects[key] = _with_parts(value, f"{path}.{key}", run_time, banks)
        elif holds_parts(signature.types.get(key), value):
            objects[key] = {
                name: part and _with_parts(part, f"{path}.{key}.{name}", run_time, banks)
                for name, part in value.items()
            }
    objects |= {name: value for name, value in run_time.items() if name in signature.types}
    try:
        found = _instantiate({key: value for key, value in node.items() if key not in objects}, path, objects)
    except UserError as error:  # what reads files does not know its place in the config yet
        raise UserError(str(error).replace(PLACE, path)) from error
    if isinstance(found, Bank):
        found.place = path
        banks.append(found)
    return found


def model(cfg: DictConfig) -> SpeakerModel:
    """The encoder that `cfg` (the model section) describes, with fresh weights from torch's generator."""
    features = build(cfg.features, "model.features")
    encoder = build(cfg.encoder, "model.encoder", in_channels=features.out_channels)
    pooling = build(cfg.pooling, "model.pooling", channels=encoder.out_channels)
    rest = OmegaConf.create({key: cfg[key] for key in cfg if key not in ("features", "encoder", "pooling")})
    return build(rest, "model", features=features, encoder=encoder, pooling=pooling)


def trained_model(source: str | Path, trust: tuple[str, ...] = ()) -> tuple[SpeakerModel, DictConfig, Path]:
    """(model in evaluation mode, its config, its checkpoint folder) of a run or checkpoint folder.

    Only classes of spkexp are built, and of the packages in `trust`: a config from elsewhere can name any function.
    Raises UserError, also where the config describes another model than the weights are of.
    """
    folder = checkpoint.find(source)
    cfg = checkpoint.load_config(folder, trust)
    file = folder / checkpoint.CONFIG
    tensors, _ = checkpoint.load_tensors(folder)
    _check_nodes(cfg, "model", file)
    if "backend" in cfg.model.encoder:  # a choice for the machine that trained; the weights fit all
        cfg.model.encoder.backend = "auto"
    speaker_model = within(file, tensors, lambda: model(cfg.model))
    if not isinstance(speaker_model, SpeakerModel):
        raise UserError(f"{file}: model._target_: {type(speaker_model).__name__} is no speaker model")
    checkpoint.load_into(speaker_model, tensors, folder, "model")
    if lora.merge(speaker_model):  # the same and faster, and what is made of it is a model without
        cfg.model.encoder.lora_rank = 0
    return speaker_model.eval(), cfg, folder


def trained_head(cfg: DictConfig, folder: Path, embedding_size: int, trust: tuple[str, ...] = ()) -> Head | None:
    """What classifies in the checkpoint `folder`, whose config is `cfg`; None where its loss has no classes.

    As to `trust` see `trained_model`.
    """
    file = folder / checkpoint.CONFIG
    saved_config.require_trusted(cfg, file, trust)
    _check_nodes(cfg, "loss", file)
    classes = len(checkpoint.load_labels(folder))
    # Counts and steps shape the loss alone, never the scores that classify.
    counts = torch.ones(classes, dtype=torch.int64)
    run_time = {"num_classes": classes, "class_counts": counts, "steps_per_epoch": 1}
    tensors = checkpoint.load_tensors(folder)[1]
    trained = within(file, tensors, lambda: _loss(cfg, {"embedding_size": embedding_size, **run_time}))
    checkpoint.load_into(trained, tensors, folder, "head")
    return trained.eval().classifier


def _check_nodes(cfg: DictConfig, section: str, file: Path) -> None:
    """Raise UserError that lists what the nodes of a saved config have too much, too little, or of another type."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    mistakes = check_section(container, section)
    if mistakes:
        raise UserError("\n".join(f"{file}: {mistake}" for mistake in mistakes))


def within(file: Path, tensors: Mapping[str, Tensor], make: Callable[[], Any]) -> Any:
    """What `make` builds as `file` says, which may need a few times the memory of `tensors`. Raises UserError.

    What comes from elsewhere can ask for layers that no memory holds, or for values that no class of ours was tried
    with.
    """
    values = sum(tensor.numel() for tensor in tensors.values())
    try:
        with Allowance(_SPARE_VALUES + 8 * values):
            return make()
    except ConfigError:  # names its keys, which stand on the command line, too
        raise
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except UNEXPECTED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: describes no model that can be built: {reason}") from error


def loss(cfg: DictConfig, train: Utterances, embedding_size: int, steps_per_epoch: int) -> Loss:
    """The loss, whose classes are the speakers of `train`. Raises UserError."""
    run_time = {
        "num_classes": len(train.label_names),
        "embedding_size": embedding_size,
        "class_counts": torch.bincount(torch.from_numpy(train.label), minlength=len(train.label_names)),
        "steps_per_epoch": steps_per_epoch,
    }
    return _loss(cfg, run_time)


def _loss(cfg: DictConfig, run_time: dict[str, Any]) -> Loss:
    found = _with_parts(_plain(cfg.loss), "loss", run_time, [])
    if not isinstance(found, Loss):
        raise UserError(f"loss: must be a loss, but {type(found).__name__} is none")
    return found


def sampler(cfg: DictConfig, train: Utterances, batch_size: int) -> Sampler:
    """What makes up each step, over the training utterances and their speed copies (or one of each, as configured).

    Raises UserError.
    """
    drawn = train.rows if cfg.augment.speed_copies == "one" else len(train)
    labels = train.label.reshape(-1, drawn)  # of what an item may be: itself, or one of its copies
    found: Sampler = build(
        cfg.data.sampler,
        "data.sampler",
        num_items=drawn,
        label=labels[0],
        duration=train.duration.reshape(-1, drawn).max(axis=0),
        shard=None if train.shard is None else train.shard[np.arange(drawn) % train.rows],
        batch_size=batch_size,
        crop_seconds=cfg.data.crop_seconds,
    )
    # The copy is drawn when the item is read: too late for a sampler that picked it for its label.
    if found.groups_labels and (labels != labels[0]).any():
        raise UserError(
            f"data.sampler: {type(found).__name__} puts utterances of a speaker together, and with "
            "augment.speed_copies=one they would become different speakers; use augment.speed_copies=all or "
            "augment.speed_label=same"
        )
    return found
