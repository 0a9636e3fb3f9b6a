"""What a command line composes: conf/ with the overrides applied, and every mistake in them in our words."""

import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spkexp.config import check, config_folder
from spkexp.errors import ConfigError
from spkexp.override_errors import explain, not_listed, swept_values
from spkexp.resume import twins
from spkexp.trust import set_by_files, untrusted_of_hydra

# Modules that an option of a group needs beside what is always installed; the extras are called the same.
_EXTRAS = {
    "hydra/launcher": {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"},
    "hydra/sweeper": {"optuna": "optuna"},
}


def check_all(arguments: list[str], multirun: bool, config_dir: str | None = None, shows: bool = False) -> DictConfig:
    """Check the config of every job that the overrides make, before the first starts; returns that of the first.

    config_dir: as Hydra's --config-dir. shows: nothing will be trained, so that what a study sweeps over by itself is
    left alone. Raises ConfigError that lists all mistakes.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError([f"--config-dir: {config_dir} is no folder"])
    with _hydra(config_dir):
        loader = GlobalHydra.instance().config_loader()
        parsed, mistakes = parse_overrides(arguments, OverridesParser.create(config_loader=loader))
        of_config, unfit = ([], list[str]()) if shows else _swept_by_config(parsed)
        mistakes += unfit
        if multirun:
            checked, unfit = _check_jobs([*of_config, *parsed])
            mistakes += unfit
            mistakes += [
                "run_dir: one folder cannot hold the runs of a sweep; leave it out"
                for o in parsed
                if o.key_or_group == "run_dir"
            ]
        else:
            sweeps = [o for o in parsed if o.is_sweep_override()]
            mistakes += [f"{o.key_or_group}: {o.input_line} is a sweep; add -m to run it" for o in sweeps]
            if of_config and option("experiments") != "None":
                keys = ", ".join(o.key_or_group for o in of_config)
                mistakes.append(f"experiments={option('experiments')}: is a sweep over {keys}; add -m to run it")
            checked = [_check_one([str(o.input_line) for o in parsed if not o.is_sweep_override()])]
    mistakes += [mistake for _, found in checked for mistake in found]
    if multirun and not mistakes:
        mistakes += twins([cfg for cfg, _ in checked if cfg is not None])
    first = checked[0][0]
    if mistakes or first is None:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return first


@contextmanager
def _hydra(config_dir: str | None = None) -> Iterator[None]:
    """Hydra with conf/ to compose from, and `config_dir` after it."""
    path = create_config_search_path(str(config_folder()))
    if config_dir is not None:
        path.prepend("command-line", Path(config_dir).absolute().as_uri(), anchor="schema")
    former = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    setbase("1.3")
    Hydra.create_main_hydra2("spkexp", path)
    _forget_namesakes()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = former


def _forget_namesakes() -> None:
    """Hydra would hold conf/hydra/launcher/NAME.yaml against what another package registered under the same name."""
    registered = ConfigStore.instance().repo.get("hydra", {})
    for file in (config_folder() / "hydra").glob("*/*.yaml"):
        registered.get(file.parent.name, {}).pop(file.name, None)


def parse_overrides(arguments: Sequence[str], parser: OverridesParser) -> tuple[list[Override], list[str]]:
    """(what could be read, the mistakes in the others)."""
    parsed, mistakes = [], []
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            (override,) = parser.parse_overrides([argument])
        except HydraException:
            if "=" not in argument:
                mistakes.append(f"{argument}: expected KEY=VALUE")
            else:
                mistakes.append(
                    f"{key}: cannot read {value!r}; a value with blanks, commas, quotes or = is quoted: '{key}=\"…\"'"
                )
            continue
        # os.path takes a name that no disk can hold for one that is not there.
        is_group = os.path.isdir(config_folder() / override.key_or_group) and not override.is_delete()
        if is_group and not override.is_sweep_override() and not isinstance(override.value(), str):
            mistakes.append(f"{key}: expected the name of a file in conf/{override.key_or_group}, got {value}")
        else:
            parsed.append(override)
    return parsed, mistakes


def _swept_by_config(parsed: list[Override]) -> tuple[list[Override], list[str]]:
    """(what a study sweeps over, its hydra.sweeper.params, mistakes in it); the command line's word on a key counts."""
    if not any(o.key_or_group.startswith(("experiments", "hydra.sweeper", "hydra/sweeper")) for o in parsed):
        return [], []
    studies = [override for override in parsed if override.key_or_group == "experiments"]
    if len(studies) > 1 or any(override.is_sweep_override() for override in studies):
        return [], ["experiments: one study at a time, for each says what it sweeps over"]
    try:
        _compose([str(o.input_line) for o in parsed if not o.is_sweep_override()])
        params = OmegaConf.to_container(HydraConfig.get().sweeper.get("params") or OmegaConf.create({}), resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError, OSError):
        return [], []  # `_check_one` says what is wrong
    swept = {key: "null" if value is None else value for key, value in cast(dict[str, Any], params).items()}
    given = {override.get_key_element() for override in parsed}
    lines = [f"{key}={value}" for key, value in swept.items() if key not in given]
    found, mistakes = parse_overrides(
        lines, OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    )
    # To Hydra's sweeper ++seed is another key than seed: both would count, in jobs that are all the same.
    forced = [key for key in given if key.startswith("+") and key.lstrip("+") in swept]
    return found, mistakes + [f"{key}: the study sweeps over it; leave out the +" for key in forced]


Checked = tuple[DictConfig | None, list[str]]


def _check_jobs(parsed: list[Override]) -> tuple[list[Checked], list[str]]:
    """(config and mistakes of each job that is checked, other mistakes) of a sweep.

    A grid runs every combination. A search draws some: each value is checked once, beside the first of the others,
    and of an interval both ends.
    """
    fixed, swept, mistakes = [], [], []
    for override in parsed:
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.key_or_group.startswith(("hydra/", "hydra.")):
            mistakes.append(f"{override.key_or_group}: is the same for all jobs of a sweep; give one value")
        else:
            swept.append(override)
    found = [(override, *swept_values(override)) for override in swept]
    mistakes += [mistake for _, _, mistake in found if mistake]
    choices = [[f"{override.get_key_element()}={value}" for value in values] for override, values, _ in found if values]
    first = [values[0] for values in choices]
    checked = [_check_one([*fixed, *first])]
    if checked[0][0] is None:
        return checked, mistakes
    mistakes += _mistakes_of_launcher(checked[0][0])
    if option("hydra/sweeper") == "basic":
        mistakes += [not_listed(override) for override in swept if isinstance(override.value(), IntervalSweep)]
        others = [list(combination) for combination in itertools.product(*choices)][1:]
    else:
        others = [
            [*first[:index], value, *first[index + 1 :]] for index, values in enumerate(choices) for value in values[1:]
        ]
    return [*checked, *(_check_one([*fixed, *job]) for job in others)], mistakes


def option(group: str) -> str:
    """Which file of conf/`group`, hydra/launcher say, the config that was composed last has."""
    return str(HydraConfig.get().runtime.choices[group])


def _mistakes_of_launcher(cfg: DictConfig) -> list[str]:
    """Slurm starts nodes × tasks_per_node tasks: what is no DDP launch over the nodes would be a whole run in each."""
    hydra = HydraConfig.get()
    if option("hydra/launcher") != "submitit_slurm":
        return []
    key, nodes, tasks = "hydra.launcher", hydra.launcher.nodes, hydra.launcher.tasks_per_node
    if tasks != 1:
        remedy = "leave it at 1, trainer.nproc=N starts N processes on each node"
        return [f"{key}.tasks_per_node: {tasks} tasks of a node would each train; {remedy}"]
    if nodes == 1 or OmegaConf.select(cfg, "trainer.nproc") is not None:
        return []
    return [f"{key}.nodes={nodes} needs trainer.nproc=N, the number of processes on each node"]


def _check_one(overrides: list[str]) -> Checked:
    """(config, all mistakes) of one job: what Hydra cannot compose is noted and left out, then the rest is checked."""
    mistakes: list[str] = []
    remaining, appended = list(overrides), list[str]()
    while True:
        try:
            cfg = _compose(remaining)
            break
        except OmegaConfBaseException as error:  # an interpolation that leads nowhere
            return None, [*mistakes, f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]
        except HydraException as error:
            bad, mistake = explain(error, remaining)
            if mistake:
                mistakes.append(mistake)
            appended += [override for override in bad if override not in remaining]
            remaining = bad
        except YAMLError as error:
            return None, [*mistakes, f"--config-dir: {' '.join(str(error).split())}"]
        except OSError as error:  # Hydra looks for a file of that name; some of its own errors are OSErrors, too
            if error.errno != errno.ENAMETOOLONG:
                raise
            longest = max(remaining, key=len)
            return None, [*mistakes, f"{longest[:80]}…: is longer than the name of a file can be"]
    mistakes += _missing_extras() + _not_trusted_by_the_user(cfg, remaining)
    try:
        check(cfg)
    except ConfigError as error:
        mistakes += error.mistakes
    if not mistakes:  # Hydra's own composing will want the + of what only we put there
        new = [line.removeprefix("++") for line in appended]
        mistakes = [f"{line.partition('=')[0]}: is not there yet; a + in front adds it: '+{line}'" for line in new]
    return cfg, mistakes


def compose_config(overrides: list[str]) -> DictConfig:
    """conf/config.yaml with `overrides` applied, as the commands see it. Raises hydra.errors.HydraException."""
    with _hydra():
        return _compose(overrides)


def _compose(overrides: list[str]) -> DictConfig:
    cfg = compose("config", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        names = OmegaConf.to_container(cfg.names, resolve=True) if "names" in cfg else None
        del cfg["hydra"]
        if names is not None:
            cfg.names = names
    return cfg


def _not_trusted_by_the_user(cfg: DictConfig, overrides: list[str]) -> list[str]:
    """A file of configs may be somebody else's: it cannot say whom to trust, and Hydra builds from its section, too."""
    hydra = OmegaConf.to_container(cast(Any, HydraConfig.get()), resolve=False)
    mistakes = untrusted_of_hydra(hydra)
    if any(source.provider not in ("hydra", "main", "schema") for source in HydraConfig.get().runtime.config_sources):
        mistakes += set_by_files(hydra, _hydra_of_command_line(overrides))
    given = any(override.lstrip("+").partition("=")[0] == "trust" for override in overrides)
    if not given and (OmegaConf.is_interpolation(cfg, "trust") or OmegaConf.select(cfg, "trust")):
        mistakes.append("trust: counts on the command line alone, not in a file; give it there: trust=[PACKAGE]")
    return mistakes


def _hydra_of_command_line(overrides: list[str]) -> dict[str, Any]:
    """The section hydra as conf/ and the command line make it, with the launcher and the sweeper composed last."""
    of_hydra = [override for override in overrides if override.lstrip("+~").startswith(("hydra.", "hydra/"))]
    chosen = [f"hydra/{group}={_of_class(group)}" for group in ("launcher", "sweeper")]
    rest = [override for override in of_hydra if not override.startswith(("hydra/launcher=", "hydra/sweeper="))]
    with _hydra():
        try:
            cfg = compose("config", overrides=[*chosen, *rest], return_hydra_config=True)
        except HydraException:  # an override of what only the files have
            cfg = compose("config", overrides=chosen, return_hydra_config=True)
    given = {"hydra": of_hydra, "task": [override for override in overrides if override not in of_hydra]}
    return cast(dict[str, Any], OmegaConf.to_container(cfg.hydra, resolve=False)) | {"overrides": given}


def _of_class(group: str) -> str:
    """The option of conf/hydra/`group` whose class the config has that was composed last."""
    target = OmegaConf.select(cast(Any, HydraConfig.get()), f"{group}._target_")
    files = (config_folder() / "hydra" / group).glob("*.yaml")
    return next((file.stem for file in files if OmegaConf.select(OmegaConf.load(file), "_target_") == target), "basic")


def _missing_extras() -> list[str]:
    """Options whose module is not installed."""
    missing = []
    for group, extras in _EXTRAS.items():
        extra = extras.get(option(group))
        if extra is not None and find_spec(extra) is None:
            missing.append(f"{group}={option(group)}: {extra} is not installed; pip install 'spkexp[{extra}]'")
    return missing
