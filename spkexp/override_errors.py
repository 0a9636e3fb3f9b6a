"""What is wrong with an override that Hydra cannot compose, or sweep, in words that name the key and the remedy."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from spkexp.config import config_folder
from spkexp.errors import ConfigError


def explain(error: HydraException, overrides: list[str]) -> tuple[list[str], str | None]:
    """(overrides to go on with, the mistake in our words) for what Hydra says it cannot compose."""
    text = str(error)
    if match := re.search(r"Could not (?:override|append to) '([^']+)'", text):
        for index, override in enumerate(overrides):
            key = override.lstrip("+~").partition("=")[0]
            if key == match[1] and not override.startswith(("+", "~")):
                if key.startswith("hydra."):
                    return _without(overrides, index), _unknown_setting(key)
                if "/" in key:
                    return _without(overrides, index), _unknown_group(key)
                # Behind a `+` it composes, and `check` names it as it names every other unknown key.
                return [*overrides[:index], f"++{override}", *overrides[index + 1 :]], None
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        for index, override in enumerate(overrides):
            key, _, value = override.lstrip("+").partition("=")
            if key == group and value == option:
                return _without(overrides, index), _unknown_option(group, option)
    for index, override in enumerate(overrides):
        key = override.lstrip("+~").partition("=")[0]
        if f"'{key}'" in text or override in text:
            return _without(overrides, index), f"{key}: {' '.join(text.split())}"
    raise ConfigError([" ".join(text.split())]) from error


def swept_values(override: Override) -> tuple[list[str], str | None]:
    """(values that a sweep gives a key, what is wrong with them)."""
    key, value = override.key_or_group, override.value()
    given = str(override.input_line).partition("=")[2]
    if isinstance(value, Glob):
        folder = config_folder() / key
        if not os.path.isdir(folder):
            return [], f"{key}: {given} picks files of conf/, and conf/{key} is no group; list the values: {key}=A,B"
        names = list(override.sweep_string_iterator())
        there = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        return names, None if names else f"{key}: {given} matches no file; conf/{key} has {there}"
    if override.is_discrete_sweep():
        values = list(override.sweep_string_iterator())
        if not values:
            return [], f"{key}: {given} is empty; give at least one value"
        twice = next((value for value in values if values.count(value) > 1), None)
        return values, None if twice is None else f"{key}: {twice} is there twice; leave one out"
    if not isinstance(value, IntervalSweep):
        return [], not_listed(override)
    return [str(value.start), str(value.end)], None


def not_listed(override: Override) -> str:
    """The mistake where a sweep that runs every combination meets an interval."""
    key, _, given = str(override.input_line).partition("=")
    return f"{key}: a sweep cannot try all of {given}; list values, {key}=A,B, or add hydra/sweeper=optuna"


def _without(items: list[str], index: int) -> list[str]:
    return items[:index] + items[index + 1 :]


def _unknown_group(key: str) -> str:
    root = config_folder()
    folders = (Path(folder) for folder, _, _ in os.walk(root, followlinks=True))  # conf/experiments is a link
    groups = sorted(str(path.relative_to(root)) for path in folders if path != root and any(path.glob("*.yaml")))
    close = get_close_matches(key, groups, n=1)
    return f"{key}: no such config group; " + (
        f"did you mean '{close[0]}'?" if close else f"there are {', '.join(groups)}"
    )


def _unknown_option(group: str, option: str) -> str:
    options = sorted(path.stem for path in Path(config_folder(), group).glob("*.yaml"))
    close = get_close_matches(option, options, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{group}={option}: no such option; {hint}conf/{group} has {', '.join(options)}"


def _unknown_setting(key: str) -> str:
    """A key of Hydra's own settings; which there are depends on the launcher and the sweeper."""
    node, _, name = key.rpartition(".")
    known = _settings(node.replace(".", "/"))
    if name in known:
        return f"{key}: what it has not yet is added one by one, +{key}.NAME=VALUE"
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean '{node}.{close[0]}'?" if close else f"conf/{node.replace('.', '/')} has its options' keys"
    return f"{key}: no such setting; {hint}"


def _settings(group: str) -> list[str]:
    """The keys of all files of a group."""
    files = Path(config_folder(), group).glob("*.yaml")
    return sorted({str(key) for file in files for key in OmegaConf.load(file) if not str(key).startswith("_")})
