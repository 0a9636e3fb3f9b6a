"""`python -m spkexp.profile`: what a model costs: parameters, MACs, memory and speed, before it is trained."""

import itertools
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from annotated_types import Len
from hydra.core.override_parser.overrides_parser import OverridesParser
from pydantic import BaseModel, BeforeValidator, ConfigDict

from spkexp.allocator import keep_freed_memory
from spkexp.arguments import parse
from spkexp.cli import check_all, compose_config, errors_to_exit_codes, set_up_logging
from spkexp.errors import ConfigError
from spkexp.sections import Text
from spkexp.types import NonNegativeInt, Positive, PositiveInt

HELP = """
NAME
  spkexp.profile - what a model costs: parameters, MACs, memory and speed

SYNOPSIS
  python -m spkexp.profile [model=NAME] [model.KEY=VALUE ...] [KEY=VALUE ...]
  python -m spkexp.profile -m model=NAME,NAME,... [KEY=VALUE ...]

DESCRIPTION
  Builds the model with fresh weights and prints a table; no data is needed.
  With -m comma-separated values make one table over all combinations.

KEYS
  model=NAME          a file of conf/model; default: ecapa_small
  model.KEY=VALUE     any key of it, e.g. model.encoder.channels=256
  seconds=2.0         length of an utterance
  batch_sizes=1,32    for memory and speed
  memory_gib=16       also: the largest batch that fits into so many GiB
  modules=2           also: figures of the modules, so many levels deep
  steps=5             timed steps, of which the median counts; 0: no timing
  precision=fp32      fp32 or bf16 (autocast)
  device=auto         auto, cpu or cuda

FIGURES
  MACs are multiply-accumulates of matrix products, convolutions and
  attention (torch's counter) and of scans (3 for each element of the state a
  step). On a CPU, memory is added up from the tensors of a pass that is not
  run, so any batch size can be asked for. The last tables name the modules
  that allocate more than twice their inputs, and what they hold.

EXAMPLES
  python -m spkexp.profile -m model=ecapa,xvector
  python -m spkexp.profile model=ecapa memory_gib=16 batch_sizes=256 steps=0
  python -m spkexp.profile -m model=ecapa model.encoder.channels=256,512
"""


def _comma_separated(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overrides: list[Text] = []
    seconds: Positive = 2.0
    batch_sizes: Annotated[list[PositiveInt], BeforeValidator(_comma_separated), Len(1)] = [1, 32]
    memory_gib: Positive | None = None
    modules: NonNegativeInt = 0
    steps: NonNegativeInt = 5
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


def main() -> None:
    """Measure each model that the command line names and print one table of all."""
    with errors_to_exit_codes():
        try:
            arguments = parse(Arguments, HELP, positional="overrides")
        except ConfigError as error:
            _jobs(_overrides(), error.mistakes)
            raise
        jobs = _jobs(arguments.overrides)
        # torch is imported once everything that can be wrong has been looked at.
        import torch

        from spkexp import build
        from spkexp.cost.measure import Request, measure
        from spkexp.report.cost import cost_report

        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(["device: there is no CUDA device here; use device=cpu"])
        use_cuda = arguments.device != "cpu" and torch.cuda.is_available()
        if not use_cuda:
            keep_freed_memory()
        request = Request(
            seconds=arguments.seconds,
            batch_sizes=list(dict.fromkeys(arguments.batch_sizes)),
            steps=arguments.steps,
            memory=None if arguments.memory_gib is None else int(arguments.memory_gib * 2**30),
            depth=arguments.modules,
            precision=arguments.precision,
            device=torch.device("cuda" if use_cuda else "cpu"),
        )
        set_up_logging()
        costs = []
        for overrides in jobs:
            cfg = compose_config(overrides)
            costs.append(measure(_label(cfg.names.model, overrides), build.model(cfg.model), request))
        threads = torch.get_num_threads()
        machine = torch.cuda.get_device_name() if use_cuda else f"CPU, {threads} thread{'s' * (threads != 1)}"
        print(cost_report(costs, request, machine))


def _overrides() -> list[str]:
    """The arguments that are not profile's own."""
    return [argument for argument in sys.argv[1:] if argument.partition("=")[0] not in Arguments.model_fields]


def _jobs(arguments: list[str], known_mistakes: Sequence[str] = ()) -> list[list[str]]:
    """The overrides of each model. Raises ConfigError that lists all mistakes, the known ones first."""
    multirun = bool({"-m", "--multirun"} & set(arguments))
    overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    about_models = [argument for argument in overrides if _is_about_the_model(argument)]
    mistakes = [*known_mistakes]
    mistakes += [_no_such_argument(argument) for argument in overrides if argument not in about_models]
    mistakes += [mistake for argument in about_models if (mistake := _not_a_list(argument))]
    try:
        check_all([argument for argument in about_models if not _not_a_list(argument)], multirun)
    except ConfigError as error:
        mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    choices = []
    for override in OverridesParser.create().parse_overrides(about_models):
        line = str(override.input_line)
        key = line.partition("=")[0]
        values = override.sweep_string_iterator() if override.is_sweep_override() else ()
        choices.append([f"{key}={value}" for value in values] or [line])
    return [list(job) for job in itertools.product(*choices)]


def _is_about_the_model(argument: str) -> bool:
    key = argument.partition("=")[0].lstrip("+~")
    return key == "model" or key.startswith(("model.", "model/"))


def _not_a_list(argument: str) -> str | None:
    """What is wrong with a sweep that only a sweeper can draw from, or that depends on the files that there are."""
    key, _, value = argument.partition("=")
    if not re.match(r"(glob|interval)\(", value):
        return None
    what = "names" if key == "model" else "values"
    return f"{key}: profile takes {what} separated by commas, not '{value}'"


def _no_such_argument(argument: str) -> str:
    key, equals, _ = argument.partition("=")
    if argument.startswith("-"):
        return f"{argument}: no such option; there are -m and --help"
    if not equals:
        return f"{argument}: expected KEY=VALUE"
    own = [name for name in Arguments.model_fields if name != "overrides"]
    close = get_close_matches(key, ["model", *own], n=1)
    remedy = f"did you mean '{close[0]}'?" if close else f"it takes model, model.KEY, {', '.join(own)}"
    return f"{key}: profile takes no '{key}'; {remedy}"


def _label(name: str, overrides: list[str]) -> str:
    """ecapa encoder.channels=256: the model and what was changed in it."""
    changes = [
        override.lstrip("+").removeprefix("model.") for override in overrides if not override.startswith("model=")
    ]
    return " ".join([name, *changes])


if __name__ == "__main__":
    main()
