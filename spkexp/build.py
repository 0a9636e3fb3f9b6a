"""From a checked config to objects. The only caller of hydra.utils.instantiate."""

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import hydra.utils
import polars as pl
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from spkexp import checkpoint, distributed
from spkexp.augment.speed import with_speed_copies
from spkexp.config import RUN_TIME_ARGUMENTS
from spkexp.data.dataset import Reading
from spkexp.data.load import Data, describe, evaluation_set, require_label, with_durations
from spkexp.data.manifest import Utterances, filter_table, read_table
from spkexp.data.split import split_table
from spkexp.errors import UserError
from spkexp.losses.head import Head
from spkexp.models.speaker import SpeakerModel
from spkexp.signature import TargetError, owner_of

log = logging.getLogger(__name__)


def build(node: DictConfig, path: str = "", **run_time: Any) -> Any:
    """The object that `node` describes; of `run_time` it gets the arguments that RUN_TIME_ARGUMENTS lists for `path`.

    A class takes only those of them that it names.
    """
    parameters = inspect.signature(hydra.utils.get_object(node._target_)).parameters
    allowed = {key: run_time[key] for key in RUN_TIME_ARGUMENTS.get(path, ()) if key in parameters}
    arguments = OmegaConf.to_container(node, resolve=True)
    assert isinstance(arguments, dict)
    # Lists stay Python lists: what is saved in a model must not be a config object.
    try:
        return hydra.utils.instantiate(arguments, **allowed, _recursive_=False, _convert_="all")
    except InstantiationException as error:
        # What the signature cannot say (sizes that must divide, say) the constructor does, by ValueError.
        if isinstance(error.__cause__, ValueError | TypeError | UserError):
            raise UserError(f"{path or node._target_}: {error.__cause__}") from error
        raise


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
    """
    folder = checkpoint.find(source)
    cfg = checkpoint.load_config(folder)
    for target in _targets(cfg.model):
        _require_trusted(target, trust, folder / checkpoint.CONFIG)
    if "backend" in cfg.model.encoder:  # a choice for the machine that trained; the weights fit all
        cfg.model.encoder.backend = "auto"
    speaker_model = model(cfg.model)
    tensors, _ = checkpoint.load_tensors(folder)
    checkpoint.load_into(speaker_model, tensors, folder, "model")
    return speaker_model.eval(), cfg, folder


def _require_trusted(target: str, trust: tuple[str, ...], file: Path) -> None:
    """Raise UserError unless `target` is a class that a model part of spkexp, or a package in `trust`, defines itself.

    The first word of the path is not enough: `spkexp.build.torch.hub.load` walks through what a module imports.
    """
    allowed = ("spkexp.models", "spkexp.features", *trust)
    try:
        owner = owner_of(target)
    except TargetError as error:
        raise UserError(f"{file}: {error}; the config of a model may name classes only") from error
    if not any(owner == package or owner.startswith(f"{package}.") for package in allowed):
        raise UserError(
            f"{file}: names {target}, which is no model of spkexp; if you trust it, pass trust={owner.split('.')[0]}"
        )


def _targets(node: Any) -> list[str]:
    if isinstance(node, DictConfig):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for key in node for target in _targets(node[key])]
    return []


def head(cfg: DictConfig, train: Utterances, embedding_size: int, steps_per_epoch: int) -> Head:
    """The classification head with one class for each speaker of `train`."""
    return build(
        cfg.loss,
        "loss",
        num_classes=len(train.label_names),
        embedding_size=embedding_size,
        class_counts=torch.bincount(torch.from_numpy(train.label), minlength=len(train.label_names)),
        steps_per_epoch=steps_per_epoch,
    )


def reading(cfg: DictConfig) -> Reading:
    return Reading(cfg.model.features.sample_rate, cfg.data.resample, cfg.data.mix_channels)


def table(cfg: DictConfig) -> tuple[pl.DataFrame, int]:
    """The corpus's or the manifest's utterances, filtered, with durations; and how many unusable ones it leaves out.

    One process does what writes to disk.
    """
    data = cfg.data
    if data.corpus is not None:
        corpus = build(data.corpus, "data.corpus")
        found = distributed.main_first(lambda: corpus.table(Path(data.root).expanduser()))
    elif data.manifest is not None:
        found = read_table(data.manifest, data.root)
    else:
        raise UserError("data: neither a corpus nor a manifest; use data=manifest data.manifest=FILE")
    if data.split.by == "speaker" and "split" in found.columns:
        found = found.drop("split")
    found = filter_table(found, data.filter)
    usable = with_durations(require_label(found, data.label), data.on_error, data.max_bad_fraction)
    return usable, len(found) - len(usable)


def data(cfg: DictConfig) -> Data:
    """Training utterances and evaluation sets. Raises UserError for anything wrong with them."""
    everything, skipped = table(cfg)
    settings = cfg.data
    tables = split_table(everything, settings.label, settings.split.by, settings.split.fractions, settings.split.seed)
    log.info("data: %s", describe(tables, settings.label))
    train = Utterances.of(with_speed_copies(tables["train"], settings.label, cfg.augment.speeds), settings.label)
    if len(train.label_names) < 2:
        raise UserError(f"data: all {len(train)} training utterances are of one {settings.label}; training needs two")
    evaluation = {}
    for name in ("val", "test"):
        found = evaluation_set(
            name,
            tables[name],
            settings.label,
            settings.trials[name],
            settings.trials.max_pairs,
            settings.split.seed,
            everything,
            settings.root,
        )
        if found is None:
            continue
        # Without trials there is still the accuracy, where the speakers were trained on; else nothing to measure.
        if found.trials is not None or set(found.utterances.label_names) <= set(train.label_names):
            evaluation[name] = found
    return Data(train, evaluation, reading(cfg), skipped)


def num_workers(cfg: DictConfig, device: torch.device) -> int:
    """data.num_workers; null: none where the model itself needs the cores, else a share of them."""
    if cfg.data.num_workers is not None:
        return cfg.data.num_workers
    return 0 if device.type == "cpu" else max(1, min(8, (os.cpu_count() or 1) // distributed.world_size()))
