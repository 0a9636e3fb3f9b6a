"""What every waveform augmentation is: rows of a batch that are changed, each by its own key alone.

An augmentation works in two places. `read` runs where the audio is read, in a worker process, and brings from disk
what the rows will need (noise, impulse responses): its material. `forward` runs on the model's device and takes the
material in the same order. Both see the same keys, so both come to the same random choices.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spkexp import counter
from spkexp.counter import Keys

STREAMS = 64  # random choices of one augmentation about one item

T = TypeVar("T")


class Signal(NamedTuple):
    """A batch on its way through the augmentations."""

    waveform: Tensor  # (B, samples) float32 in [-1, 1], zero behind a row's length
    lengths: Tensor  # (B,) samples of each row, on the CPU
    key: Keys  # (B,) what a row's random choices derive from
    source: NDArray[np.int64]  # (B,) the row of the loader's batch that this one was made of


@dataclass
class Material:
    """What `read` brought for one batch: tensors in the order in which `forward` takes them."""

    tensors: list[Tensor] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (file, why it could not be used)


class Drawing(nn.Module):
    """What draws for each row. `index` is its place among the augmentations of a run: it keeps their numbers apart.

    It has no parameters and no buffers (`chain.prepared` refuses them): the workers that read the audio have it, too,
    and nothing on an accelerator. A tensor of its own is a plain attribute that `forward` moves.
    """

    index = 0

    def uniform(self, key: Keys, stream: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """One number in [low, high) for each key; `stream`, below STREAMS, names the choice."""
        return low + (high - low) * counter.uniform(key, STREAMS * (1 + self.index) + stream)


class FeatureAugmentation(Drawing, ABC):
    """Base of what changes features."""

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor | None, key: Keys) -> Tensor:
        """features: (B, C, T); lengths: (B,) frames of each row, on any device; None: all T. Returns (B, C, T)."""


class Augmentation(Drawing, ABC):
    """Base of what changes waveforms. `banks`: the recordings that it and its parts draw from (`spkexp.build`)."""

    banks: tuple[Any, ...] = ()

    @abstractmethod
    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        """Add to `material` what rows with these keys need; returns the keys of the rows that will come out."""

    @abstractmethod
    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        """The signal changed; takes from `material` what `read` put there."""


class RowAugmentation(Augmentation):
    """Changes each row for itself, with a probability; rows and samples keep their number.

    A subclass gives `change`, and `fetch` with `num_material` if it needs something from disk.
    """

    CHOSEN = STREAMS - 1  # the stream of the decision whether a row is changed
    num_material = 0  # tensors that `fetch` returns

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        self.probability = probability

    def rows(self, key: Keys) -> NDArray[np.int64]:
        """The rows that are changed."""
        return np.flatnonzero(self.uniform(key, self.CHOSEN) < self.probability)

    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        rows = self.rows(key)
        if self.num_material and len(rows):
            material.tensors += self.fetch(key[rows], samples, material)
        return key

    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        rows = self.rows(signal.key)
        if len(rows) == 0:
            return signal
        own = [next(material) for _ in range(self.num_material)]
        wave, lengths, device = signal.waveform, signal.lengths, signal.waveform.device
        own = [tensor.to(device, non_blocking=True) for tensor in own]
        everything = len(rows) == len(signal.key)
        index = torch.from_numpy(rows)
        where = index.to(device, non_blocking=True)
        changed, new = self.change(
            wave if everything else wave[where], lengths if everything else lengths[index], signal.key[rows], *own
        )
        changed = silence_behind(changed, new)
        if not everything:
            changed, new = wave.index_copy(0, where, changed), lengths.index_copy(0, index, new)
        return signal._replace(waveform=changed, lengths=new)

    def fetch(self, key: Keys, samples: int, material: Material) -> list[Tensor]:
        """`num_material` tensors for rows with these keys, of `samples` samples; bad files go to `material.bad`."""
        raise NotImplementedError

    @abstractmethod
    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        """(waveform (n, samples), lengths (n,)) of the changed rows; never changes its arguments in place.

        What it leaves behind a row's length is set to zero afterwards.
        """


def silence_behind(waveform: Tensor, lengths: Tensor) -> Tensor:
    """`waveform` (n, samples) with zeros behind `lengths` (n,), which lies on the CPU; itself where rows are full."""
    samples = waveform.shape[1]
    if bool((lengths >= samples).all()):
        return waveform
    behind = torch.arange(samples, device=waveform.device) >= lengths.to(waveform.device, non_blocking=True)[:, None]
    return waveform.masked_fill(behind, 0.0)


def column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """`values` (n,) as (n, 1) beside `like`: one number a row."""
    return torch.from_numpy(np.asarray(values)).to(like.device, like.dtype, non_blocking=True)[:, None]


def power(waveform: Tensor, lengths: Tensor) -> Tensor:
    """(n, 1) mean square of each row over its `lengths`; the zeros behind do not count."""
    total = torch.linalg.vector_norm(waveform, dim=1, keepdim=True).square()
    return total / lengths.clamp(min=1).to(total.device, total.dtype, non_blocking=True)[:, None]


def present(name: str, parts: Mapping[str, T | None], kind: type[Any]) -> dict[str, T]:
    """`parts`, the argument `name`, without those that are None: a config leaves a part out by null.

    Raises ValueError for a part that is no `kind`.
    """
    for key, part in parts.items():
        if part is not None and not isinstance(part, kind):
            raise ValueError(f"{name}.{key}: must be {described(kind)}, but {type(part).__name__} is none")
    return {key: part for key, part in parts.items() if part is not None}


def described(kind: type) -> str:
    """A base class or a protocol for an error: its name, and where it says what it asks for."""
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return f"{article} {kind.__name__} ({kind.__module__}.{kind.__name__})"
