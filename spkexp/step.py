"""The path of a batch, from waveform to loss. What DDP wraps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spkexp.augment.augmentation import Augmentation, FeatureAugmentation, Signal
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
        augment_waveform: Augmentation | None,
        augment_features: FeatureAugmentation | None,
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
        self,
        waveform: Tensor,
        lengths: Tensor,
        label: Tensor,
        key: Tensor,
        material: Sequence[Tensor],
        step: int,
    ) -> StepOutput:
        """waveform: (B, samples); lengths: (B,) samples; label: (B,) class index.

        Augmentations draw from `key` (B,), which stands for (seed, epoch, item) and lies on the CPU as `lengths` does;
        `material` is what the loader read for them. They may return more rows than they got.
        """
        keys = key.numpy().view(np.uint64)
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            if self.augment_waveform is not None:
                signal = Signal(waveform, lengths, keys, np.arange(len(keys)))
                waveform, lengths, keys, source = self.augment_waveform(signal, iter(material))
                label = label[torch.from_numpy(source).to(label.device, non_blocking=True)]
        features, lengths = self.model.extract_features(waveform, lengths)
        if self.augment_features is not None:
            features = self.augment_features(features, lengths, keys)
        embedding = self.model.embed(features, lengths)
        loss, scores = self.head(embedding, label, step)
        with torch.no_grad():
            accuracy = (scores.argmax(dim=1) == label).float().mean()
        return StepOutput(loss, accuracy)
