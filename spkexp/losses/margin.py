"""Softmax with a margin on the angle between an embedding and its class: AM-softmax and AAM-softmax."""

import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.losses.head import Head, unit
from spkexp.types import Fraction, NonNegative, NonNegativeRange, Positive


class MarginHead(Head):
    """Scores are cosines between the embedding and a direction for each class; the margin is a function of the step.

    It grows from initial_margin m_0 to margin m between the epochs ramp_epochs = [from, to]; from = to is a jump.
    With x the share of the ramp that has passed it is, by `ramp`,
    - exponential: m - (m - m_0) · 10^(-3x), WeSpeaker's: most of it at the beginning, the last thousandth at the end;
    - linear: m_0 + (m - m_0) · x.
    """

    def __init__(
        self,
        margin: NonNegative,
        initial_margin: NonNegative,
        ramp: Literal["exponential", "linear"],
        ramp_epochs: NonNegativeRange,
        num_classes: int,
        embedding_size: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.margin, self.initial_margin, self.ramp = margin, initial_margin, ramp
        self.ramp_steps = [epoch * steps_per_epoch for epoch in ramp_epochs]
        # (num_classes, embedding_size) the classes' directions; their lengths never matter.
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_classes, embedding_size)))

    def margin_at(self, step: int) -> float:
        start, stop = self.ramp_steps
        if step >= stop:
            return self.margin
        if step <= start:
            return self.initial_margin
        x = (step - start) / (stop - start)
        passed = x if self.ramp == "linear" else 1.0 - 10 ** (-3 * x)
        return self.initial_margin + (self.margin - self.initial_margin) * passed

    def scores(self, embedding: Tensor) -> Tensor:
        """(B, num_classes) cosine of embeddings (B, embedding_size) with each class."""
        return F.linear(unit(embedding), F.normalize(self.weight))

    def class_tensors(self) -> frozenset[str]:
        return frozenset(("weight",))


class MarginSoftmax(MarginHead):
    """Cross-entropy of s·cos θ_j, where the true class has a margin m subtracted in a way of its own."""

    def __init__(
        self,
        scale: Positive,
        margin: NonNegative,
        initial_margin: NonNegative,
        ramp: Literal["exponential", "linear"],
        ramp_epochs: NonNegativeRange,
        label_smoothing: Fraction,
        num_classes: int,
        embedding_size: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__(margin, initial_margin, ramp, ramp_epochs, num_classes, embedding_size, steps_per_epoch)
        self.scale, self.label_smoothing = scale, label_smoothing

    def loss(self, scores: Tensor, label: Tensor, step: int) -> Tensor:
        margin, target = self.margin_at(step), label[:, None]
        shifted = self.shift(scores.gather(1, target), margin)
        logits = self.scale * self.shift_others(scores, target, margin).scatter(1, target, shifted)
        return F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Of s·cos θ: the loss with a margin of 0 is their cross-entropy (Wang et al. 2018, CosFace, eq. 3)."""
        return F.log_softmax(self.scale * scores, dim=1)

    @abstractmethod
    def shift(self, cosine: Tensor, margin: float) -> Tensor:
        """The true class's cosine (any shape, in [-1, 1]) with the margin taken off."""

    def shift_others(self, cosine: Tensor, target: Tensor, margin: float) -> Tensor:
        """cosine (B, num_classes) with what the other classes get; the true class, target (B, 1), is replaced later."""
        return cosine


class AMSoftmax(MarginSoftmax):
    """Additive margin softmax, cos θ - m: Wang et al. 2018 (CosFace), eq. 4; Wang et al. 2018 (AM-Softmax), eq. 6."""

    def shift(self, cosine: Tensor, margin: float) -> Tensor:
        return cosine - margin


class AAMSoftmax(MarginSoftmax):
    """Additive angular margin softmax, cos(θ + m): Deng et al. 2019 (ArcFace), eq. 3.

    Past θ = π - m, where cos(θ + m) would rise again, the loss goes on as cos θ - m sin m, as in the authors' code,
    so that it stays monotonic.
    """

    def shift(self, cosine: Tensor, margin: float) -> Tensor:
        added = turned(cosine, margin)
        return torch.where(cosine > -math.cos(margin), added, cosine - margin * math.sin(margin))


def turned(cosine: Tensor, angle: float) -> Tensor:
    """cos(θ + angle) of cos θ, in radians. sin θ is clamped away from 0, where its slope is infinite."""
    sine = (1.0 - cosine * cosine).clamp(min=1e-7).sqrt()
    return cosine * math.cos(angle) - sine * math.sin(angle)
