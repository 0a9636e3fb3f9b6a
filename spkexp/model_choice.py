"""Which model a run that starts from others' weights has: that of the weights, unless another one is asked for."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from spkexp import saved_config, sources
from spkexp.config import check, config_folder
from spkexp.errors import ConfigError, UserError
from spkexp.resume import AUTO, differing, last_run
from spkexp.whole_file import write_text

log = logging.getLogger(__name__)
KEPT = "init_from.yaml"  # in a run folder: the model of the source, which may be gone when the run is to go on


def with_model_of_source(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """`cfg` with the model section of cfg.init_from, unless the command line or a file that it names chooses a model.

    Of the `overrides`, those of keys below `model` hold for the source's model as well. With resume=auto a run is found
    without the source, by what `keep_model_of_source` left. cfg: its paths absolute, as a run's are. Raises UserError.
    """
    if cfg.init_from is None:
        return cfg
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    own = _chooses(cfg, keys)
    if not own:
        _refuse_changes_of_files(cfg, keys)
    try:
        file = _config_of_source(cfg)  # known before data is read, whatever model it is
        return cfg if own else _adopted(cfg, keys, file)
    except ConfigError:
        raise
    except UserError as error:
        for former in _former(cfg, keys, own) if cfg.resume == AUTO else ():
            with suppress(UserError):  # of another model, say, which has no such keys
                if (run := last_run(former)) is not None:
                    log.warning("%s; the run that began with it is there: %s", error, run)
                    return former
        raise


def keep_model_of_source(cfg: DictConfig, folder: Path) -> None:
    """Write into the run folder `folder` what `with_model_of_source` took from cfg.init_from, once.

    What cannot be read is not told of here: whoever reads the weights does.
    """
    if cfg.init_from is not None and not (folder / KEPT).exists():
        with suppress(UserError):
            theirs = saved_config.read(_config_of_source(cfg))
            kept = {"model": theirs.get("model"), "names": {"model": OmegaConf.select(theirs, "names.model")}}
            write_text(folder / KEPT, OmegaConf.to_yaml(OmegaConf.create(kept)))


def _config_of_source(cfg: DictConfig) -> Path:
    file = sources.local(cfg.init_from) / "config.yaml"
    if not file.is_file():
        raise UserError(f"init_from: {cfg.init_from} is no run, nor the folder of a model: {file} is not there")
    return file


def _former(cfg: DictConfig, keys: list[str], own: bool) -> Iterator[DictConfig]:
    """`cfg` with each model that a source of an earlier run had; own: with its own, for it names one."""
    if own:
        yield cfg
        return
    folder, pattern = (Path("runs"), f"*/*/{KEPT}") if cfg.run_dir is None else (Path(cfg.run_dir), KEPT)
    known: set[str] = set()
    for file in sorted(folder.glob(pattern), reverse=True):
        with suppress(OSError, ValueError, UserError):
            if (text := file.read_text(encoding="utf-8")) not in known:
                known.add(text)
                yield _adopted(cfg, keys, file)


def _chooses(cfg: DictConfig, keys: list[str]) -> bool:
    """Whether the command line, or a file that it names, says which model it is."""
    groups = OmegaConf.load(config_folder() / "config.yaml").defaults
    standard = next(group.model for group in groups if "model" in group)
    return "model" in keys or ("names.model" not in keys and cfg.names.model != standard)


def _refuse_changes_of_files(cfg: DictConfig, keys: list[str]) -> None:
    """Raise ConfigError where a file, a preset say, changes the model that would be replaced as a whole."""
    from hydra.core.hydra_config import HydraConfig  # here: the processes of a run do without

    from spkexp.compose import compose_config

    former = HydraConfig.instance().cfg  # of the job that this one is, which composing another config replaces
    try:
        standard = compose_config([])
    finally:
        HydraConfig.instance().cfg = former
    OmegaConf.resolve(standard)
    models = [OmegaConf.create({"model": config.model}) for config in (standard, cfg)]
    typed = [_place(key.removeprefix("~")) for key in keys]
    changed = [
        key for key in differing(*models) if not any(key == place or key.startswith(f"{place}.") for place in typed)
    ]
    if changed:
        raise ConfigError(
            [f"init_from: a file of configs changes {key}, which init_from would replace; name the model: model=…"
             for key in changed]
        )  # fmt: skip


def _adopted(cfg: DictConfig, keys: list[str], file: Path) -> DictConfig:
    """`cfg` with the model section of `file`, in which the command line's `keys` are as they are in `cfg`."""
    theirs = saved_config.read(file)
    if not isinstance(theirs.get("model"), DictConfig):
        raise UserError(f"init_from: {file} has no model")
    saved_config.require_trusted(OmegaConf.create({"model": theirs.model}), file, list(cfg.trust))
    adopted = cfg.copy()
    adopted.model = theirs.model
    if OmegaConf.select(adopted, "model.encoder.backend") is not None:  # a choice for the machine that trained
        adopted.model.encoder.backend = "auto"
    for key in keys:
        if key.startswith("~model"):
            raise ConfigError([f"{key}: is of the default model, and init_from has its own; name the model: model=…"])
        if (place := _place(key)).startswith("model."):
            OmegaConf.update(adopted, place, OmegaConf.select(cfg, place), merge=False, force_add=True)
    if "names.model" not in keys:
        adopted.names.model = OmegaConf.select(theirs, "names.model") or "init_from"
    check(adopted)
    return adopted


def _place(key: str) -> str:
    """The dotted key that an override of a key or a group is of: model.pooling, of model/pooling@model.pooling."""
    return key.replace("/", ".").partition("@")[0]
