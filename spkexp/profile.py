"""`python -m spkexp.profile`: what a model costs: parameters, MACs, memory and speed, before it is trained."""

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, BeforeValidator, ConfigDict

from spkexp.allocator import keep_freed_memory
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.compose import compose_config
from spkexp.errors import ConfigError
from spkexp.overrides import parse_with_overrides
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
  experiments=NAME    a study's model; with -m: experiments/NAME/GROUP=A,B
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
        arguments, jobs = parse_with_overrides(Arguments, HELP, "profile", ("model", "experiments"), sweep=True)
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


def _label(name: str, overrides: list[str]) -> str:
    """ecapa encoder.channels=256: the model and what was changed in it."""
    changes = [
        override.lstrip("+").removeprefix("model.")
        for override in overrides
        if not override.startswith(("model=", "experiments"))
    ]
    return " ".join([name, *changes])


if __name__ == "__main__":
    main()
