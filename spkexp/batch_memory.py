"""Batches and memory: the largest that fits (trainer.batch_size=auto), and what to do where one did not."""

import logging
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


def largest_batch_size(
    step: TrainStep, seconds: float | None, rows_per_utterance: float, settings: Settings, classes: int, utterances: int
) -> int:
    """The largest trainer.batch_size whose steps fit into the memory of every process's device.

    seconds: length of a crop; rows_per_utterance: what augmentation makes of one. A GPU is tried out, for a CPU the
    tensors of a step are added up. Not more than `utterances`. Raises UserError where not even two fit.
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
    part = int(rows / rows_per_utterance)
    part -= part % 8 if part > 16 else 0
    part = min(distributed.gather(part))
    parts = settings.accumulate * distributed.world_size()
    part = min(part, utterances // parts)
    if part < 2:
        raise UserError(
            f"trainer.batch_size=auto: not even two crops of {seconds:g} s fit into {limit / GIB:.1f} GiB; choose "
            "a shorter data.crop_seconds or a smaller model"
        )
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
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 // distributed.on_this_node()


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
        part = batch_size // (accumulate * distributed.world_size())
        advice = f"trainer.accumulate={2 * accumulate} works through it in smaller parts" if part >= 4 else "a shorter "
        advice += "" if part >= 4 else "data.crop_seconds needs less"
        raise UserError(
            f"trainer.batch_size: {batch_size} utterances, {part} at a time, do not fit into memory "
            f"({str(error).splitlines()[0] if str(error) else 'MemoryError'}); {advice}, "
            "trainer.precision=bf16 takes less, and trainer.batch_size=auto finds the largest that fits"
        ) from error
