"""Operations over the processes of a run; each is the identity when there is one process.

The only importer of torch.distributed, so that no other module asks for its rank.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spkexp.allocator import keep_freed_memory
from spkexp.errors import ConfigError, UserError

T = TypeVar("T")

# For waiting on what takes one process hours: reading a million headers, copying a corpus. Made by `processes`.
_patient: dist.ProcessGroup | None = None


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """Join the process group that torchrun announces in the environment, if any; yields this process's device.

    device: "auto" (cuda where there is one), "cpu" or "cuda". Raises ConfigError where there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["trainer.device: there is no CUDA device here; use cpu"])
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not use_cuda:
        keep_freed_memory()
    if "RANK" not in os.environ:
        yield torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
        return
    if use_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo always, for objects and flags that live on the CPU; nccl for tensors on GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=timedelta(minutes=30))
    global _patient
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    try:
        yield torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
    finally:
        _patient = None
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def on_this_node() -> int:
    """Processes of the run that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is up in any process."""
    if world_size() == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in shared.tolist())


def broadcast(value: Any) -> Any:
    """The main process's value."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_have(value: Any) -> bool:
    """Whether every process has the same value; waits for the slowest, however long it takes."""
    if world_size() == 1:
        return True
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_patient)
    return all(other == value for other in values)


def gather(value: Any) -> list[Any]:
    """The value of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean(values: Sequence[float]) -> list[float]:
    """Means over the processes."""
    if world_size() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(shared)
    return (shared / world_size()).tolist()


def main_first(work: Callable[[], T]) -> T:
    """`work()` of every process, the main one's before the others': what it leaves on disk, they find.

    The others wait as long as it takes.

    Where it fails in the main process, all of them end: with the same UserError, or saying who knows more.
    """
    if world_size() == 1:
        return work()
    error: Exception | None = None
    result: list[T] = []
    if is_main():
        try:
            result.append(work())
        except Exception as mistake:
            error = mistake
    box = [error if isinstance(error, UserError | None) else RuntimeError(f"the main process: {error!r}")]
    dist.broadcast_object_list(box, src=0, group=_patient)
    failure = box[0]
    if failure is not None:
        raise error or failure
    return result[0] if is_main() else work()


def wrap(module: nn.Module) -> nn.Module:
    """`module` with gradients averaged over the processes."""
    if world_size() == 1:
        return module
    # Batch-norm statistics stay each process's own while training; `share_buffers` settles them before they count.
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def no_sync(module: nn.Module, active: bool) -> AbstractContextManager[None]:
    """While `active`, gradients accumulate without being exchanged."""
    if active and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def share_buffers(module: nn.Module) -> None:
    """Every process takes the main process's buffers (batch-norm statistics)."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
