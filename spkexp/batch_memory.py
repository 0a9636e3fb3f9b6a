"""Batches and memory: the largest that fits (trainer.batch_size=auto), and what to do where one did not."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from spkexp import distributed
from spkexp.cost.memory import largest_batch, optimizer_bytes, peak_bytes
from spkexp.cost.workload import Workload
from spkexp.errors import UserError
from spkexp.sections import Trainer as Settings
from spkexp.step import TrainStep

log = logging.getLogger(__name__)
# Of the memory that is free: fragments, workspaces and what augmentation and evaluation take beside a step.
SHARE = 0.85
# Tensors of (batch, classes) in float32 that a margin softmax and its gradient hold at once.
LOGITS = 8
GIB = 2**30
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# A control group's files in version 2 and in version 1: its limit, what it uses, and in memory.stat the part of that
# which is a cache of files that gives way.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def largest_batch_size(
    step: TrainStep,
    seconds: float | None,
    rows_per_utterance: float,
    settings: Settings,
    classes: int,
    most: int,
    multiple_of: int,
) -> int:
    """The largest trainer.batch_size whose steps fit into the memory of every process's device.

    seconds: length of a crop; rows_per_utterance: what augmentation makes of one. A GPU is tried out, for a CPU the
    tensors of a step are added up. Not more than `most`, which is what the sampler can draw; each part of the batch is
    a multiple of `multiple_of`, the utterances that the sampler puts together. Raises UserError where not even one such
    part of two or more fits.
    """
    if seconds is None:
        raise UserError("trainer.batch_size=auto: needs crops of one length; set data.crop_seconds, or a number")
    device = next(step.parameters()).device
    limit = SHARE * _free_bytes(device)
    workload = Workload(step.model, seconds, "fp32" if settings.precision == "fp32" else "bf16")  # fp16 is as large
    copies = 2 if settings.ema is None else 3  # weights and gradients, and their moving average
    head = sum(parameter.numel() * parameter.element_size() for parameter in step.head.parameters())
    fixed = optimizer_bytes(step) + copies * head
    fixed += (copies - 2) * sum(parameter.numel() * parameter.element_size() for parameter in step.model.parameters())

    def peak(rows: int) -> int:
        return peak_bytes(workload, rows, training=True) + fixed + rows * classes * 4 * LOGITS

    rows = largest_batch(peak, int(limit))
    step.train()
    part = min(distributed.gather(int(rows / rows_per_utterance)))
    parts = settings.accumulate * distributed.world_size()
    least = multiple_of * math.ceil(2 / multiple_of)
    if part < least:
        raise UserError(
            f"trainer.batch_size=auto: not even {least} crops of {seconds:g} s fit into {limit / GIB:.1f} GiB; choose "
            "a shorter data.crop_seconds or a smaller model"
        )
    if most // parts < least:
        raise UserError(
            f"trainer.batch_size=auto: the sampler can draw {most} utterances at once, too few for {parts} parts "
            f"(processes x trainer.accumulate) of {least}; choose a smaller trainer.accumulate or fewer processes"
        )
    part = min(part, most // parts)
    round_number = math.lcm(8, multiple_of)
    part -= part % (round_number if part > 2 * round_number else multiple_of)
    if distributed.is_main():
        log.info(
            "trainer.batch_size=auto: %d, in %d parts of %d that need %.2f of %.2f GiB",
            part * parts, parts, part, peak(max(2, round(part * rows_per_utterance))) / GIB, limit / SHARE / GIB,
        )  # fmt: skip
    return part * parts


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    try:
        fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text(encoding="ascii").splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"trainer.batch_size=auto: {PROC / 'meminfo'} does not say how much memory is free; set a number"
        ) from error
    return min([available, *_free_in_groups()]) // distributed.on_this_node()


def _free_in_groups() -> Iterator[int]:
    """What is left of each memory limit that this process is under, be it Slurm's for the job or a container's."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # a kernel without control groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, files = (CGROUPS / "memory", _V1) if controllers else (CGROUPS, _V2)
        place = top / path.lstrip("/")
        # The limits of all groups above hold as well. In a container the path may be the host's, of which only the
        # topmost folder is there to be seen.
        for group in (place, *place.parents):
            if group.is_relative_to(top) and (left := _left(group, *files)) is not None:
                yield left


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """Bytes that the control group in the folder `group` may still take; None where it has no limit."""
    try:
        most, used = (group / limit).read_text(encoding="ascii"), int((group / usage).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return None
    if most.strip() == "max":
        return None
    gives_way = dict(line.split() for line in stat.splitlines()).get(cache, 0)
    return max(0, int(most) - used + int(gives_way))


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Raise UserError, which says what to change, where memory ran out inside."""
    batch_size, accumulate = settings.batch_size, settings.accumulate
    assert batch_size != "auto"  # it is a number by the time that there are steps
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        processes = distributed.world_size()
        part = batch_size // (accumulate * processes)
        # Parts of two or more: batch normalisation needs them.
        more = range(accumulate + 1, batch_size // (2 * processes) + 1)
        even = next((count for count in more if batch_size % (count * processes) == 0), None)
        advice = f"trainer.accumulate={even} works through it in smaller parts"
        if even is None:
            advice = "a smaller trainer.batch_size or a shorter data.crop_seconds needs less"
        raise UserError(
            f"trainer.batch_size: {batch_size} utterances, {part} at a time, do not fit into memory "
            f"({str(error).splitlines()[0] if str(error) else 'MemoryError'}); {advice}, "
            "trainer.precision=bf16 takes less, and trainer.batch_size=auto finds the largest that fits"
        ) from error
