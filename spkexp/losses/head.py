"""What every loss, and every classification head, is to the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LossOutput(NamedTuple):
    loss: Tensor  # scalar, float32: mean over the batch
    accuracy: Tensor  # scalar: share of the batch that is recognised, without any margin; carries no gradient


class Loss(nn.Module, ABC):
    """Judges embeddings by their labels. Has float32 parameters and computes in float32.

    needs_pairs: whether it compares the utterances of a batch with one another. It then gets those of all processes,
    in the order of the batch, and the sampler must give several of a speaker. With trainer.accumulate the batch is
    the part that is worked through at once.
    """

    needs_pairs = False

    def forward(self, embedding: Tensor, label: Tensor, step: int) -> LossOutput:
        """embedding: (B, embedding_size), any length; label: (B,) class index; step: optimizer step, for margins."""
        # In float32 whatever autocast says: bf16 has 8 bits, so cosines near 1 would differ by 1/256.
        with torch.autocast(embedding.device.type, enabled=False):
            return self.measure(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), label, step)

    @abstractmethod
    def measure(self, embedding: Tensor, label: Tensor, step: int) -> LossOutput:
        """`forward` outside of autocast; embedding: (B, embedding_size), float32 or float64."""

    @property
    def classifier(self) -> Optional["Head"]:
        """The part of it that tells classes apart; None for a loss without classes."""
        return None

    def margin_at(self, step: int) -> float:
        """The margin at `step`, a pure function; 0 for a loss without one."""
        return 0.0

    def class_tensors(self) -> frozenset[str]:
        """Names of the tensors of its state that have one row (of dim 0) for each class."""
        return frozenset()

    def take(self, tensors: Mapping[str, Tensor], own: Tensor, theirs: Tensor) -> list[str]:
        """Copy what fits of another loss's state; returns the names of its own tensors for which nothing did.

        own, theirs: (N,) classes here and there that are the same. Of tensors with one row for each class only these
        rows are taken, all others whole.
        """
        left = []
        for name, tensor in self.state_dict().items():
            other, by_row = tensors.get(name), name in self.class_tensors()
            if other is None or other.shape[by_row:] != tensor.shape[by_row:]:
                left.append(name)
            elif by_row:
                tensor[own.to(tensor.device)] = other[theirs.to(other.device)].to(tensor)
            else:
                tensor.copy_(other)
        return left


class Head(Loss):
    """A loss with one class for each training speaker."""

    def measure(self, embedding: Tensor, label: Tensor, step: int) -> LossOutput:
        scores = self.scores(embedding)
        return LossOutput(self.loss(scores, label, step), (scores.detach().argmax(dim=1) == label).float().mean())

    @abstractmethod
    def scores(self, embedding: Tensor) -> Tensor:
        """(B, num_classes) score of each class for embeddings (B, embedding_size) in float32, without any margin."""

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """(B, K) natural logarithm of the probability of each class, given that it is one of the K.

        scores: (B, K), those of all classes or of some.

        Softmax, whose cross-entropy estimates the classes' posteriors (Bridle 1990), of what the loss takes a softmax
        of, without any margin: here of the scores. A head whose scores are something else says so.
        """
        return F.log_softmax(scores, dim=1)

    @abstractmethod
    def loss(self, scores: Tensor, label: Tensor, step: int) -> Tensor:
        """Scalar loss of `scores` (B, num_classes), mean over the batch; label: (B,) class index."""

    @property
    def classifier(self) -> "Head":
        return self


def unit(x: Tensor) -> Tensor:
    """x (…, D) at length 1; 0 stays 0. In float32 the squares of entries from 1e19 on would overflow: scaled first."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    return F.normalize(x / largest.clamp(min=1.0), dim=-1)


def without_decay(parameter: nn.Parameter) -> nn.Parameter:
    """`parameter`, marked as one that weight decay must not pull towards 0."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]  # the mark that parameter groups go by
    return parameter
