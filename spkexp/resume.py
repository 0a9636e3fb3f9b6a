"""Going on with a run: the config that `resume=RUN` goes by, and how `resume=auto` knows a run of the same config."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from spkexp import saved_config
from spkexp.config import check, config_folder
from spkexp.errors import ConfigError, UserError
from spkexp.sections import Config

log = logging.getLogger(__name__)

AUTO, NEVER = "auto", "never"
RESULTS, ENVIRONMENT = "results.json", "environment.json"

# What may differ from one start of a run to the next: it changes neither the batches nor what is measured. The device
# and the number of processes change the rounding, and a process takes its batch statistics and draws its dropout by
# itself, so that the weights are not the same to the bit; `spkexp.savepoint` warns of another number of processes.
IMMATERIAL = (
    "resume",
    "run_dir",
    "trust",
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
# With trainer.on_nan=rollback these are material: the last checkpoint is where a step that went wrong goes back to.
_CHECKPOINTS = ("trainer.checkpoint_steps", "trainer.checkpoint_minutes")
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
    "distill.teacher",  # where it lies: another one's weights are refused
    "augment.musan",  # and every `root` below augment.waveform: where the files lie; other files are warned of
    "augment.rirs",
    "scoring",
)


def config_to_resume(run: str, overrides: list[str]) -> DictConfig:
    """The config of the run folder `run` with the command line's `overrides`. Raises UserError."""
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"resume: {folder} is no folder; give the run folder that training printed")
    if (folder / "model.safetensors").is_file():
        raise UserError(f"resume: {folder} is a checkpoint; give its run folder, resume={folder.parent.parent}")
    file = folder / "config.yaml"
    cfg, added = with_todays_keys(config_of(folder))
    if gone := _gone(cfg):
        them = "it" if len(gone) == 1 else "them"
        raise UserError(
            f"{file} was written by another version: it has {', '.join(gone)}; remove {them} there to go on"
        )
    given = [override.lstrip("+~").partition("=")[0].replace("/", ".") for override in overrides]
    mistakes = [
        f"{key}: cannot change on resume, the run goes on as it was configured; "
        f"for a new run from its encoder use init_from={folder}"
        for key in given
        if not _may_change(key)
    ]
    if mistakes:
        raise ConfigError(mistakes)
    changes = OmegaConf.from_dotlist([override.lstrip("+") for override in overrides])
    for bank in ("augment.musan", "augment.rirs"):
        _move_roots(
            OmegaConf.select(cfg, "augment.waveform"), OmegaConf.select(cfg, bank), OmegaConf.select(changes, bank)
        )
    cfg.trust = []  # what the folder says is for whoever trained it: the command line alone says it here
    merged = OmegaConf.merge(cfg, changes)
    assert isinstance(merged, DictConfig)
    merged.resume, merged.run_dir = None, str(folder)
    saved_config.require_trusted(merged, file)
    try:
        check(merged)
    except ConfigError as error:
        if all(_is_below(mistake.partition(":")[0], tuple(given)) for mistake in error.mistakes):
            raise
        raise ConfigError(
            [*error.mistakes, f"{file} was written by another version, or by hand; mend there what was not given here"]
        ) from error
    OmegaConf.resolve(merged)
    if added:
        log.warning("resume: %s has no %s; it goes on with today's defaults", file, ", ".join(added))
    return merged


def config_of(folder: Path) -> DictConfig:
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"resume: {folder} is no run folder, it has no config.yaml")
    try:
        return saved_config.read(file)
    except UserError as error:
        raise UserError(f"{error}; checkpoints/last has a copy") from error


