"""A bound on the memory that tensors take while something is built."""

from math import isfinite, prod
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATIONS = 1_000_000
# What states a length by a number, not in a list.
_BY_LENGTH = ("arange", "linspace", "logspace", "eye", "randperm", "hann_window", "hamming_window", "kaiser_window")


class Allowance(TorchDispatchMode):
    """Within the block, torch makes at most so many `values`, by at most a million operations; else ValueError.

    Before an operation is called, its sizes are looked at: memory that is asked for is gone before it can be counted.
    """

    def __init__(self, values: int) -> None:
        super().__init__()
        self._left, self._operations = values, _OPERATIONS

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._operations -= 1
        name = func._schema.name.partition("::")[2]
        if self._operations < 0 or _values_of(name, (*args, *kwargs.values())) > self._left:
            raise self._refused()
        found = func(*args, **kwargs)
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, Tensor)}
        for value in found if isinstance(found, list | tuple) else (found,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self._left -= value.numel()
        if self._left < 0:
            raise self._refused()
        return found

    def _refused(self) -> ValueError:
        return ValueError("it needs more memory than its weights would have")


def _values_of(name: str, arguments: tuple[Any, ...]) -> int:
    """How many values an operation with these arguments may make, by its first list of sizes or its length."""
    for argument in arguments:
        if isinstance(argument, list | tuple) and argument and all(isinstance(size, int) for size in argument):
            return prod(max(1, size) for size in argument)
    lengths = [abs(argument) for argument in arguments if isinstance(argument, int | float)]
    if name not in _BY_LENGTH or not lengths:
        return 0
    return int(max(lengths) ** (2 if name == "eye" else 1)) if isfinite(max(lengths)) else 0
