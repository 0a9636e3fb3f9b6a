"""Learning-rate schedules: pure functions of the step, as a factor on the optimizer's lr.

Step 0 is the first optimizer step. `total_steps` and `steps_per_epoch` come from the data.
"""

import math

from spkexp.types import NonNegative, Positive, PositiveInt


class Constant:
    """1, after a linear warm-up."""

    def __init__(self, warmup_epochs: NonNegative, total_steps: int, steps_per_epoch: int) -> None:
        self.warmup_steps = round(warmup_epochs * steps_per_epoch)
        self.total_steps = total_steps

    def __call__(self, step: int) -> float:
        """The factor for `step` (0 <= step < total_steps)."""
        return self.warmup(step) * self.decay(step)

    def warmup(self, step: int) -> float:
        """(step + 1) / warmup_steps, so that the first step already learns and the last of the warm-up has 1."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    def decay(self, step: int) -> float:
        return 1.0

    def progress(self, step: int) -> float:
        """0 at the first step, 1 at the last."""
        return min(1.0, step / max(1, self.total_steps - 1))


class _Decaying(Constant):
    def __init__(self, final: Positive, warmup_epochs: NonNegative, total_steps: int, steps_per_epoch: int) -> None:
        super().__init__(warmup_epochs, total_steps, steps_per_epoch)
        self.final = final


class Linear(_Decaying):
    """From 1 to `final` in a straight line."""

    def decay(self, step: int) -> float:
        return 1.0 + (self.final - 1.0) * self.progress(step)


class Cosine(_Decaying):
    """From 1 to `final` along half a cosine. Loshchilov and Hutter 2017 (SGDR), eq. 5, without restarts."""

    def decay(self, step: int) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * self.progress(step)))


class Exponential(_Decaying):
    """From 1 to `final` by a constant ratio per step, as WeSpeaker's ExponentialDecrease."""

    def decay(self, step: int) -> float:
        return self.final ** self.progress(step)


class Cyclic:
    """Up from `floor` to 1 in `half_cycle_steps`, down again, and so on. Smith 2017, "triangular" policy."""

    def __init__(
        self, floor: NonNegative, half_cycle_steps: PositiveInt, total_steps: int, steps_per_epoch: int
    ) -> None:
        self.floor = floor
        self.half_cycle_steps = half_cycle_steps

    def __call__(self, step: int) -> float:
        """The factor for `step` (step >= 0)."""
        position = step % (2 * self.half_cycle_steps) / self.half_cycle_steps
        return self.floor + (1.0 - self.floor) * (position if position <= 1.0 else 2.0 - position)
