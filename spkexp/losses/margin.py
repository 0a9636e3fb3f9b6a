"""Softmax with a margin on the angle between an embedding and its class: AM-softmax and AAM-softmax."""

import math
from abc import abstractmethod
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from torch import Tensor, nn

from spkexp.losses.head import Head, HeadOutput
from spkexp.types import Fraction, NonNegative, Positive


class _MarginSoftmax(Head):
    """Cross-entropy of s·cos θ_j, where the true class has a margin m subtracted in a way of its own.

    margin: m at the end; it grows exponentially from initial_margin between the epochs ramp_epochs = [from, to],
    as WeSpeaker's margin update does: m(t) = m - (m - m_0) · 10^(-3x) · (1 - x), with x the share of the ramp passed.
    Between the same epochs it is constant when from = to.
    """

    def __init__(
        self,
        scale: Positive,
        margin: NonNegative,
        ramp_epochs: Annotated[list[Annotated[float, Ge(0)]], Len(2, 2)],
        initial_margin: NonNegative,
        label_smoothing: Fraction,
        num_classes: int,
        embedding_size: int,
        steps_per_epoch: int,
    ) -> None:
        super().__init__()
        self.scale, self.margin, self.initial_margin = scale, margin, initial_margin
        self.ramp_steps = [epoch * steps_per_epoch for epoch in ramp_epochs]
        self.label_smoothing = label_smoothing
        # (num_classes, embedding_size) the classes' directions; their lengths never matter.
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_classes, embedding_size)))

    def margin_at(self, step: int) -> float:
        """The margin of `step`, a pure function."""
        start, stop = self.ramp_steps
        if step >= stop:
            return self.margin
        if step <= start:
            return self.initial_margin
        x = (step - start) / (stop - start)
        return self.margin - (self.margin - self.initial_margin) * 10 ** (-3 * x) * (1 - x)

    def forward(self, embedding: Tensor, label: Tensor, step: int) -> HeadOutput:
        """embedding: (B, embedding_size), any length; label: (B,) class index; step: optimizer step."""
        # In float32 whatever autocast says: bf16 has 8 bits, so cosines near 1 would differ by 1/256.
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = self.scores(embedding.float())
            target = cosine.gather(1, label[:, None])
            shifted = self.shift(target, self.margin_at(step))
            logits = self.scale * cosine.scatter(1, label[:, None], shifted)
            loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        return HeadOutput(loss, cosine.detach())

    def scores(self, embedding: Tensor) -> Tensor:
        """(B, num_classes) cosine of embeddings (B, embedding_size) with each class."""
        return F.linear(F.normalize(embedding), F.normalize(self.weight))

    @abstractmethod
    def shift(self, cosine: Tensor, margin: float) -> Tensor:
        """The true class's cosine (any shape, in [-1, 1]) with the margin taken off."""


class AMSoftmax(_MarginSoftmax):
    """Additive margin softmax, cos θ - m: Wang et al. 2018 (CosFace), eq. 4; Wang et al. 2018 (AM-Softmax), eq. 6."""

    def shift(self, cosine: Tensor, margin: float) -> Tensor:
        return cosine - margin


class AAMSoftmax(_MarginSoftmax):
    """Additive angular margin softmax, cos(θ + m): Deng et al. 2019 (ArcFace), eq. 3.

    Past θ = π - m, where cos(θ + m) would rise again, the loss goes on as cos θ - m sin m, as in the authors' code,
    so that it stays monotonic. sin θ = √(1 - cos² θ) is clamped away from 0, where its slope is infinite.
    """

    def shift(self, cosine: Tensor, margin: float) -> Tensor:
        sine = (1.0 - cosine * cosine).clamp(min=1e-7).sqrt()
        added = cosine * math.cos(margin) - sine * math.sin(margin)
        return torch.where(cosine > -math.cos(margin), added, cosine - margin * math.sin(margin))
