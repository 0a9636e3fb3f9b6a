"""Which model a run that starts from others' weights has: that of the weights, unless another one is asked for."""

from omegaconf import DictConfig, OmegaConf

from spkexp import saved_config, sources
from spkexp.config import check, config_folder
from spkexp.errors import ConfigError, UserError


def with_model_of_source(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """`cfg` with the model section of cfg.init_from, unless the command line or a file that it names chooses a model.

    Of the `overrides`, those of keys below `model` hold for the source's model as well. Raises UserError.
    """
    if cfg.init_from is None:
        return cfg
    file = sources.local(cfg.init_from) / "config.yaml"
    if not file.is_file():  # known before data is read, whatever model it is
        raise UserError(f"init_from: {cfg.init_from} is no run, nor the folder of a model: {file} is not there")
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    groups = OmegaConf.load(config_folder() / "config.yaml").defaults
    standard = next(group.model for group in groups if "model" in group)
    if "model" in keys or ("names.model" not in keys and cfg.names.model != standard):
        return cfg
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
        place = key.replace("/", ".").partition("@")[0]
        if place.startswith("model."):
            OmegaConf.update(adopted, place, OmegaConf.select(cfg, place), merge=False, force_add=True)
    if "names.model" not in keys:
        adopted.names.model = OmegaConf.select(theirs, "names.model") or "init_from"
    check(adopted)
    return adopted
