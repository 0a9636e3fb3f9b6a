"""Triplet loss."""

from typing import Literal

import torch
from torch import Tensor

from spkexp.losses.head import unit
from spkexp.losses.metric import MetricLoss, mean_where, others
from spkexp.types import Positive


class Triplet(MetricLoss):
    """[d(a, p) - d(a, n) + margin]_+ over triplets of an anchor, another utterance of its speaker and one of another's.

    Schroff et al. 2015 (FaceNet), eq. 1. d is the squared Euclidean distance of the unit embeddings, 2 - 2 cos, in
    [0, 4]; so is the margin: 0.2 is a tenth in units of the cosine. `mining` chooses the triplets of the batch:
    - all: all of them, and the mean over those that are not 0 yet (Hermans et al. 2017, sec. 2, "batch all");
    - semi-hard: each (a, p), with the nearest n that is further than p (FaceNet, eq. 4), and where all are nearer
      than p with the furthest; mean over the pairs;
    - hardest: each a, with its furthest p and its nearest n (Hermans et al. 2017, eq. 5); mean over the anchors.
    """

    def __init__(self, margin: Positive, mining: Literal["all", "semi-hard", "hardest"]) -> None:
        super().__init__()
        self.margin, self.mining = margin, mining

    def compare(self, embedding: Tensor, same: Tensor) -> Tensor:
        e, pairs = unit(embedding), others(same)
        distance = 2.0 - 2.0 * (e @ e.T)
        if self.mining == "hardest":
            furthest = distance.masked_fill(~pairs, -torch.inf).amax(dim=1)
            nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
            return mean_where(self._hinge(furthest, nearest), pairs.any(dim=1) & ~same.all(dim=1))
        anchor, positive = pairs.nonzero(as_tuple=True)  # (P,) each
        to_positive, to_all, another = distance[anchor, positive][:, None], distance[anchor], ~same[anchor]
        if self.mining == "all":
            terms = self._hinge(to_positive, to_all)
            return mean_where(terms, another & (terms > 0))
        beyond = another & (to_all > to_positive)
        nearest = to_all.masked_fill(~beyond, torch.inf).amin(dim=1)
        furthest = to_all.masked_fill(~another, -torch.inf).amax(dim=1)
        negative = torch.where(beyond.any(dim=1), nearest, furthest)
        return mean_where(self._hinge(to_positive[:, 0], negative), another.any(dim=1))

    def _hinge(self, positive: Tensor, negative: Tensor) -> Tensor:
        return (positive - negative + self.margin).relu()
