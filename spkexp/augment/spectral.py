"""SpecAugment (Park et al. 2019): bands of frequency and spans of time that are masked in the features.

The paper's time warping is left out: it is its weakest part (table 5) and bends what a speaker's voice sounds like.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkexp.augment.augmentation import STREAMS, FeatureAugmentation
from spkexp.counter import Keys, derived_keys
from spkexp.errors import UserError
from spkexp.types import NonNegativeInt, Probability

_CHOSEN = STREAMS - 1
# Keeps the draws apart from the waveform augmentations', whose indices count from 0 like these.
_FEATURES = 1 << 32


class SpecAugment(FeatureAugmentation):
    """Masks on the features of a batch, each row's own; nothing is changed behind a row's last frame.

    A mask's width is any from 0 to its maximum, as likely, and then its place any where it fits. (In the paper's
    half-open interval the last bin would never be masked.) Masks may overlap.

    Args:
        probability: that a row is changed.
        frequency_masks: number of frequency masks (the paper's m_F).
        frequency_width: their maximum width, bins (F); must be below the number of bins.
        time_masks: number of time masks (m_T).
        time_width: their maximum width, frames (T).
        time_share: and the maximum as a share of the row's frames (p).
        value: what masked features become: "zero", which is the row's mean where the features are normalised (LogMel
            with "mean" or "mean_variance"), or "mean", the mean of the row's features over bins and frames.
    """

    def __init__(
        self,
        probability: Probability,
        frequency_masks: NonNegativeInt,
        frequency_width: NonNegativeInt,
        time_masks: NonNegativeInt,
        time_width: NonNegativeInt,
        time_share: Probability,
        value: Literal["zero", "mean"],
    ) -> None:
        super().__init__()
        if 2 * (frequency_masks + time_masks) > _CHOSEN:
            raise ValueError(
                f"frequency_masks and time_masks: together at most {_CHOSEN // 2}, got {frequency_masks + time_masks}"
            )
        self.probability = probability
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share
        self.value = value

    def forward(self, features: Tensor, lengths: Tensor | None, key: Keys) -> Tensor:
        """features: (B, C, T), C bins, T frames; lengths: (B,) frames of each row, on any device; None: all T.

        Returns (B, C, T), equal to `features` (and never the same memory, where a row is changed) outside the masks.
        """
        _, bins, frames = features.shape
        if self.frequency_masks and self.frequency_width >= bins:
            raise UserError(
                f"augment.features.frequency_width: must be below the {bins} bins of the features, "
                f"got {self.frequency_width}"
            )
        device, key = features.device, derived_keys(key, _FEATURES)
        chosen = self.uniform(key, _CHOSEN) < self.probability
        if not chosen.any():
            return features
        # Rows that are not chosen have masks of width zero: shapes do not depend on what is drawn.
        widths = torch.from_numpy(chosen.astype(np.float64)).to(device, non_blocking=True)[:, None]
        places = self._uniforms(key, 0, self.frequency_masks).to(device, non_blocking=True)
        most = torch.full_like(widths, self.frequency_width)
        in_frequency = _masks(places, widths, most, torch.full_like(widths, bins), bins)
        if lengths is None:
            own = torch.full_like(widths, frames)
        else:
            own = lengths.to(device, torch.float64, non_blocking=True)[:, None]
        places = self._uniforms(key, self.frequency_masks, self.time_masks).to(device, non_blocking=True)
        most = (own * self.time_share).floor().clamp(max=self.time_width)
        in_time = _masks(places, widths, most, own, frames)
        masked = in_frequency[:, :, None] | in_time[:, None, :]
        if lengths is not None:
            masked &= torch.arange(frames, device=device) < own[:, :, None]
        if self.value == "zero":
            return features.masked_fill(masked, 0.0)
        valid = features if lengths is None else features * (torch.arange(frames, device=device) < own[:, :, None])
        mean = valid.sum(dim=(1, 2), keepdim=True) / (bins * own[:, :, None]).clamp(min=1.0)
        return torch.where(masked, mean.to(features.dtype), features)

    def _uniforms(self, key: Keys, first: int, masks: int) -> Tensor:
        """(2, B, masks) in [0, 1): for the width and for the place of each mask."""
        drawn: list[NDArray[np.float64]] = [self.uniform(key, 2 * first + i) for i in range(2 * masks)]
        return torch.from_numpy(np.array(drawn).reshape(masks, 2, len(key)).transpose(1, 2, 0))


def _masks(uniform: Tensor, chosen: Tensor, most: Tensor, extent: Tensor, size: int) -> Tensor:
    """(B, size) true inside any of a row's masks; those of (2, B, masks) `uniform` have widths up to `most` (B, 1).

    They lie within the first `extent` (B, 1); `chosen` (B, 1) is zero for rows without masks. All float64.
    """
    width = (uniform[0] * (most + 1)).floor() * chosen
    start = (uniform[1] * (extent - width + 1)).floor()
    position = torch.arange(size, device=uniform.device)[:, None]
    return ((position >= start[:, None]) & (position < (start + width)[:, None])).any(dim=2)
