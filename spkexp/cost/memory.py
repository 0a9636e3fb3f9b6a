"""Peak memory of a pass, and the largest batch that fits."""

import gc
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from spkexp.cost.trace import Trace
from spkexp.cost.workload import OutOfMemory, Workload

_FIRST_BATCH = 8
_LARGE = 128  # from here on a line is trusted to go on
# Slopes that differ by less than this share are the same; on a GPU workspaces make them differ a little.
_STRAIGHT = 1e-3


def peak_bytes(workload: Workload, batch: int, training: bool) -> int:
    """Most bytes of tensors at once in a pass: parameters, buffers, input, activations and, in training, gradients.

    On a CPU they are added up without running the pass; on a GPU the pass runs and its allocator is asked. Gradients
    are freed between steps, as `zero_grad` does. Raises CannotRun.
    """
    return (
        _measured(workload, batch, training) if workload.device.type == "cuda" else _traced(workload, batch, training)
    )


def _traced(workload: Workload, batch: int, training: bool) -> int:
    tensors, waveform = workload.on_paper(batch)
    trace = Trace()
    for tensor in (*tensors.values(), waveform):
        trace.add(tensor, "input")
    with trace:
        workload.run(waveform, training, tensors)
    workload.model.zero_grad(set_to_none=True)
    return trace.peak()[0]


def _measured(workload: Workload, batch: int, training: bool) -> int:
    workload.model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(workload.device)
    try:
        workload.run(workload.waveform(batch), training)
    except torch.cuda.OutOfMemoryError as error:  # the waveform itself
        raise OutOfMemory("the GPU's memory is too small") from error
    finally:
        workload.model.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(workload.device)


def optimizer_bytes(model: nn.Module) -> int:
    """What AdamW keeps: two moments of every parameter that learns, and its step, a float32."""
    return sum(2 * p.numel() * p.element_size() + 4 for p in model.parameters() if p.requires_grad)


def largest_batch(peak: Callable[[int], int], limit: int) -> int:
    """The largest batch whose `peak(batch)` bytes are at most `limit`; 0 where not even two utterances fit.

    The bytes held at one moment of a pass are a line in the batch; the peak is the highest of these lines, so it is one
    itself once what does not grow (gradients, say) has lost its weight. Batches are doubled until the last three lie on
    a line, which then gives the answer without going there, or until one does not fit.
    """
    peak = cache(peak)

    def fits(batch: int) -> bool:
        try:
            return peak(batch) <= limit
        except OutOfMemory:
            return False

    if not fits(_FIRST_BATCH):
        return _bisect(fits, 2, _FIRST_BATCH) if fits(2) else 0
    batch, slopes = _FIRST_BATCH, [0.0]
    while fits(2 * batch):
        slopes.append((peak(2 * batch) - peak(batch)) / batch)
        batch *= 2
        if batch >= _LARGE and abs(slopes[-1] - slopes[-2]) <= _STRAIGHT * slopes[-1]:
            return batch + int((limit - peak(batch)) // slopes[-1])
    return _bisect(fits, batch, 2 * batch)


def _bisect(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The last that fits, of low (which does) to high (which does not)."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
