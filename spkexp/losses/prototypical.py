"""Angular prototypical loss."""

import math

import torch
from torch import Tensor, nn

from spkexp.losses.head import unit, without_decay
from spkexp.losses.metric import MetricLoss, mean_where, others
from spkexp.types import Positive


class AngularPrototypical(MetricLoss):
    """Chung et al. 2020 (In defence of metric learning), sec. 2.2: of each speaker the last utterance of the batch is
    the query x_j, and the mean of the others, at the lengths that they have, its centroid c_j.

    Cross-entropy of S_jk = w cos(x_j, c_k) + b over the speakers k, mean over the speakers j that have two utterances
    or more. w and b are learnt; w > 0, for it is kept as log w.
    """

    def __init__(self, initial_w: Positive, initial_b: float) -> None:
        super().__init__()
        self.log_w = without_decay(nn.Parameter(torch.tensor(math.log(initial_w))))
        self.b = without_decay(nn.Parameter(torch.tensor(float(initial_b))))

    def compare(self, embedding: Tensor, same: Tensor) -> Tensor:
        # One scale for all leaves the cosines as they are and keeps sums of huge embeddings finite.
        x = embedding / embedding.detach().abs().amax().clamp(min=1.0)
        last = ~same.triu(1).any(dim=1)
        centroid = unit((same & ~last).to(x.dtype) @ x / same.sum(dim=1, keepdim=True))  # of each row's speaker
        similarity = self.log_w.exp() * (unit(x) @ centroid.T) + self.b
        query = last & others(same).any(dim=1)
        # Of a speaker's columns the query's stands for it; the diagonal stays where there is none, to be finite.
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        log_total = similarity.masked_fill(~(query[None, :] | itself), -torch.inf).logsumexp(dim=1)
        return mean_where(log_total - similarity.diagonal(), query)
