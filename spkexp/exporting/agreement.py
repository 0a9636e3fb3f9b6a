"""Whether an exported model says what torch says: on lengths from less than a frame to half a minute."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spkexp.counter import generator
from spkexp.errors import UserError
from spkexp.models.speaker import SpeakerModel

Embed = Callable[[Tensor, Tensor], Tensor]

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 2.0, 5.0, 12.0, 30.0)
_IN_ONE_BATCH = 8  # the shortest ones, each once more beside the others
TOLERANCE = 1e-4
# A change of a waveform's samples, as a part of each, that 16 bits would not show by far; and how often it is tried.
_UNHEARD, _TRIES = 2.0**-20, 4


class Case(NamedTuple):
    """Utterances that are embedded together."""

    waveform: Tensor  # (B, samples), noise also behind the lengths
    lengths: Tensor  # (B,) samples

    def __str__(self) -> str:
        lengths = self.lengths.tolist()
        return f"{lengths[0]} samples" if len(lengths) == 1 else f"a batch of {lengths} samples"


def cases(sample_rate: int) -> list[Case]:
    """Ten utterances alone, and the eight shortest of them as one batch."""
    lengths = [round(seconds * sample_rate) for seconds in SECONDS]
    together = lengths[:_IN_ONE_BATCH]
    return [
        *(Case(_noise(1, length, length), torch.tensor([length])) for length in lengths),
        Case(_noise(len(together), max(together), 0), torch.tensor(together)),
    ]


def _noise(rows: int, samples: int, seed: int) -> Tensor:
    """Noise whose level rises and falls, as that of speech does."""
    random = generator(seed)
    level = 0.1 * (1.1 + torch.sin(torch.arange(samples) / 2000))
    return torch.from_numpy(random.standard_normal((rows, samples))).float() * level


def check(exported: Embed, model: SpeakerModel, what: str, tolerance: float = TOLERANCE) -> float:
    """The largest deviation of `exported` from `model`, as a part of the embedding's largest value.

    Raises UserError that names `what` where it is more than `tolerance`, unless the model itself is as sensitive: what
    takes logarithms of raw filter outputs (RawNet3) makes more than that of the rounding of a value near zero.
    """
    deviations = []
    for case in cases(model.sample_rate):
        with torch.inference_mode():
            expected = model(*case)
        try:
            found = exported(*case)
        except Exception as error:  # onnxruntime and torch raise whatever they like
            raise UserError(f"{what}: fails on {case}: {_first_line(error)}; {_REMEDY}") from error
        deviation = relative_deviation(found, expected)
        if not deviation <= tolerance and not deviation <= _sensitivity(model, case, expected):  # not a number, either
            raise UserError(
                f"{what}: deviates from torch by {deviation:.1e} on {case}, more than {tolerance}; {_REMEDY}"
            )
        deviations.append(deviation)
    return max(deviations)


def _sensitivity(model: SpeakerModel, case: Case, expected: Tensor) -> float:
    """The deviation that changes of the waveform which nobody hears bring about in torch."""
    random = generator(_TRIES)
    deviations = []
    for _ in range(_TRIES):
        change = torch.from_numpy(random.standard_normal(case.waveform.shape)).float() * _UNHEARD
        with torch.inference_mode():
            deviations.append(relative_deviation(model(case.waveform * (1 + change), case.lengths), expected))
    return max(deviations)


_REMEDY = "nothing was written: this is a fault of the export, not of the model"


def relative_deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two batches of embeddings (B, D), of each row as a part of its own largest value."""
    if found.shape != expected.shape:
        return float("inf")
    return float(((found - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)).max())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
