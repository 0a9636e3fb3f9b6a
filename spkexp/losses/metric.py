"""What losses that compare the utterances of a batch with one another share."""

from abc import abstractmethod

import torch
from torch import Tensor

from spkexp.losses.head import Loss, LossOutput, unit


class MetricLoss(Loss):
    """A loss without classes. Utterances whose speaker has no other in the batch are only what others are told from.

    The accuracy is the share of those with another whose nearest other utterance, by cosine, is of their speaker.
    """

    needs_pairs = True

    def measure(self, embedding: Tensor, label: Tensor, step: int) -> LossOutput:
        same = label[:, None] == label[None, :]
        return LossOutput(self.compare(embedding, same), nearest_is_same(embedding.detach(), same))

    @abstractmethod
    def compare(self, embedding: Tensor, same: Tensor) -> Tensor:
        """Scalar loss; embedding: (B, embedding_size); same: (B, B), whether two utterances have one speaker."""


def others(same: Tensor) -> Tensor:
    """(B, B) `same` without the utterance itself."""
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)


def mean_where(terms: Tensor, counted: Tensor) -> Tensor:
    """Mean of those `terms` that are `counted` (of the same shape); 0 where none is."""
    return torch.where(counted, terms, 0.0).sum() / counted.sum().clamp(min=1)


def nearest_is_same(embedding: Tensor, same: Tensor) -> Tensor:
    """Share of the utterances with another of their speaker whose nearest other is one; 0 where there are none."""
    direction, pairs = unit(embedding), others(same)
    itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
    nearest = (direction @ direction.T).masked_fill(itself, -torch.inf).argmax(dim=1)
    return mean_where(same.gather(1, nearest[:, None])[:, 0].float(), pairs.any(dim=1))
