"""AAM-softmax for noisy labels and for speakers that sound alike: sub-centres and the inter-top-k penalty."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.losses.head import unit
from spkexp.losses.margin import AAMSoftmax, turned
from spkexp.types import Fraction, NonNegative, NonNegativeInt, NonNegativeRange, Positive, PositiveInt


class SubcenterAAM(AAMSoftmax):
    """Each class has sub_centers = K directions, and an embedding's cosine with it is that of the nearest.

    Deng et al. 2020 (Sub-center ArcFace), eq. 3. With K = 1 it is AAM-softmax.
    """

    def __init__(
        self,
        sub_centers: PositiveInt,
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
        super().__init__(
            scale, margin, initial_margin, ramp, ramp_epochs, label_smoothing,
            num_classes, embedding_size, steps_per_epoch,
        )  # fmt: skip
        # (num_classes, K, embedding_size)
        directions = nn.init.xavier_normal_(torch.empty(num_classes * sub_centers, embedding_size))
        self.weight = nn.Parameter(directions.view(num_classes, sub_centers, embedding_size))

    def scores(self, embedding: Tensor) -> Tensor:
        """(B, num_classes) cosine of embeddings (B, embedding_size) with each class's nearest sub-centre."""
        classes, sub_centers, _ = self.weight.shape
        cosine = F.linear(unit(embedding), F.normalize(self.weight, dim=-1).flatten(0, 1))
        return cosine.view(-1, classes, sub_centers).amax(dim=-1)


class InterTopKAAM(SubcenterAAM):
    """AAM-softmax that also turns the top_k other classes nearest to an embedding towards it, by the angle `penalty`.

    Their cosines become cos(θ - m'): Zhao et al. 2022 (Inter-topk penalty), eq. 6 and 7; with sub-centres, as
    WeSpeaker combines them. m' is `penalty` times the share of the margin that has been reached.
    """

    def __init__(
        self,
        top_k: NonNegativeInt,
        penalty: NonNegative,
        sub_centers: PositiveInt,
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
        """penalty: m' in radians. Raises ValueError where there are not so many other classes."""
        super().__init__(
            sub_centers, scale, margin, initial_margin, ramp, ramp_epochs, label_smoothing,
            num_classes, embedding_size, steps_per_epoch,
        )  # fmt: skip
        if top_k >= num_classes:
            raise ValueError(f"top_k={top_k}: of {num_classes} classes {num_classes - 1} are others; choose fewer")
        self.top_k, self.penalty = top_k, penalty

    def penalty_at(self, margin: float) -> float:
        """m' where the margin is `margin`."""
        return self.penalty * (margin / self.margin if self.margin > 0 else 1.0)

    def shift_others(self, cosine: Tensor, target: Tensor, margin: float) -> Tensor:
        nearest = cosine.detach().scatter(1, target, -torch.inf).topk(self.top_k, dim=1).indices
        return cosine.scatter(1, nearest, turned(cosine.gather(1, nearest), -self.penalty_at(margin)))
