"""SphereFace2: one binary classification for each class instead of a softmax over them."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from spkexp.losses.head import without_decay
from spkexp.losses.margin import MarginHead, turned
from spkexp.types import NonNegative, NonNegativeRange, Positive


class SphereFace2(MarginHead):
    """λ log(1 + e^(-(r p(θ_y) + b))) + (1 - λ) Σ_{j≠y} log(1 + e^(r n(θ_j) + b)), with a bias b that is learnt.

    Wen et al. 2022; for speakers Han et al. 2023. g(z) = 2 ((z + 1) / 2)^t - 1 spreads the cosines, and the margin is
    - type C: on the adjusted cosine, p = g(cos θ) - m, n = g(cos θ) + m;
    - type A: on the angle, p = g(cos min(π, θ + m)), n = g(cos max(0, θ - m)).
    The first paper's factor 1/r is left out, as in the second: its authors' code multiplies by 50 in turn.

    initial_bias "balanced" is the first paper's: at θ = π/2 the terms of the true class and of all others pull at b
    alike; "zero" is WeSpeaker's.
    """

    def __init__(
        self,
        margin_type: Literal["A", "C"],
        scale: Positive,
        balance: Annotated[float, Gt(0), Lt(1)],
        exponent: Annotated[float, Ge(1)],
        initial_bias: Literal["balanced", "zero"],
        margin: NonNegative,
        initial_margin: NonNegative,
        ramp: Literal["exponential", "linear"],
        ramp_epochs: NonNegativeRange,
        num_classes: int,
        embedding_size: int,
        steps_per_epoch: int,
    ) -> None:
        """scale: r; balance: λ; exponent: t; margin: m, in units of the cosine for C and in radians for A."""
        super().__init__(margin, initial_margin, ramp, ramp_epochs, num_classes, embedding_size, steps_per_epoch)
        self.margin_type, self.scale, self.balance, self.exponent = margin_type, scale, balance, exponent
        bias = self._balanced_bias(num_classes) if initial_bias == "balanced" and num_classes > 1 else 0.0
        self.bias = without_decay(nn.Parameter(torch.tensor(bias)))

    def loss(self, scores: Tensor, label: Tensor, step: int) -> Tensor:
        positive, negative = self.adjusted(scores, self.margin_at(step))
        target = F.one_hot(label, scores.shape[1]).bool()
        terms = torch.where(
            target,
            -self.balance * F.logsigmoid(self.scale * positive + self.bias),
            -(1.0 - self.balance) * F.logsigmoid(-(self.scale * negative + self.bias)),
        )
        return terms.sum(dim=1).mean()

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Each class has a binary classifier, σ(z_j) with z_j = r g(cos θ_j) + b; without a margin p = n = g(cos θ_j).

        Given that exactly one of them is right, P(j) ∝ σ(z_j) Π_{i≠j} (1 - σ(z_i)) ∝ e^{z_j}: a softmax, from which b
        cancels, and with it how λ weighs the two kinds of error.
        """
        return F.log_softmax(self.scale * self._spread(scores), dim=1)

    def adjusted(self, cosine: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """(p, n) of cosines of any shape, each were it the true class's and another's."""
        if self.margin_type == "C":
            spread = self._spread(cosine)
            return spread - margin, spread + margin
        away = torch.where(cosine > -math.cos(margin), turned(cosine, margin), -1.0)
        towards = torch.where(cosine < math.cos(margin), turned(cosine, -margin), 1.0)
        return self._spread(away), self._spread(towards)

    def _spread(self, cosine: Tensor) -> Tensor:
        """g. Rounding can take a cosine below -1, of which a power need not exist."""
        return 2.0 * ((cosine + 1.0) / 2.0).clamp(min=0.0).pow(self.exponent) - 1.0

    def _balanced_bias(self, num_classes: int) -> float:
        """b with λ σ(-(p + b)) = (1 - λ) (K - 1) σ(n + b) for p, n at θ = π/2: a quadratic equation for e^b."""
        right_angle = torch.zeros((), dtype=torch.float64)
        p, n = (self.scale * value.item() for value in self.adjusted(right_angle, self.margin))
        z = self.balance / ((1.0 - self.balance) * (num_classes - 1))
        root = math.sqrt((1.0 - z) ** 2 + 4.0 * z * math.exp(p - n))
        # The two forms of the positive solution: each where it subtracts nothing.
        if z < 1.0:
            return math.log(2.0 * z) - n - math.log(1.0 - z + root)
        return math.log(z - 1.0 + root) - math.log(2.0) - p
