"""Faults that a run meets in the middle of a step: an augmentation from outside that does harm instead of good.

    augment.waveform={_target_: tests.faults.injected.Kill, at: [0, 2, 5], rank: 1, once: FILE}

It works in the training process itself, when the batch with a certain utterance comes along.
"""

import os
import signal
import time
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from spkexp.augment.augmentation import Augmentation, Material, Signal
from spkexp.counter import Keys, item_keys


class Fault(Augmentation):
    """at: [seed, epoch, item] of the utterance; a sampler that draws each once an epoch makes that a certain step.

    rank: the process that it happens in. once: a file that is made when it happens, and while it is there it does not;
    null: every time.
    """

    def __init__(self, at: list[int], rank: int, once: str | None) -> None:
        super().__init__()
        seed, epoch, item = at
        self.key = item_keys(seed, epoch, np.array([item]))[0]
        self.rank, self.once = rank, once

    def read(self, key: Keys, samples: int, material: Material) -> Keys:
        return key

    def forward(self, signal: Signal, material: Iterator[Tensor]) -> Signal:
        mine = self.rank == int(os.environ.get("RANK", "0"))
        if not mine or self.key not in signal.key or (self.once is not None and Path(self.once).exists()):
            return signal
        if self.once is not None:
            Path(self.once).touch()
        return self.strike(signal)

    @abstractmethod
    def strike(self, signal: Signal) -> Signal:
        """What happens."""


class Raise(Fault):
    def strike(self, signal: Signal) -> Signal:
        raise RuntimeError("an injected error")


class Kill(Fault):
    def strike(self, signal_: Signal) -> Signal:
        os.kill(os.getpid(), signal.SIGKILL)
        return signal_


class Hang(Fault):
    def strike(self, signal: Signal) -> Signal:
        time.sleep(3600)
        return signal


class NaN(Fault):
    """The utterance itself is not a number from then on."""

    def strike(self, signal: Signal) -> Signal:
        waveform = signal.waveform.clone()
        waveform[signal.key == self.key] = float("nan")
        return signal._replace(waveform=waveform)
