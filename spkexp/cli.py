"""From the command line to a checked config: Hydra composes it, mistakes are named and end with exit code 2."""

import itertools
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from spkexp.config import check, config_folder
from spkexp.errors import ConfigError, UserError

EXIT_USER = 2
# Hydra's own pages; nothing is composed, so there is nothing to check first.
_PAGES = {"--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc"}
_OPTIONS_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"}
_OPTIONS_WITH_VALUE |= {"--config-dir", "-cd", "--experimental-rerun", "--info", "-i"}


@contextmanager
def errors_to_exit_codes() -> Iterator[None]:
    """Print a user's mistake without a traceback and exit 2; on Ctrl-C exit 130."""
    try:
        yield
    except ConfigError as error:
        _record(str(error))
        if os.environ.get("RANK", "0") == "0":  # the same config on every rank: say it once
            count = len(error.mistakes)
            print(f"spkexp: {count} mistake{'s' * (count != 1)} in the config", file=sys.stderr)
            for mistake in error.mistakes:
                print(f"  {mistake}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except UserError as error:
        _record(str(error))
        print(f"spkexp: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except KeyboardInterrupt:
        print("spkexp: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _record(traceback.format_exc())
        if os.environ.get("RANK", "0") != "0" and "Connection closed by peer" in str(error):
            print("spkexp: another process of the run ended; its message says why", file=sys.stderr)
            sys.exit(1)
        raise


def _record(text: str) -> None:
    """Put an error into the run's train.log, if there is one yet; the terminal shows it in a way of its own."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("spkexp", logging.ERROR, __file__, 0, text, None, None))


def hydra_command(task: Callable[[DictConfig, list[str]], None]) -> Callable[[], None]:
    """Make `task(cfg, overrides)` a command that composes conf/config.yaml with the command line's overrides.

    All jobs of a sweep are checked before the first one starts.
    """

    def job(cfg: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        OmegaConf.resolve(cfg)  # so that it means the same outside Hydra
        with errors_to_exit_codes():
            task(cfg, list(hydra_config.overrides.task))

    def entry() -> None:
        arguments = sys.argv[1:]
        with errors_to_exit_codes():
            if not _PAGES & set(arguments):
                multirun = bool({"-m", "--multirun"} & set(arguments))
                if multirun and "TORCHELASTIC_RUN_ID" in os.environ:
                    raise UserError(
                        "-m does not work under torchrun: every rank would run the whole sweep; start it without"
                    )
                check_all(_overrides(arguments), multirun)
            OmegaConf.register_new_resolver("config_groups", _config_groups, replace=True)
            # Hydra names the program after the module that holds the task; `job` lies in this one.
            decorate = hydra_main(version_base="1.3", config_path=str(config_folder()), config_name="config")
            decorate(job)()

    return entry


def _overrides(arguments: list[str]) -> list[str]:
    found = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in _OPTIONS_WITH_VALUE:
            skip = True
        elif not argument.startswith("-"):
            found.append(argument)
    return found


def check_all(arguments: list[str], multirun: bool) -> None:
    parsed, mistakes = _parse(arguments)
    if multirun:
        combinations = _sweep(parsed)
        mistakes += [
            "run_dir: one folder cannot hold the runs of a sweep; leave it out"
            for o in parsed
            if o.key_or_group == "run_dir"
        ]
    else:
        sweeps = [o for o in parsed if o.is_sweep_override()]
        mistakes += [f"{o.key_or_group}: {o.input_line} is a sweep; add -m to run it" for o in sweeps]
        combinations = [[str(o.input_line) for o in parsed if not o.is_sweep_override()]]
    for overrides in combinations:
        mistakes += _check_one(overrides)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


def _parse(arguments: list[str]) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create()
    parsed, mistakes = [], []
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            override = parser.parse_override(argument)
        except HydraException:
            if "=" not in argument:
                mistakes.append(f"{argument}: expected KEY=VALUE")
            else:
                mistakes.append(
                    f"{key}: cannot read {value!r}; a value with blanks, commas, quotes or = is quoted: '{key}=\"…\"'"
                )
            continue
        is_group = Path(config_folder(), override.key_or_group).is_dir() and not override.is_delete()
        if is_group and not override.is_sweep_override() and not isinstance(override.value(), str):
            mistakes.append(f"{key}: expected the name of a file in conf/{override.key_or_group}, got {value}")
        else:
            parsed.append(override)
    return parsed, mistakes


def _sweep(parsed: list[Override]) -> list[list[str]]:
    """The overrides of every job of a grid; a range that only a sweeper can draw from counts with its start."""
    choices = []
    for override in parsed:
        line = str(override.input_line)
        if override.is_discrete_sweep():
            key = line.partition("=")[0]
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        elif override.is_sweep_override():
            choices.append([])
        else:
            choices.append([line])
    return [list(combination) for combination in itertools.product(*[c for c in choices if c])]


def _check_one(overrides: list[str]) -> list[str]:
    """All mistakes of one job: what Hydra cannot compose is noted and left out, then the rest is checked."""
    mistakes: list[str] = []
    remaining = list(overrides)
    while True:
        try:
            cfg = compose_config(remaining)
            break
        except OmegaConfBaseException as error:  # an interpolation that leads nowhere
            return [*mistakes, f"{error.full_key or 'config'}: {str(error).splitlines()[0]}"]
        except HydraException as error:
            bad, mistake = _explain(error, remaining)
            if mistake:
                mistakes.append(mistake)
            remaining = bad
    try:
        check(cfg)
    except ConfigError as error:
        mistakes += error.mistakes
    return mistakes


def compose_config(overrides: list[str]) -> DictConfig:
    """conf/config.yaml with `overrides` applied, as the commands see it. Raises hydra.errors.HydraException."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("config", overrides=overrides, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                names = OmegaConf.to_container(cfg.names, resolve=True) if "names" in cfg else None
                del cfg["hydra"]
                if names is not None:
                    cfg.names = names
            return cfg
    finally:
        GlobalHydra.instance().clear()


def _config_groups() -> str:
    """The groups of conf/ and their options for --help, 80 columns wide."""
    root = config_folder()
    paragraphs = []
    for folder in sorted(path for path in root.rglob("*") if path.is_dir() and "hydra" not in path.parts):
        text = f"{folder.relative_to(root)}: {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}"
        paragraphs.append(textwrap.fill(text, 78, subsequent_indent="    "))
    return textwrap.indent("\n".join(paragraphs), "  ")


def _explain(error: HydraException, overrides: list[str]) -> tuple[list[str], str | None]:
    """(overrides to go on with, the mistake in our words) for what Hydra says it cannot compose."""
    text = str(error)
    if match := re.search(r"Could not (?:override|append to) '([^']+)'", text):
        for index, override in enumerate(overrides):
            key = override.lstrip("+~").partition("=")[0]
            if key == match[1] and not override.startswith(("+", "~")):
                if _is_group(key):
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


def _without(items: list[str], index: int) -> list[str]:
    return items[:index] + items[index + 1 :]


def _is_group(key: str) -> bool:
    return "/" in key


def _unknown_group(key: str) -> str:
    root = config_folder()
    groups = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())
    close = get_close_matches(key, groups, n=1)
    return f"{key}: no such config group; " + (
        f"did you mean '{close[0]}'?" if close else f"there are {', '.join(groups)}"
    )


def _unknown_option(group: str, option: str) -> str:
    options = sorted(path.stem for path in Path(config_folder(), group).glob("*.yaml"))
    close = get_close_matches(option, options, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{group}={option}: no such option; {hint}conf/{group} has {', '.join(options)}"


def set_up_logging(file: Path | None = None) -> None:
    """Log lines to stderr as they are, and with time and level to `file` as well."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.WARNING)
    logging.getLogger("spkexp").setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    if os.environ.get("RANK", "0") != "0":  # every process does the same: one of them says so
        console.setLevel(logging.WARNING)
    root.addHandler(console)
    if file is not None:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
