"""Generalised end-to-end loss."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from spkexp.losses.head import unit, without_decay
from spkexp.losses.metric import MetricLoss, mean_where, others
from spkexp.types import Positive


class GE2E(MetricLoss):
    """Wan et al. 2018. Utterance i of speaker j has the similarity S_ji,k = w cos(e_ji, c_k) + b with each speaker k,
    whose centroid c_k is the mean of its unit embeddings (eq. 5), of its own speaker without e_ji itself (eq. 8, 9).

    - softmax: -S_ji,j + log Σ_k exp S_ji,k (eq. 6)
    - contrast: 1 - σ(S_ji,j) + max_{k≠j} σ(S_ji,k) (eq. 7)
    The mean over the utterances, where eq. 10 has their sum. w and b are learnt; w > 0, for it is kept as log w.
    """

    def __init__(self, variant: Literal["softmax", "contrast"], initial_w: Positive, initial_b: float) -> None:
        super().__init__()
        self.variant = variant
        self.log_w = without_decay(nn.Parameter(torch.tensor(math.log(initial_w))))
        self.b = without_decay(nn.Parameter(torch.tensor(float(initial_b))))

    def compare(self, embedding: Tensor, same: Tensor) -> Tensor:
        e, pairs = unit(embedding), others(same)
        # Cosines do not ask for the length of a centroid, so a sum does for a mean.
        own = (e * unit(pairs.to(e.dtype) @ e)).sum(dim=1)
        centroid = unit(same.to(e.dtype) @ e)  # (B, D): of each row's speaker
        w = self.log_w.exp()
        own, similarity = w * own + self.b, w * (e @ centroid.T) + self.b
        # A speaker has a column for each of its utterances: the first stands for it.
        first = ~same.tril(-1).any(dim=1)
        if self.variant == "softmax":
            every = torch.where(same, own[:, None], similarity).masked_fill(~first, -torch.inf)
            terms = every.logsumexp(dim=1) - own
        else:
            nearest = similarity.masked_fill(same, -torch.inf).amax(dim=1)  # -inf, so σ = 0, where all are of a speaker
            terms = 1.0 - own.sigmoid() + nearest.sigmoid()
        return mean_where(terms, pairs.any(dim=1))
