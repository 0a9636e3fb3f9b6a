"""Commands that take keys of their own beside overrides of a part of the config.

`python -m spkexp.profile model=ecapa model.encoder.channels=256 steps=0`: `steps` is profile's own, checked against
its pydantic model as `spkexp.arguments` does for commands without a config; `model…` are Hydra overrides, composed
with conf/ and checked as training checks them. Overrides of any other part are refused: they would change nothing.
"""

import itertools
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import BaseModel

from spkexp.arguments import parse
from spkexp.compose import check_all
from spkexp.errors import ConfigError

_SWEEP = ("-m", "--multirun")

Arguments = TypeVar("Arguments", bound=BaseModel)


def parse_with_overrides(
    model: type[Arguments], help_page: str, command: str, groups: Sequence[str], *, sweep: bool = False
) -> tuple[Arguments, list[list[str]]]:
    """(the command's own arguments, the overrides of each job) of the command line.

    model: the own keys; its field `overrides: list[Text] = []` takes the rest. command: how messages call it.
    groups: the parts of the config that may be overridden, e.g. ("data",) for data=NAME and data.KEY=VALUE.
    sweep: with -m comma-separated values make one job for each combination; otherwise there is exactly one job.

    Each job composes (`compose_config`) and has been checked. Prints `help_page` and exits 0 for --help. Raises
    ConfigError that lists all mistakes of both kinds.
    """
    known: list[str] = []
    arguments: Arguments | None = None
    try:
        arguments = parse(model, help_page, positional="overrides")
    except ConfigError as error:
        known = error.mistakes
    own = [name for name in model.model_fields if name != "overrides"]
    given = [argument for argument in sys.argv[1:] if argument.partition("=")[0] not in own]
    jobs = _Command(command, groups, own, sweep).jobs(given, known)
    assert arguments is not None  # else its mistakes were raised
    return arguments, jobs


class _Command:
    def __init__(self, name: str, groups: Sequence[str], own: list[str], sweep: bool) -> None:
        self.name, self.groups, self.own, self.sweep = name, groups, own, sweep

    def jobs(self, arguments: list[str], known_mistakes: Sequence[str]) -> list[list[str]]:
        """The overrides of each job. Raises ConfigError that lists all mistakes, the known ones first."""
        multirun = self.sweep and bool(set(_SWEEP) & set(arguments))
        overrides = [argument for argument in arguments if not (self.sweep and argument in _SWEEP)]
        allowed = [argument for argument in overrides if self._is_of_a_group(argument)]
        mistakes = [*known_mistakes]
        mistakes += [self._no_such_argument(argument) for argument in overrides if argument not in allowed]
        unfit = {argument: mistake for argument in allowed if (mistake := self._unfit_values(argument))}
        mistakes += unfit.values()
        try:
            # Nothing is trained: what a study sweeps over does not concern this command.
            check_all([argument for argument in allowed if argument not in unfit], multirun, shows=True)
        except ConfigError as error:
            mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)
        choices = []
        for override in OverridesParser.create().parse_overrides(allowed):
            line = str(override.input_line)
            key = line.partition("=")[0]
            values = override.sweep_string_iterator() if override.is_sweep_override() else ()
            choices.append([f"{key}={value}" for value in values] or [line])
        return [list(job) for job in itertools.product(*choices)]

    def _is_of_a_group(self, argument: str) -> bool:
        key = argument.partition("=")[0].lstrip("+~")
        return any(key == group or key.startswith((f"{group}.", f"{group}/")) for group in self.groups)

    def _unfit_values(self, argument: str) -> str | None:
        """What is wrong with several values: without sweeps all of them; with sweeps those that only a sweeper can
        draw from, or that depend on the files that there are."""
        key, _, value = argument.partition("=")
        if not self.sweep:
            return f"{key}: {self.name} takes one value, not '{value}'" if _is_sweep(argument) else None
        if not re.match(r"(glob|interval)\(", value):
            return None
        what = "names" if key in self.groups else "values"
        return f"{key}: {self.name} takes {what} separated by commas, not '{value}'"

    def _no_such_argument(self, argument: str) -> str:
        key, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            options = "there are -m and --help" if self.sweep else "there is --help"
            return f"{argument}: no such option; {options}"
        if not equals:
            return f"{argument}: expected KEY=VALUE"
        close = get_close_matches(key, [*self.groups, *self.own], n=1)
        known = ", ".join([*(f"{group}, {group}.KEY" for group in self.groups), *self.own])
        remedy = f"did you mean '{close[0]}'?" if close else f"it takes {known}"
        return f"{key}: {self.name} takes no '{key}'; {remedy}"


def _is_sweep(argument: str) -> bool:
    try:
        return OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:  # `check_all` says what is wrong with it
        return False
