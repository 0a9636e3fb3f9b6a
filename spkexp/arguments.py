"""Arguments of the commands that compose no config: KEY=VALUE, checked against a pydantic model."""

import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError

from spkexp.config import describe_error
from spkexp.errors import ConfigError

Arguments = TypeVar("Arguments", bound=BaseModel)


def _packages(value: object) -> object:
    """(a, b.c), of `a,b.c` or `[a, b.c]`."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
        if not text:
            return ()
    return tuple(name.strip(" '\"") for name in text.split(","))


def _are_names(names: tuple[str, ...]) -> tuple[str, ...]:
    wrong = next((name for name in names if not all(word.isidentifier() for word in name.split("."))), None)
    if wrong is not None:
        raise ValueError(f"expected packages, as in trust=mypackage or trust=[a,b.c], got {wrong!r}")
    return names


# What a command takes as trust=PACKAGE or trust=[A,B]: whose classes, beside spkexp's, a model may name.
Trust = Annotated[tuple[str, ...], BeforeValidator(_packages), AfterValidator(_are_names)]


def _is_device(name: str) -> str:
    if name in ("auto", "cpu", "cuda"):
        return name
    hint = "; did you mean 'cuda'?" if re.match("(?i)gpu|nvidia|cuda", name) else ""
    if number := re.fullmatch(r"(?i)(?:cuda|gpu):?(\d+)", name):
        hint = f"; CUDA_VISIBLE_DEVICES={number[1]} before the command and device=cuda take that GPU"
    raise ValueError(f"must be one of auto, cpu, cuda; got {name!r}{hint}")


# What a command takes as device=NAME.
Device = Annotated[str, AfterValidator(_is_device)]


def parse(
    model: type[Arguments],
    help_page: str,
    positional: str | None = None,
    section: str | None = None,
    are_files: bool = False,
) -> Arguments:
    """The command line as `model`; `positional` names the field that takes the arguments that are not KEY=VALUE.

    are_files: they are files, so that one that is none and looks like KEY=VALUE or an option is a mistake.
    section: a section of a run's config; what begins with its name goes as it is typed into the field of that name.
    Prints `help_page` and exits 0 for --help. Raises ConfigError that lists all mistakes.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_page.strip())
        sys.exit(0)
    keys = {field.alias or name for name, field in model.model_fields.items()}
    values: dict[str, object] = {}
    free: list[str] = []
    overrides: list[str] = []
    mistakes = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and section is not None and key.partition(".")[0] == section:
            overrides.append(argument)
        elif equals and (key in keys or positional is None):
            values[key] = value
        elif positional is not None and are_files and (mistake := _no_file(argument, keys, help_page)) is not None:
            mistakes.append(mistake)
        elif positional is not None:
            free.append(argument)
        else:
            mistakes.append(f"{argument}: expected KEY=VALUE")
    if positional is not None:
        values[positional] = free
    if section is not None:
        values[section] = overrides
    try:
        parsed = model.model_validate(values)
    except ValidationError as error:
        found = [describe_error(".".join(map(str, e["loc"])), e, model) for e in error.errors()]
        raise ConfigError([*mistakes, *found], "command") from error
    if mistakes:
        raise ConfigError(mistakes, "command")
    return parsed


def _no_file(argument: str, keys: set[str], help_page: str) -> str | None:
    """What is wrong with an argument that is meant for a key; None: it may be a file."""
    name, equals, _ = argument.partition("=")
    key = name.lstrip("-")
    is_option = name.startswith("--")
    if not is_option and not (equals and re.fullmatch(r"[^\W\d][\w.]*", key)):
        return None
    if Path(argument).exists():
        return None
    if key in keys:
        return f"{name}: write it as {key}=VALUE"
    command = help_page.split(maxsplit=2)[1].rpartition(".")[2]
    close = get_close_matches(key, keys, n=1)
    remedy = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(sorted(keys))}"
    return f"{key}: {command} takes no '{key}'; {remedy}"
