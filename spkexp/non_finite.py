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
            return False
        self._in_a_row += 1
        with torch.no_grad():
            for buffer, kept in zip(self._module.buffers(), self._buffers, strict=True):
                buffer.copy_(kept)
        if self._in_a_row >= MAX_IN_A_ROW:
            raise NotFinite(
                f"trainer.on_nan={self.policy}: the loss or the gradient of {self._in_a_row} steps in a row was not "
                "finite; a lower trainer.optimizer.lr, trainer.precision=fp32 or trainer.clip_norm help most often"
            )
        return True
