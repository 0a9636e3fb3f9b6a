"""What `resume=RUN` goes on with: the run's own config, and the few keys that may change on the way."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from spkexp.config import check
from spkexp.errors import ConfigError, UserError

# Changing any other key would make it another experiment than the one that its folder describes.
CHANGEABLE = (
    "resume",
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.validate_every",
    "trainer.checkpoint_steps",
    "trainer.checkpoint_minutes",
    "trainer.log_every",
    "trainer.device",
    "data.root",
    "data.manifest",
    "data.cache_dir",
    "data.stage_dir",
    "data.trials.",
    "data.num_workers",
    "data.on_error",
    "data.max_bad_fraction",
    "tracking.",
    "scoring.",
)


def config_to_resume(run: str, overrides: list[str]) -> DictConfig:
    """The config of the run folder `run` with the command line's `overrides`. Raises UserError."""
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"resume: {folder} is no folder; give the run folder that training printed")
    if (folder / "model.safetensors").is_file():
        raise UserError(f"resume: {folder} is a checkpoint; give its run folder, resume={folder.parent.parent}")
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"resume: {folder} is no run folder, it has no config.yaml")
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    mistakes = []
    changes = OmegaConf.from_dotlist([override.lstrip("+") for override in overrides])
    for key in (override.lstrip("+~").partition("=")[0] for override in overrides):
        if not key.replace("/", ".").startswith(CHANGEABLE):
            mistakes.append(
                f"{key}: cannot change on resume, the run goes on as it was configured; "
                f"for a new run from its encoder use init_from={folder}"
            )
    if mistakes:
        raise ConfigError(mistakes)
    merged = OmegaConf.merge(cfg, changes)
    assert isinstance(merged, DictConfig)
    merged.resume, merged.run_dir = None, str(folder)
    check(merged)
    return merged
