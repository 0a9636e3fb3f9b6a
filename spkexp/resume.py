"""Going on with a run: the config that `resume=RUN` goes by, and how `resume=auto` knows a run of the same config."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spkexp.config import check
from spkexp.errors import ConfigError, UserError

AUTO, NEVER = "auto", "never"
RESULTS = "results.json"

# What may differ from one start of a run to the next: it changes neither the weights nor what is measured of them.
IMMATERIAL = (
    "resume",
    "run_dir",
    "search",
    "tracking",
    "trainer.checkpoint_steps",
    "trainer.checkpoint_minutes",
    "trainer.log_every",
    "trainer.profile",
    "trainer.device",
    "trainer.nproc",
    "trainer.max_restarts",
    "trainer.timeout_minutes",
    "data.cache_dir",
    "data.stage_dir",
    "data.num_workers",
)
# Changing any other key would make it another experiment than the one that its folder describes.
CHANGEABLE = (
    *IMMATERIAL,
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.validate_every",
    "trainer.early_stop",
    "data.root",
    "data.manifest",
    "data.trials",
    "data.on_error",
    "data.max_bad_fraction",
    "scoring",
)


def config_to_resume(run: str, overrides: list[str]) -> DictConfig:
    """The config of the run folder `run` with the command line's `overrides`. Raises UserError."""
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"resume: {folder} is no folder; give the run folder that training printed")
    if (folder / "model.safetensors").is_file():
        raise UserError(f"resume: {folder} is a checkpoint; give its run folder, resume={folder.parent.parent}")
    cfg = _config_of(folder)
    mistakes = []
    changes = OmegaConf.from_dotlist([override.lstrip("+") for override in overrides])
    for key in (override.lstrip("+~").partition("=")[0] for override in overrides):
        if not _is_below(key.replace("/", "."), CHANGEABLE):
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


def _config_of(folder: Path) -> DictConfig:
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"resume: {folder} is no run folder, it has no config.yaml")
    try:
        cfg = OmegaConf.load(file)
    except Exception as error:  # yaml's and OmegaConf's own kinds
        raise UserError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); checkpoints/last has a copy"
        ) from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{file}: is no config; checkpoints/last has a copy")
    return cfg


def fingerprint(cfg: DictConfig) -> str:
    """8 hexadecimal digits that two configs share where they ask for the same run."""
    material = {key: value for key, value in _leaves(cfg) if not _is_below(key, IMMATERIAL)}
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:8]


def last_run(cfg: DictConfig) -> Path | None:
    """The folder that the last run of this config left: cfg.run_dir, or the newest below runs/; None: there is none.

    Raises UserError where a run of another config lies in cfg.run_dir.
    """
    own = fingerprint(cfg)
    if cfg.run_dir is None:
        return max(Path("runs").glob(f"*/*-{own}"), default=None)
    folder = Path(cfg.run_dir).expanduser()
    if not (folder / "config.yaml").is_file():
        return None
    found = _config_of(folder)
    if asked_for(folder) not in (own, None):
        theirs, ours = dict(_leaves(found)), dict(_leaves(cfg))
        keys = [
            key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key) and not _is_below(key, IMMATERIAL)
        ]
        raise UserError(
            f"resume=auto: {folder} holds a run of another config ({', '.join(sorted(keys)[:5])}"
            f"{' …' if len(keys) > 5 else ''}); choose another run_dir, or resume={folder} to go on with it as it is"
        )
    return folder


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end: `evaluate` writes results, too, but none of the training."""
    try:
        return "train_seconds" in json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False


def asked_for(folder: Path) -> str | None:
    """The fingerprint of the config that the run in `folder` was started with; None for one of an earlier version.

    It cannot be worked out from config.yaml, in which trainer.batch_size=auto is a number, say.
    """
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8")).get("config")
    except (OSError, json.JSONDecodeError):
        return None


def _leaves(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no mapping."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from walk(value, f"{path}.{key}" if path else str(key))
        else:
            yield path, node

    return walk(OmegaConf.to_container(cfg, resolve=True), "")


def _is_below(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
