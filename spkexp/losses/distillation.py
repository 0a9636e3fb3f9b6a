"""Knowledge distillation: a network that is trained already, the teacher, says what to make of each utterance."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spkexp.losses.head import Head
from spkexp.models.speaker import SpeakerModel


class Distillation(nn.Module):
    """How far the student is from what the teacher makes of the same utterances: the mean over the batch of

    - target "embedding": 1 - cos(W e, t) between the student's embedding e and the teacher's t (Wang et al.: Knowledge
      distillation for small foot-print deep speaker embedding, ICASSP 2019). W is a linear map that is learnt where the
      two have other sizes, else the identity;
    - target "scores": T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) between the logits of their classifiers, at the
      temperature T (Hinton, Vinyals, Dean: Distilling the knowledge in a neural network, 2015, section 2). T² keeps
      the gradient's size when T changes.

    The teacher is no submodule: it stays in evaluation mode, has no gradient, and is in no state_dict.

    Args:
        teacher: with features of its own, for the student's sample rate, on the student's device; so are the next two.
        teacher_head: its classifier; None for "embedding".
        columns: (num_classes,) of the student's classes, where each is among the teacher's; None for "embedding".
        embedding_size: of the student.
        weight: of this beside the loss.
        temperature: T.
        clean: the teacher hears an utterance as it is before waveform augmentation.
    """

    def __init__(
        self,
        teacher: SpeakerModel,
        teacher_head: Head | None,
        columns: Tensor | None,
        target: Literal["embedding", "scores"],
        embedding_size: int,
        weight: float,
        temperature: float,
        clean: bool,
    ) -> None:
        super().__init__()
        self.target, self.weight, self.temperature, self.clean = target, weight, temperature, clean
        for part in (teacher, teacher_head):
            if part is not None:
                part.eval().requires_grad_(False)
        self._teacher = teacher, teacher_head, columns  # a tuple registers nothing
        same = target == "scores" or teacher.embedding_size == embedding_size
        self.map = nn.Identity() if same else nn.Linear(embedding_size, teacher.embedding_size, bias=False)

    @torch.no_grad()
    def taught(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """What the teacher says of a batch, waveform (B, samples) and lengths (B,) in samples: embeddings (B, D) or
        logarithms of posteriors (B, num_classes), in the order of the student's classes."""
        teacher, head, columns = self._teacher
        embedding = teacher(waveform, lengths).float()
        if head is None or columns is None:
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            return head.log_probabilities(head.scores(embedding))[:, columns]

    def forward(self, embedding: Tensor, taught: Tensor, head: Head | None) -> Tensor:
        """embedding: the student's (B, embedding_size); taught: of the same rows; head: the student's classifier."""
        with torch.autocast(embedding.device.type, enabled=False):
            if self.target == "embedding" or head is None:
                return 1.0 - F.cosine_similarity(self.map(embedding.float()), taught).mean()
            # Posteriors are as good as logits: what they differ by is the same for all classes.
            theirs = F.log_softmax(taught / self.temperature, dim=1)
            ours = F.log_softmax(head.log_probabilities(head.scores(embedding.float())) / self.temperature, dim=1)
            divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            return self.temperature**2 * divergence
