"""The path of a batch, from waveform to loss. What DDP wraps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spkexp.losses.head import Head
from spkexp.models.speaker import SpeakerModel


class StepOutput(NamedTuple):
    loss: Tensor  # scalar, mean over the batch
    accuracy: Tensor  # scalar, share of the batch whose class scores highest, without margin


class TrainStep(nn.Module):
    """waveform -> augmentation -> features -> augmentation -> embedding -> head -> loss."""

    def __init__(
        self,
        model: SpeakerModel,
        head: Head,
        augment_waveform: nn.Module | None,
        augment_features: nn.Module | None,
    ) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.augment_waveform, self.augment_features = augment_waveform, augment_features

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer: the parameters that are trained, and apart from them those that do without weight decay.

        A module marks such a parameter by an attribute `_no_weight_decay`, as mamba-ssm does.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        exempt = [parameter for parameter in trained if getattr(parameter, "_no_weight_decay", False)]
        decayed = [parameter for parameter in trained if not getattr(parameter, "_no_weight_decay", False)]
        return [{"params": decayed}, *([{"params": exempt, "weight_decay": 0.0}] if exempt else [])]

    def forward(
        self, waveform: Tensor, lengths: Tensor, label: Tensor, item: Tensor, epoch: int, step: int
    ) -> StepOutput:
        """waveform: (B, samples); lengths: (B,) samples; label: (B,) class index; item: (B,) utterance index.

        Augmentations draw from (seed, epoch, item), so they get both.
        """
        if self.augment_waveform is not None:
            waveform, lengths = self.augment_waveform(waveform, lengths, item, epoch)
        features, lengths = self.model.extract_features(waveform, lengths)
        if self.augment_features is not None:
            features = self.augment_features(features, lengths, item, epoch)
        embedding = self.model.embed(features, lengths)
        loss, scores = self.head(embedding, label, step)
        with torch.no_grad():
            accuracy = (scores.argmax(dim=1) == label).float().mean()
        return StepOutput(loss, accuracy)
