"""Utterances per second of real passes, and where a pass spends its time."""

import os
import time
from statistics import median

import torch

from spkexp.cost.workload import OutOfMemory, Workload, module_calls

# Passes before the first that counts: on a GPU kernels are chosen and loaded in them.
_WARM_UP = {"cpu": 1, "cuda": 3}
# After so many seconds three passes are enough.
_PATIENCE = 10.0
_GIB = 2**30


def utterances_per_second(workload: Workload, batch: int, training: bool, steps: int) -> float:
    """batch / median seconds of `steps` passes from waveform to embedding, and back in training; without optimizer."""
    waveform = workload.waveform(batch)
    seconds: list[float] = []
    for step in range(_WARM_UP.get(workload.device.type, 1) + steps):
        workload.model.zero_grad(set_to_none=True)
        begin = _now(workload)
        workload.run(waveform, training)
        if step >= _WARM_UP.get(workload.device.type, 1):
            seconds.append((_now(workload) - begin) / 1e9)
        if len(seconds) >= 3 and sum(seconds) > _PATIENCE:
            break
    workload.model.zero_grad(set_to_none=True)
    return batch / median(seconds)


def module_shares(workload: Workload, batch: int) -> dict[str, float]:
    """Dotted name -> share of the seconds of a forward pass, with everything inside it; the second of two passes."""
    waveform = workload.waveform(batch)
    workload.run(waveform, training=False)
    with module_calls(workload.model, lambda: _now(workload)) as calls:
        workload.run(waveform, training=False)
    total = next(call.after - call.before for call in calls if call.name == "")
    shares: dict[str, float] = {}
    for call in calls:
        shares[call.name] = shares.get(call.name, 0.0) + (call.after - call.before) / total
    return shares


def _now(workload: Workload) -> int:
    """Nanoseconds, when the device has done what it was given."""
    if workload.device.type == "cuda":
        torch.cuda.synchronize(workload.device)
    return time.perf_counter_ns()


def require_memory(peak: int) -> None:
    """Raise OutOfMemory before a pass on the CPU makes the machine swap."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if peak > 0.8 * there:
        raise OutOfMemory(f"not run: it takes {peak / _GIB:.1f} GiB and this machine has {there / _GIB:.1f}")
