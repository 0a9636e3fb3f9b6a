"""Softmax cross-entropy over a linear classifier."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.losses.head import Head
from spkexp.types import Fraction


class Softmax(Head):
    """Cross-entropy over a linear classifier, optionally weighted by class.

    class_weights "inverse_frequency" weights class c by N / (K n_c): n_c of the N training utterances are of
    class c, K classes. The weights average 1 over the training utterances, and the loss is the mean of the weighted
    terms over the batch, so that parts of a batch (processes, accumulation) average to the loss of the whole.
    label_smoothing as in Szegedy et al. 2016, sec. 7.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        class_weights: Literal["none", "inverse_frequency"],
        label_smoothing: Fraction,
        num_classes: int,
        embedding_size: int,
        class_counts: Tensor,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.linear = nn.Linear(embedding_size, num_classes)
        weight = None
        if class_weights == "inverse_frequency":
            weight = class_counts.sum() / (num_classes * class_counts.clamp(min=1).float())
        self.register_buffer("class_weight", weight, persistent=False)

    def scores(self, embedding: Tensor) -> Tensor:
        """(B, num_classes) logits of embeddings (B, embedding_size)."""
        return self.linear(embedding)

    def loss(self, scores: Tensor, label: Tensor, step: int) -> Tensor:
        terms = F.cross_entropy(scores, label, label_smoothing=self.label_smoothing, reduction="none")
        if self.class_weight is not None:
            terms = terms * self.class_weight[label]
        return terms.mean()

    def class_tensors(self) -> frozenset[str]:
        return frozenset(("linear.weight", "linear.bias"))
