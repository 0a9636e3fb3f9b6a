"""A moving average of the weights while they are trained (EMA), and weights that take others' place for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """θ' ← d·θ' + (1 - d)·θ after each step: Polyak averaging with exponential weights (Tarvainen and Valpola 2017).

    d grows to `decay` as (1 + n) / (10 + n) over the first n updates, so that the average is not held back by the
    initial weights. It takes in parameters and floating-point buffers (statistics of batch normalisation); integers
    are those of the model. Tensors are the model's own, in their order and on their device.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, current = [], []
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self.tensors[name])
                current.append(tensor.detach())
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averages, current, 1.0 - decay)

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "tensors": self.tensors}

    def load(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        for name, tensor in state["tensors"].items():
            self.tensors[name].copy_(tensor)


@contextmanager
def in_place_of(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Inside, `module` has the values of `tensors`, by the names of its state_dict; yields its own, which come back."""
    own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(dict(tensors))
    try:
        yield own
    finally:
        module.load_state_dict(own)
