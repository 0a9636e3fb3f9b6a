"""Every loss, built small, and what is asked of all of them."""

from collections.abc import Callable

import torch

from spkexp.losses.combined import Combined
from spkexp.losses.contrastive import SupervisedContrastive
from spkexp.losses.ge2e import GE2E
from spkexp.losses.head import Loss
from spkexp.losses.margin import AAMSoftmax, AMSoftmax
from spkexp.losses.prototypical import AngularPrototypical
from spkexp.losses.softmax import Softmax
from spkexp.losses.sphereface2 import SphereFace2
from spkexp.losses.subcenter import InterTopKAAM, SubcenterAAM
from spkexp.losses.triplet import Triplet

CLASSES, SIZE, BATCH = 7, 5, 6
RAMP = {"margin": 0.2, "initial_margin": 0.0, "ramp": "exponential", "ramp_epochs": [0, 0]}
RUN_TIME = {"num_classes": CLASSES, "embedding_size": SIZE, "steps_per_epoch": 10}
SOFTMAX = {"scale": 30.0, **RAMP, "label_smoothing": 0.0}
INTER_TOP_K = {"top_k": 2, "penalty": 0.06, "sub_centers": 3, **SOFTMAX}
SPHEREFACE2 = {"margin_type": "C", "scale": 32.0, "balance": 0.7, "exponent": 3.0, "initial_bias": "zero", **RAMP}


def margin_head(kind: type, **changes: object) -> AAMSoftmax | AMSoftmax:
    return kind(**SOFTMAX | RUN_TIME | changes)


def sub_centers(count: int = 3, **changes: object) -> SubcenterAAM:
    return SubcenterAAM(sub_centers=count, **SOFTMAX | RUN_TIME | changes)


def inter_top_k(**changes: object) -> InterTopKAAM:
    return InterTopKAAM(**INTER_TOP_K | RUN_TIME | changes)


def sphereface2(**changes: object) -> SphereFace2:
    return SphereFace2(**SPHEREFACE2 | RUN_TIME | changes)


def softmax() -> Softmax:
    counts = torch.arange(1, CLASSES + 1)
    return Softmax("inverse_frequency", 0.1, num_classes=CLASSES, embedding_size=SIZE, class_counts=counts)


METRIC: dict[str, Callable[[], Loss]] = {
    "ge2e-softmax": lambda: GE2E("softmax", 10.0, -5.0),
    "ge2e-contrast": lambda: GE2E("contrast", 10.0, -5.0),
    "angular-prototypical": lambda: AngularPrototypical(10.0, -5.0),
    "triplet-all": lambda: Triplet(0.2, "all"),
    "triplet-semi-hard": lambda: Triplet(0.2, "semi-hard"),
    "triplet-hardest": lambda: Triplet(0.2, "hardest"),
    "supervised-contrastive": lambda: SupervisedContrastive(0.07),
}
HEADS: dict[str, Callable[[], Loss]] = {
    "softmax": softmax,
    "am": lambda: margin_head(AMSoftmax),
    "aam": lambda: margin_head(AAMSoftmax),
    "aam-smoothed": lambda: margin_head(AAMSoftmax, label_smoothing=0.1),
    "sub-centers": sub_centers,
    "inter-top-k": inter_top_k,
    "sphereface2-C": sphereface2,
    "sphereface2-A": lambda: sphereface2(margin_type="A", exponent=2.5, initial_bias="balanced"),
}
EVERY: dict[str, Callable[[], Loss]] = {
    **HEADS,
    **METRIC,
    "combined": lambda: Combined(
        {"aam": margin_head(AAMSoftmax), "ge2e": GE2E("softmax", 10.0, -5.0)}, {"aam": 1.0, "ge2e": 0.1}
    ),
}


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of speakers drawn at random, as a classification head meets them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, SIZE, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)


def grouped(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(9, SIZE) embeddings of speakers 4 (three), 1 (two), 2 (three) and 6 (one), out of order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, SIZE, generator=generator, dtype=torch.float64), torch.tensor([4, 1, 4, 2, 6, 2, 1, 4, 2])
