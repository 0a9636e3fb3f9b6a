"""Where a forward pass holds more than the sizes of its inputs suggest, and why."""

import math
import re
from dataclasses import dataclass

from spkexp.cost.trace import Event, Trace
from spkexp.cost.workload import Call, Extent, Workload, module_calls

# Two utterances, so that nothing is broadcast that would not be in a batch.
_BATCH = 2
# Modules that hold less than this share of the whole pass's peak are of no interest.
_SMALL = 0.01


@dataclass(frozen=True)
class Held:
    """Modules (the same but for numbers in their names) that allocate `ratio` times the bytes of their inputs."""

    names: tuple[str, ...]
    kind: str
    bytes: int
    ratio: float
    reason: str

    @property
    def pattern(self) -> str:
        return self.names[0] if len(self.names) == 1 else _pattern(self.names[0])


@dataclass(frozen=True)
class Activations:
    """What each module's call allocates at most in inference, its output included; bytes are per utterance."""

    by_module: dict[str, int]
    outputs: dict[str, Extent]
    over_twice: tuple[Held, ...]


def trace_activations(workload: Workload) -> Activations:
    """Trace a forward pass on paper, and explain the modules that allocate more than twice their inputs.

    Of a module and its part that allocates at least half of the same, the part is listed.
    """
    tensors, waveform = workload.on_paper(_BATCH)
    trace = Trace()
    for tensor in (*tensors.values(), waveform):
        trace.add(tensor, "input")
    with module_calls(workload.model, trace.position) as calls, trace:
        workload.run(waveform, training=False, tensors=tensors)
    peaks = [trace.peak(call.before, call.after) for call in calls]
    by_module: dict[str, int] = {}
    for call, (size, _) in zip(calls, peaks, strict=True):
        by_module[call.name] = max(by_module.get(call.name, 0), size // _BATCH)
    outputs = {call.name: call.output for call in calls}
    return Activations(by_module, outputs, _explain(trace, calls, peaks))


def _explain(trace: Trace, calls: list[Call], peaks: list[tuple[int, int]]) -> tuple[Held, ...]:
    whole = peaks[-1][0]  # the model itself ends last
    listed: list[int] = []
    for index, (call, (size, _)) in enumerate(zip(calls, peaks, strict=True)):
        if size <= 2 * call.inputs.bytes or size < _SMALL * whole or call.name in ("", "features"):
            continue
        inside = [other for other in listed if calls[other].name.startswith(f"{call.name}.")]
        if not any(2 * peaks[other][0] >= size for other in inside):
            listed.append(index)
    groups: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for index in listed:
        call = calls[index]
        sizes = call.inputs.shape[1:-1], call.output.shape[1:]
        groups.setdefault((_pattern(call.name), *sizes), []).append(index)
    return tuple(_held(trace, calls, peaks, indices) for indices in groups.values())


def _held(trace: Trace, calls: list[Call], peaks: list[tuple[int, int]], indices: list[int]) -> Held:
    """One entry for the calls `indices`, with the figures of the one that holds most."""
    most = max(indices, key=lambda index: peaks[index][0])
    call, (size, position) = calls[most], peaks[most]
    names = dict.fromkeys(calls[index].name for index in indices)
    reason = _reason(call, trace.held(call.before, position))
    times = size / call.inputs.bytes if call.inputs.bytes else math.inf  # made from numbers alone: a table of positions
    return Held(tuple(names), type(call.module).__name__, size // _BATCH, times, reason)


def _pattern(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def _reason(call: Call, held: list[Event]) -> str:
    inputs, output = call.inputs.shape[1:], call.output.shape[1:]
    if call.output.bytes > 2 * call.inputs.bytes and not list(call.module.children()):
        if len(inputs) == len(output) > 1 and inputs != output:  # channels lie first or last; frames change little
            before, after = next((a, b) for a, b in zip(inputs, output, strict=True) if a != b)
            return f"channels {before} → {after}"
        return f"{shape_text(inputs)} → {shape_text(output)}"
    counted: dict[str, int] = {}
    for event in held:
        what = f"{event.operation} {shape_text(event.shape[1:])}"
        counted[what] = counted.get(what, 0) + 1
    terms = [f"{count} {what}" if count > 1 else what for what, count in list(counted.items())[:3]]
    return f"input {shape_text(inputs)}; at once {', '.join(terms)}"


def shape_text(shape: tuple[int, ...]) -> str:
    """128×200, of (128, 200)."""
    return "×".join(map(str, shape)) or "1"
