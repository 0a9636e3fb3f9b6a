"""What a config says beside the defaults of conf/: as short as the command line that it came from."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from spkexp.compose import compose_config
from spkexp.config import config_folder

# Groups whose choice a config keeps by name; what the named file says is then no change.
_NAMED = ("model", "data")
# Where a run lies and who watches it, not what it does.
_ASIDE = ("run_dir", "resume", "names", "tracking", "search")


def changes(config: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of what differs from conf/config.yaml, the keys in the order of `config`.

    config: a run's, with its interpolations resolved. Where it names another model or data, `model` is that name, and
    its keys are held against conf/model/NAME.yaml, as far as there is one. Keys that only the defaults have are left
    out: they belong to a class that the config has put another one in the place of.
    """
    names = config.get("names") or {}
    standard = _defaults(())
    found = {group: names[group] for group in _NAMED if group in names and names[group] != standard[f"names.{group}"]}
    options = [(group, name) for group, name in found.items() if Path(config_folder(), group, f"{name}.yaml").is_file()]
    default = _defaults(tuple(options))
    for key, value in flat(config).items():
        if key.partition(".")[0] not in _ASIDE and (key not in default or default[key] != value):
            found[key] = value
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings; an empty one is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def override(key: str, value: Any) -> str:
    """`key=value` as one types it."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"


@functools.cache
def _defaults(options: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    state = Singleton.get_state()  # composing leaves marks in Hydra, which may be in the middle of a job
    try:
        config = OmegaConf.to_container(compose_config([f"{group}={name}" for group, name in options]), resolve=True)
    finally:
        Singleton.set_state(state)
    return flat(cast(dict[str, Any], config))