def with_todays_keys(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """(`cfg` with the defaults of the settings that it lacks, their keys): it may be of an earlier version.

    What is built from a `_target_` is left as it is, except for the loss: the file of conf/loss with the same
    `_target_` gives the arguments that it lacks.
    """
    conf, filled = config_folder(), _plain(cfg)
    files = {"data": "data_common", "augment": "augment/none"}
    files |= {name: f"{name}/default" for name in ("trainer", "tracking", "scoring")}
    today = _plain(OmegaConf.load(conf / "config.yaml"))
    today |= {name: _plain(OmegaConf.load(conf / f"{file}.yaml")) for name, file in files.items()}
    losses = (_plain(OmegaConf.load(file)) for file in sorted((conf / "loss").glob("*.yaml")))
    own = OmegaConf.select(cfg, "loss._target_")
    today["loss"] = next((loss for loss in losses if loss["_target_"] == own), {})
    added: list[str] = []

    def fill(node: dict[str, Any], defaults: dict[str, Any], path: str) -> None:
        for key, value in defaults.items():
            if key in ("defaults", "hydra"):  # of Hydra's composing, and no settings
                continue
            if key not in node:
                node[key] = value
                added.append(f"{path}{key}")
            elif isinstance(node[key], dict) and isinstance(value, dict):
                fill(node[key], value, f"{path}{key}.")

    del today["names"]
    fill(filled, today, "")
    return OmegaConf.create(filled), added


def _plain(cfg: Any) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _gone(cfg: DictConfig) -> list[str]:
    """Keys of `cfg` that no section has today."""
    try:
        Config.model_validate(OmegaConf.to_container(cfg))
    except ValidationError as error:
        return [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "extra_forbidden"]
    return []


def _may_change(key: str) -> bool:
    return _is_below(key, CHANGEABLE) or (key.startswith("augment.waveform.") and key.endswith(".root"))


def _move_roots(node: Any, old: str | None, new: str | None) -> None:
    """Let every `root` below `node` that is `old` be `new`: a run's config is resolved, so each names its folder."""
    if isinstance(node, DictConfig) and None not in (old, new):
        for key in node:
            if key == "root" and node[key] == old:
                node[key] = new
            else:
                _move_roots(node[key], old, new)


def fingerprint(cfg: DictConfig) -> str:
    """8 hexadecimal digits that two configs share where they ask for the same run."""
    return hashlib.sha256(json.dumps(_material(cfg), sort_keys=True).encode()).hexdigest()[:8]


def fingerprints(cfg: DictConfig) -> tuple[str, str]:
    """That of `cfg`, and the one that it had where its trainer.batch_size was asked for as auto."""
    asked = cfg.copy()
    asked.trainer.batch_size = "auto"
    return fingerprint(cfg), fingerprint(asked)


def differing(one: DictConfig, other: DictConfig) -> list[str]:
    """Dotted keys in which the two differ, whether or not that makes another run."""
    a, b = dict(_leaves(one)), dict(_leaves(other))
    return sorted(key for key in {**a, **b} if a.get(key) != b.get(key))


def twins(jobs: Sequence[DictConfig]) -> list[str]:
    """What is wrong with a sweep where two jobs would be one run: a line for all that differ in the same keys."""
    first: dict[str, int] = {}
    mistakes: dict[str, str] = {}
    for number, cfg in enumerate(jobs):
        before = first.setdefault(fingerprint(cfg), number) if cfg.resume in (None, AUTO) else number
        if before == number:
            continue
        keys = ", ".join(differing(jobs[before], cfg))
        what = f"differ in {keys} alone, which makes no other run" if keys else "are the same run"
        remedy = "leave out the sweep over it, or set resume=never"
        mistakes.setdefault(keys, f"jobs {before} and {number} {what}; {remedy}")
    return list(mistakes.values())


def _material(cfg: DictConfig) -> dict[str, Any]:
    """What makes the run of `cfg` the run it is, by dotted key."""
    rollback = OmegaConf.select(cfg, "trainer.on_nan") == "rollback"
    immaterial = tuple(key for key in IMMATERIAL if not (rollback and key in _CHECKPOINTS))
    return {key: value for key, value in _leaves(cfg) if not _is_below(key, immaterial)}


def last_run(cfg: DictConfig) -> Path | None:
    """The folder that the last run of this config left: cfg.run_dir, or the newest below runs/; None: there is none.

    Raises UserError where a run of another config lies in cfg.run_dir.
    """
    own = fingerprint(cfg)
    if cfg.run_dir is None:
        return _last_below(Path("runs"), own)
    folder = Path(cfg.run_dir).expanduser()
    if not (folder / "config.yaml").is_file():
        return None
    asked = asked_for(folder)
    if asked == own:
        return folder
    theirs, _ = with_todays_keys(config_of(folder))
    material = {**_material(theirs), **_material(cfg)}
    keys = [key for key in differing(theirs, cfg) if key in material]
    if asked is None and cfg.trainer.batch_size == "auto":  # what auto came to cannot tell what was asked for
        keys = [key for key in keys if key != "trainer.batch_size"]
    if keys:
        raise UserError(
            f"resume=auto: {folder} holds a run of another config ({', '.join(keys[:5])}"
            f"{' …' if len(keys) > 5 else ''}); choose another run_dir, or resume={folder} to go on with it as it is"
        )
    return folder


def _last_below(runs: Path, own: str) -> Path | None:
    """The newest run below `runs` of the fingerprint `own`: by its name, unless environment.json knows better."""
    named = [folder for folder in runs.glob(f"*/*-{own}") if asked_for(folder) in (own, None)]
    if not named:
        named = [file.parent for file in runs.glob(f"*/*/{ENVIRONMENT}") if asked_for(file.parent) == own]
    return max(named, default=None)


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end: `evaluate` writes results, too, but none of the training."""
    return "train_seconds" in _read(folder / RESULTS)


def asked_for(folder: Path) -> str | None:
    """The fingerprint of the config that the run in `folder` goes by; None where environment.json does not tell.

    It cannot be worked out from config.yaml, in which trainer.batch_size=auto is a number, say.
    """
    return environment_of(folder).get("config")


def environment_of(folder: Path) -> dict[str, Any]:
    """The run's environment.json; empty where there is none, or none that can be read."""
    return _read(folder / ENVIRONMENT)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of json and of the encoding
        return {}
    return found if isinstance(found, dict) else {}


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
