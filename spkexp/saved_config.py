"""The config in the folder of a run or of a model, whoever made it: read as data, and checked before it is used."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spkexp.errors import UserError
from spkexp.foreign import read_yaml
from spkexp.trust import untrusted

# Who watched a run is nobody else's business; where it kept its tables is another place elsewhere.
_OTHERS = {"tracking.entity": None, "tracking.group": None, "data.cache_dir": "~/.cache/spkexp/manifests"}


def read(file: Path) -> DictConfig:
    """The config that a run wrote into `file`; nothing of it is run or looked for. Raises UserError."""
    found = read_yaml(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds no config of a run; bring it back from a copy")
    if (place := next(_interpolated(found), None)) is not None:
        # What a run saves is resolved; in a config from elsewhere it could read this machine's environment.
        raise UserError(f"{file}: {place}: refused: ${{…}} is for configs that are composed; write the value there")
    try:
        return OmegaConf.create({str(key): value for key, value in found.items()})
    except (OmegaConfBaseException, RecursionError) as error:
        reason = (str(error).splitlines() or ["too deep"])[0]
        raise UserError(f"{file}: holds no config of a run ({reason}); bring it back from a copy") from error


def require_trusted(cfg: DictConfig, file: Path, trust: Sequence[str] | None = None) -> None:
    """Raise UserError unless all that `cfg`, of `file`, names is of spkexp or of `trust`; None: of cfg.trust."""
    container = OmegaConf.to_container(cfg, resolve=True)
    mistakes = untrusted(container, OmegaConf.select(cfg, "trust") or [] if trust is None else trust)
    if mistakes:
        raise UserError("\n".join(f"{file}: {mistake}" for mistake in mistakes))


def without_paths(cfg: DictConfig) -> DictConfig:
    """A copy for others: every absolute path, and who tracked the run, is null."""
    cleaned = OmegaConf.create(_cleaned(OmegaConf.to_container(cfg, resolve=True)))
    assert isinstance(cleaned, DictConfig)
    for key, value in _OTHERS.items():
        if OmegaConf.select(cleaned, key.partition(".")[0]) is not None:
            OmegaConf.update(cleaned, key, value)
    return cleaned


def is_place(value: object) -> bool:
    """Whether a value of a config is a path of the machine that it comes from."""
    return isinstance(value, str) and os.path.isabs(value)


def _cleaned(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _cleaned(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_cleaned(value) for value in node]
    return None if is_place(node) else node


def _interpolated(value: object, path: str = "") -> Iterator[str]:
    """Dotted keys of the texts, and of the keys, that have an interpolation."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and "${" in key:
                yield path or "a key"
            yield from _interpolated(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "${" in value:
        yield path
