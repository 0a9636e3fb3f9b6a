"""All figures of one model."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from spkexp.cost.activations import Activations, trace_activations
from spkexp.cost.macs import Macs, count_macs
from spkexp.cost.memory import largest_batch, optimizer_bytes, peak_bytes
from spkexp.cost.speed import module_shares, require_memory, utterances_per_second
from spkexp.cost.workload import CannotRun, Precision, Workload
from spkexp.models.speaker import SpeakerModel

log = logging.getLogger(__name__)
T = TypeVar("T")
Figure = float | str  # or why there is none


@dataclass(frozen=True)
class Pass:
    """Figures of a pass at one batch size; speed is None where none was asked for."""

    memory: Figure  # bytes
    speed: Figure | None  # utterances per second


@dataclass(frozen=True)
class Module:
    """What one module costs, with everything inside it; `depth` modules that are called lie around it."""

    label: str  # its name within the module around it
    kind: str
    depth: int
    parameters: int
    macs: int
    output: tuple[int, ...]  # shape for one utterance
    held: int  # bytes for one utterance, see Activations
    share: float | None  # of the seconds of a forward pass


@dataclass(frozen=True)
class Cost:
    """Figures of the model `name`; passes by batch size, (inference, training)."""

    name: str
    parameters: int
    macs: Macs
    activations: Activations
    passes: dict[int, tuple[Pass, Pass]]
    optimizer: int  # bytes of AdamW's state
    largest: tuple[Figure, Figure] | None  # batch in inference and in training, the latter beside AdamW's state
    modules: dict[str, Module]


@dataclass(frozen=True)
class Request:
    """seconds: of an utterance. steps: timed passes, 0 for none. memory: bytes that a batch is to fit in.

    depth: of the modules that get figures of their own, 0 for none.
    """

    seconds: float
    batch_sizes: list[int]
    steps: int
    memory: int | None
    depth: int
    precision: Precision
    device: torch.device


def measure(name: str, model: SpeakerModel, request: Request) -> Cost:
    """Count on the CPU, then move `model` to the device and measure there."""
    workload = Workload(model, request.seconds, request.precision)
    log.info("%s: counting", name)
    # In float32 whatever the passes run in: autocast's copies of the weights are no activations.
    exact = Workload(model, request.seconds, "fp32")
    macs, activations = count_macs(exact), trace_activations(exact)
    model.to(request.device)
    passes = {batch: _passes(name, workload, batch, request.steps) for batch in request.batch_sizes}
    largest = None
    if request.memory is not None:
        log.info("%s: largest batch", name)
        budgets = (request.memory, request.memory - optimizer_bytes(model))
        largest = (_largest(workload, False, budgets[0]), _largest(workload, True, budgets[1]))
    most = max(request.batch_sizes)
    timed = request.depth and isinstance(passes[most][0].speed, float)
    shares = module_shares(workload, most) if timed else {}
    return Cost(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        macs=macs,
        activations=activations,
        passes=passes,
        optimizer=optimizer_bytes(model),
        largest=largest,
        modules=_modules(model, macs, activations, shares, request.depth),
    )


def _largest(workload: Workload, training: bool, limit: int) -> Figure:
    return _figure(partial(largest_batch, lambda batch: peak_bytes(workload, batch, training), limit))


def _figure(function: Callable[[], T]) -> T | str:
    try:
        return function()
    except CannotRun as reason:
        return str(reason)


def _passes(name: str, workload: Workload, batch: int, steps: int) -> tuple[Pass, Pass]:
    found = []
    for training in (False, True):
        log.info("%s: %s, batch %d", name, "training" if training else "inference", batch)
        memory = _figure(partial(peak_bytes, workload, batch, training))
        speed = _figure(partial(_speed, workload, batch, training, steps, memory)) if steps else None
        found.append(Pass(memory, speed))
    return found[0], found[1]


def _speed(workload: Workload, batch: int, training: bool, steps: int, memory: Figure) -> Figure:
    if isinstance(memory, str):
        return memory
    if workload.device.type == "cpu":
        require_memory(int(memory))
    return utterances_per_second(workload, batch, training, steps)


def _modules(
    model: SpeakerModel, macs: Macs, activations: Activations, shares: dict[str, float], depth: int
) -> dict[str, Module]:
    """Modules that are called (a list of layers is not), down to `depth` levels, in the order of the model."""
    found: dict[str, Module] = {}
    for name, module in model.named_modules():
        if not name or name not in macs.by_module or isinstance(module, nn.Identity):
            continue
        around = [other for other in macs.by_module if other and name.startswith(f"{other}.")]
        if len(around) < depth:
            found[name] = Module(
                label=name.removeprefix(max(around, key=len, default="")).lstrip("."),
                kind=type(module).__name__,
                depth=len(around),
                parameters=sum(p.numel() for p in module.parameters()),
                macs=macs.by_module[name],
                output=activations.outputs[name].shape[1:],
                held=activations.by_module[name],
                share=shares.get(name),
            )
    return found
