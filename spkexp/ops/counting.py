"""How an operation says what it costs, for a count that must not depend on which backend computes it.

A scan is a loop of elementwise products on one backend, a fused kernel on another and a few matrix products on a
third; a counter of matrix products would see three different costs. `declared` replaces what it saw by what the
operation says.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class Tally:
    """Multiply-accumulates while a count is on: those that a counter sees, corrected by those that are declared."""

    def __init__(self, seen: Callable[[], int]) -> None:
        """seen: the counter's total so far."""
        self._seen = seen
        self._correction = 0
        self._inside = False
        self.by_operation: dict[str, int] = {}

    def total(self) -> int:
        return self._seen() + self._correction

    @contextmanager
    def instead(self, operation: str, macs: int) -> Iterator[None]:
        """Count `macs` for what runs inside, whatever that is; of nested declarations the outermost counts."""
        if self._inside:
            yield
            return
        before = self.total()
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
        self._correction += macs - (self.total() - before)
        self.by_operation[operation] = self.by_operation.get(operation, 0) + macs


_active: Tally | None = None


@contextmanager
def counting(seen: Callable[[], int]) -> Iterator[Tally]:
    """Let operations declare their cost inside; `seen` is the total of the counter that watches everything else."""
    global _active
    outer, _active = _active, Tally(seen)
    try:
        yield _active
    finally:
        _active = outer


def declared(operation: str, macs: int) -> AbstractContextManager[None]:
    """`with declared("selective_scan", macs):` goes around the computation; it is nothing unless a count is on."""
    return nullcontext() if _active is None else _active.instead(operation, macs)


def scan_macs(batch: int, channels: int, length: int, states: int) -> int:
    """Multiply-accumulates of a selective scan, the recurrence of Mamba (Gu and Dao 2023, eq. 2a and 2b).

    h_t = a_t ∘ h_{t-1} + (Δ_t u_t) B_t and y_t = C_t · h_t: three for each element of the state at each step. What is
    elementwise at the input's size (Δu, the skip D u) and the exponential a = exp(ΔA) are left out, as activation
    functions are everywhere. Mamba-2's state-space duality computes the same recurrence and counts the same.
    """
    return 3 * batch * channels * length * states
