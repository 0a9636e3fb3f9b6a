"""Operations over the processes of a run; each is the identity when there is one process.

The only importer of torch.distributed, so that no other module asks for its rank.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spkexp.agent_store import agent_store, agree_on_attempt
from spkexp.allocator import keep_freed_memory
from spkexp.errors import ConfigError, UserError
from spkexp.lifeline import die_with

T = TypeVar("T")
log = logging.getLogger(__name__)

# What a collective waits beyond a step's time limit: a process that hangs says so (`spkexp.watchdog`) before those that
# wait for it give up.
PATIENCE = timedelta(minutes=2)
RUN_FOLDER = "run folder"  # under which the run's folder is remembered
EXIT_LOST = 3  # of a process that ends because another one did

# For waiting on what takes one process hours: reading a million headers, copying a corpus. Made by `processes`.
_patient: dist.ProcessGroup | None = None
_attempt = 0  # how often the launch had started its processes before; set by `processes`


@contextmanager
def processes(device: str, timeout_minutes: float = 30.0) -> Iterator[torch.device]:
    """Join the process group that torchrun announces in the environment, if any; yields this process's device.

    device: "auto" (cuda where there is one), "cpu" or "cuda". timeout_minutes: no step lasts longer; after that and
    PATIENCE a collective that still waits raises. Raises ConfigError where there is no such device, and SystemExit
    where the other processes are gone.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["trainer.device: there is no CUDA device here; use cpu"])
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not use_cuda:
        keep_freed_memory()
    if "RANK" not in os.environ:
        yield torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())
    if use_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(minutes=timeout_minutes) + PATIENCE
    # gloo always, for objects and flags that live on the CPU; nccl for tensors on GPUs.
    backend = "cpu:gloo,cuda:nccl" if use_cuda else "gloo"
    global _attempt, _patient
    if (agent := agent_store(timeout)) is None:
        _attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        dist.init_process_group(backend, timeout=timeout)
    else:
        own, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        _attempt = agree_on_attempt(dist.PrefixStore("spkexp", agent), own, size, timeout)
        store = dist.PrefixStore(f"spkexp/attempt/{_attempt}", agent)
        dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=timeout)
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    try:
        yield torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "/gloo/transport/" not in str(error):
            raise
        log.error("rank %d lost the others, of which one may say why: %s", rank(), str(error).splitlines()[0])
        sys.exit(EXIT_LOST)
    finally:
        _patient = None
        dist.destroy_process_group()


def attempt() -> int:
    """How often this launch had started its processes before this time."""
    return _attempt


def remember(key: str, text: str) -> None:
    """Keep `text` for processes that the same launch starts in this one's place; does nothing where none can be."""
    if (store := agent_store(PATIENCE)) is not None:
        dist.PrefixStore("spkexp/memory", store).set(key, text)


def recall(key: str) -> str | None:
    """What a process of this launch, perhaps dead since, remembered last under `key`; None if nothing."""
    if (agent := agent_store(PATIENCE)) is None:
        return None
    store = dist.PrefixStore("spkexp/memory", agent)
    return store.get(key).decode() if store.check([key]) else None


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


def decided_by_main(work: Callable[[], T]) -> T:
    """What `work()` gives in the main process, which alone does it. Its UserError is raised in all of them."""
    if world_size() == 1:
        return work()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = work()
        except UserError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


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


class _Wrapped(nn.Module):
    """`module`; called with nothing, zero times the sum of its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if inputs or named:
            return self.module(*inputs, **named)
        return sum(0.0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad)


def wrap(module: nn.Module, static_graph: bool) -> nn.Module:
    """`module` with gradients averaged over the processes. static_graph: every step uses the same parameters."""
    if world_size() == 1:
        return module
    # Batch-norm statistics stay each process's own while training; `share_buffers` settles them before they count.
    parallel = DistributedDataParallel(
        _Wrapped(module), broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=static_graph
    )
    # DDP lays out its buckets anew after the first backward pass, by the order in which gradients came. Where in a
    # bucket a number lies decides in which order gloo and nccl add up three or more of them, so that the first step
    # after a resume would round otherwise than that step of a run without a break. Passes through all parameters, in
    # the reverse of their order as in true ones, have that behind them: one, and with a static graph a second, for its
    # first reduces nothing before its end (and, were it one under `no_sync`, would fail).
    for _ in range(2):
        parallel().backward()
    for parameter in module.parameters():
        parameter.grad = None
    return parallel


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


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # Each process's loss depends on these rows: what they all say of them adds up.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.count :][: ctx.count]


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(N, …) of each process -> (processes · N, …) of all, in the order of their ranks; N must be the same everywhere.

    Where every process takes the same loss of the result, and gradients are then averaged over the processes, they are
    those of one process with all rows.
    """
    return tensor if world_size() == 1 else _GatherRows.apply(tensor.contiguous())
