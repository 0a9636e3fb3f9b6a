"""What every classification head is to the training loop."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class HeadOutput(NamedTuple):
    loss: Tensor  # scalar, float32: mean over the batch
    scores: Tensor  # (B, num_classes), without any margin, so that accuracy means the same for all heads


class Head(nn.Module, ABC):
    """A loss with one class for each training speaker. Has float32 parameters and computes in float32."""

    @abstractmethod
    def forward(self, embedding: Tensor, label: Tensor, step: int) -> HeadOutput:
        """embedding: (B, embedding_size); label: (B,) class index; step: optimizer step, for a margin that grows."""

    @abstractmethod
    def scores(self, embedding: Tensor) -> Tensor:
        """(B, num_classes) score of each class for embeddings (B, embedding_size) in float32."""

    def margin_at(self, step: int) -> float:
        """The margin at `step`, a pure function; 0 for a head without one."""
        return 0.0
