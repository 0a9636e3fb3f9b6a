"""A log of every tensor that a pass allocates and frees."""

import weakref
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Event(NamedTuple):
    """The storage `key` appears (change > 0, bytes) as the result of `operation`, or goes."""

    change: int
    key: int
    operation: str
    shape: tuple[int, ...]


class Trace(TorchDispatchMode):
    """Logs the storages of all results while it is active, also those that only the autograd graph keeps.

    Bytes are those of the tensors, exactly; what a kernel allocates and frees inside itself (the workspace of a
    convolution, say) is not seen, nor how an allocator rounds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._alive: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor, operation: str) -> None:
        """Log the storage of `tensor`, unless it is known; views share one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size:
            return
        self.events.append(Event(size, len(self.events), operation, tuple(tensor.shape)))
        number = len(self.events) - 1  # an address is used again once it is free, a number is not

        def free(_: Any) -> None:
            del self._alive[key]
            self.events.append(Event(-size, number, operation, ()))

        self._alive[key] = weakref.ref(storage, free)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf, func.overloadpacket.__name__.strip("_"))
        return result

    def position(self) -> int:
        return len(self.events)

    def peak(self, start: int = 0, end: int | None = None) -> tuple[int, int]:
        """(most bytes held at once, beyond those at `start`, between `start` and `end`; after how many events)."""
        held = [0, *accumulate(event.change for event in self.events[start:end])]
        highest = max(held)
        return highest, start + held.index(highest)

    def held(self, start: int, end: int) -> list[Event]:
        """What appeared after `start` and is there at `end`, the largest first."""
        found: dict[int, Event] = {}
        for event in self.events[start:end]:
            if event.change > 0:
                found[event.key] = event
            else:
                found.pop(event.key, None)
        return sorted(found.values(), key=lambda event: -event.change)
