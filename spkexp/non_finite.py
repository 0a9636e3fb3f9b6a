"""What becomes of a step whose loss or gradient is not finite: trainer.on_nan."""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from spkexp import distributed
from spkexp.errors import UserError

log = logging.getLogger(__name__)
# Where so many come in a row, it is not the data: the weights or the learning rate are at fault.
MAX_IN_A_ROW = 10
MAX_ROLLBACKS = 10
# After so many good steps a rollback counts no more: a run over millions of steps meets more than MAX_ROLLBACKS bad
# files, and each alone did no harm.
FORGET_AFTER = 1000
# With fp16 a gradient that is not finite halves the loss scale. It starts at 2¹⁶ and as a rule finds its level on the
# way down to 1; as low as this no overflow is behind it, for the gradient itself would be beyond 65504 · 2¹⁰, and small
# gradients are lost. A level, and not a number of falls in a row: where one step in a hundred is spoilt the scale falls
# to zero as well, since it is doubled only after 2000 good ones.
MIN_SCALE = 2.0**-MAX_IN_A_ROW
_REMEDY = "a lower trainer.optimizer.lr, trainer.precision=fp32 or trainer.clip_norm help most often"


class NotFinite(UserError):
    """The loss or the gradient became NaN or infinite; the message names the utterances."""


class Guard:
    """Tells spoilt steps from others, and undoes what their forward pass did.

    policy: "raise" leaves it all to the meter, which looks at a step while the next one runs. "skip" and "rollback"
    look at once, which makes a GPU wait for the CPU at every step.
    """

    def __init__(self, policy: Literal["raise", "skip", "rollback"], module: nn.Module) -> None:
        self.policy, self._module = policy, module
        self._buffers: list[Tensor] = []
        self._in_a_row = 0
        self._rollbacks = self._good = 0  # rollbacks that count, and good steps since the last

    @property
    def looks(self) -> bool:
        return self.policy != "raise"

    def remember(self) -> None:
        """Keep the buffers as they are before a forward pass: batch statistics of NaN would never leave them."""
        if self.looks:
            self._buffers = [buffer.clone() for buffer in self._module.buffers()]

    def spoilt(self, losses: list[Tensor], norm: Tensor | None) -> bool:
        """Whether this step's losses or the gradient's norm are not finite in any process; buffers are then restored.

        Raises NotFinite where too many steps in a row were spoilt.
        """
        if not self.looks:
            return False
        values = torch.stack(
            [loss.detach().float() for loss in losses] + ([norm.detach().float()] if norm is not None else [])
        )
        if not distributed.any_of(not bool(values.isfinite().all()))[0]:
            self._in_a_row = 0
            self._good += 1
            return False
        self._in_a_row += 1
        with torch.no_grad():
            for buffer, kept in zip(self._module.buffers(), self._buffers, strict=True):
                buffer.copy_(kept)
        if self._in_a_row >= MAX_IN_A_ROW:
            raise NotFinite(
                f"trainer.on_nan={self.policy}: the loss or the gradient of {self._in_a_row} steps in a row was not "
                f"finite; {_REMEDY}"
            )
        return True

    def count_rollback(self, step: int) -> None:
        """Note that `step` is taken back. Raises NotFinite where MAX_ROLLBACKS were, with few good steps in between."""
        if self._good >= FORGET_AFTER:
            self._rollbacks = 0
        self._good = 0
        if self._rollbacks == MAX_ROLLBACKS:
            raise NotFinite(
                f"trainer.on_nan=rollback: step {step} is not finite, after {MAX_ROLLBACKS} rollbacks with less than "
                f"{FORGET_AFTER} good steps from one to the next; {_REMEDY}"
            )
        self._rollbacks += 1
