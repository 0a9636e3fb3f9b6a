"""Supervised contrastive loss."""

import torch
from torch import Tensor

from spkexp.losses.head import unit
from spkexp.losses.metric import MetricLoss, mean_where, others
from spkexp.types import Positive


class SupervisedContrastive(MetricLoss):
    """Khosla et al. 2020, L_out (eq. 2): for each utterance i with others P(i) of its speaker
    -1/|P(i)| Σ_{p∈P(i)} log( exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ) ), z the unit embeddings, τ the temperature.

    The mean over the utterances, where eq. 2 has their sum.
    """

    def __init__(self, temperature: Positive) -> None:
        super().__init__()
        self.temperature = temperature

    def compare(self, embedding: Tensor, same: Tensor) -> Tensor:
        z, pairs = unit(embedding), others(same)
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        similarity = z @ z.T / self.temperature
        # Not -inf: a batch of one has nothing else to sum.
        log_total = similarity.masked_fill(itself, torch.finfo(z.dtype).min).logsumexp(dim=1, keepdim=True)
        count = pairs.sum(dim=1)
        terms = torch.where(pairs, log_total - similarity, 0.0).sum(dim=1) / count.clamp(min=1)
        return mean_where(terms, count > 0)
