"""Augmentations one after another, one of several, or beside the original in a larger batch."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from spkexp.augment.augmentation import STREAMS, Augmentation, Drawing, Material, RowAugmentation, Signal, present
from spkexp.counter import Keys, derived_keys
from spkexp.types import Positive, Probability

D = TypeVar("D", bound=Drawing)


def prepared(augmentation: D) -> D:
    """`augmentation` with every part of it numbered, so that no two draw the same random numbers.

    Raises ValueError for one with parameters or buffers.
    """
    parts = [module for module in augmentation.modules() if isinstance(module, Drawing)]
    for part in reversed(parts):  # the innermost is the one to mend
        if names := [name for name, _ in chain(part.named_parameters(), part.named_buffers())]:
            raise ValueError(
                f"{type(part).__name__}: an augmentation has no parameters or buffers, but this one has "
                f"{', '.join(names)}; make tensors plain attributes, and move them to the waveform's device in change()"
            )
    for index, part in enumerate(parts):
        part.index = index
    return augmentation


class Parts(torch.nn.ModuleList):
    """Augmentations in their order. Their names are free: ModuleDict takes none that is a method's, say "type"."""

    def __iter__(self) -> Iterator[Augmentation]:
        return super().__iter__()  # type: ignore[return-value]


class Sequence(Augmentation):
    """All of `steps`, in their order. As in every mapping of augmentations, None leaves one out."""

    def __init__(self, steps: Mapping[str, Augmentation | None]) -> None:
        super().__init__()
        self.steps = Parts(present("steps", steps, Augmentation).values())

    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        for step in self.steps:
            key = step.read(key, samples, material)
        return key

    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        for step in self.steps:
            signal = step(signal, material)
        return signal


class OneOf(Augmentation):
    """For each row one of `choices`, drawn by `weights`, or with 1 - probability none.

    A choice that has a probability of its own may still leave the row as it is.
    """

    def __init__(
        self, probability: Probability, choices: Mapping[str, Augmentation | None], weights: dict[str, Positive] | None
    ) -> None:
        """weights: one for each of `choices`; None: all the same. Raises ValueError if there is no choice."""
        super().__init__()
        left = present("choices", choices, Augmentation)
        if not left:
            raise ValueError("choices: give at least one augmentation")
        # A choice that is left out may keep its weight.
        if weights is not None and not set(left) <= set(weights) <= set(choices):
            raise ValueError(f"weights must be given for {', '.join(left)}, got {', '.join(weights)}")
        for name, choice in left.items():
            if any(isinstance(part, Parallel) for part in choice.modules()):
                raise ValueError(f"choices.{name}: Parallel makes rows, so it cannot be one of several choices")
        self.probability = probability
        self.choices = Parts(left.values())
        shares = np.array([1.0 if weights is None else weights[name] for name in left])
        self._bounds = np.cumsum(shares / shares.sum()) * probability
        self._bounds[-1] = probability  # whatever the rounding of the sum

    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        drawn = self._drawn(key)
        for number, choice in enumerate(self.choices):
            if len(rows := np.flatnonzero(drawn == number)):
                choice.read(key[rows], samples, material)
        return key

    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        drawn = self._drawn(signal.key)
        waveform, lengths = signal.waveform, signal.lengths
        for number, choice in enumerate(self.choices):
            rows = np.flatnonzero(drawn == number)
            if len(rows) == 0:
                continue
            index = torch.from_numpy(rows)
            where = index.to(waveform.device, non_blocking=True)
            part = Signal(signal.waveform[where], signal.lengths[index], signal.key[rows], signal.source[rows])
            part = choice(part, material)
            waveform = waveform.index_copy(0, where, part.waveform)
            lengths = lengths.index_copy(0, index, part.lengths)
        return signal._replace(waveform=waveform, lengths=lengths)

    def _drawn(self, key: Keys) -> np.ndarray:
        """(B,) index of each row's choice; len(choices) for none."""
        return np.searchsorted(self._bounds, self.uniform(key, RowAugmentation.CHOSEN), side="right")


class Parallel(Augmentation):
    """The rows of every branch, one branch after the other, and before them the original if `keep_original`.

    The batch grows by as many times, as in SpeechBrain's recipes; each branch draws for itself.
    """

    def __init__(self, keep_original: bool, branches: Mapping[str, Augmentation | None]) -> None:
        super().__init__()
        left = present("branches", branches, Augmentation)
        if not keep_original and not left:
            raise ValueError("branches: give at least one augmentation, or the batch would be empty")
        self.keep_original = keep_original
        self.branches = Parts(left.values())

    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        keys = [key] if self.keep_original else []
        keys += [
            branch.read(self._keys(key, number), samples, material) for number, branch in enumerate(self.branches, 1)
        ]
        return np.concatenate(keys)

    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        parts = [signal] if self.keep_original else []
        parts += [
            branch(signal._replace(key=self._keys(signal.key, number)), material)
            for number, branch in enumerate(self.branches, 1)
        ]
        return Signal(
            torch.cat([part.waveform for part in parts]),
            torch.cat([part.lengths for part in parts]),
            np.concatenate([part.key for part in parts]),
            np.concatenate([part.source for part in parts]),
        )

    def _keys(self, key: Keys, number: int) -> Keys:
        """Keys of branch `number`. By the index, too: two Parallels one after the other give no key twice."""
        return derived_keys(derived_keys(key, STREAMS * (1 + self.index)), number)
