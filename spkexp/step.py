"""The path of a batch, from waveform to loss. What DDP wraps."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spkexp import distributed
from spkexp.augment.augmentation import Augmentation, FeatureAugmentation, Signal
from spkexp.losses.distillation import Distillation
from spkexp.losses.head import Loss
from spkexp.models.speaker import SpeakerModel


class StepOutput(NamedTuple):
    loss: Tensor  # scalar, mean over the batch
    accuracy: Tensor  # scalar, share of the batch that the loss recognises, without margin
    parts: Mapping[str, Tensor] = MappingProxyType({})  # what makes up the loss, for logs: scalars without gradient


class TrainStep(nn.Module):
    """waveform -> augmentation -> features -> augmentation -> embedding -> loss.

    head: the loss, which for most has a class for each speaker. distillation: what is learnt from a teacher beside it.
    """

    def __init__(
        self,
        model: SpeakerModel,
        head: Loss,
        augment_waveform: Augmentation | None,
        augment_features: FeatureAugmentation | None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.model, self.head, self.distillation = model, head, distillation
        self.augment_waveform, self.augment_features = augment_waveform, augment_features

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
        teaching = self.distillation
        taught = teaching.taught(waveform, lengths) if teaching is not None and teaching.clean else None
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            if self.augment_waveform is not None:
                signal = Signal(waveform, lengths, keys, np.arange(len(keys)))
                waveform, lengths, keys, source = self.augment_waveform(signal, iter(material))
                rows = torch.from_numpy(source).to(label.device, non_blocking=True)
                label, taught = label[rows], taught[rows] if taught is not None else None
        if teaching is not None and taught is None:
            taught = teaching.taught(waveform, lengths)
        features, lengths = self.model.extract_features(waveform, lengths)
        if self.augment_features is not None:
            features = self.augment_features(features, lengths, keys)
        embedding = self.model.embed(features, lengths)
        distance = teaching(embedding, taught, self.head.classifier) if teaching is not None else None
        if self.head.needs_pairs:  # each process then has the loss of the whole batch
            embedding, label = distributed.gather_rows(embedding.float()), distributed.gather_rows(label)
        loss, accuracy = self.head(embedding, label, step)
        if teaching is None or distance is None:
            return StepOutput(loss, accuracy)
        parts = {"loss_task": loss.detach(), "loss_distillation": distance.detach()}
        return StepOutput(loss + teaching.weight * distance, accuracy, parts)
