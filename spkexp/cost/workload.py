"""What is run to be measured: a pass of a model over a batch of full utterances, for real or on paper.

"On paper" is torch's FakeTensorMode: every operation is dispatched with the shapes, types and storages that it would
have, and nothing is computed, so that a batch of any size costs milliseconds and no memory.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from spkexp.models.speaker import SpeakerModel

log = logging.getLogger(__name__)
Precision = Literal["fp32", "bf16"]


class CannotRun(Exception):
    """A pass that there is no figure for; the message says why."""


class OutOfMemory(CannotRun):
    """A pass that the device's memory is too small for."""


@dataclass(frozen=True)
class Workload:
    """`model` on the device where its parameters lie; utterances of `seconds`, none of them padded."""

    model: SpeakerModel
    seconds: float
    precision: Precision

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def samples(self) -> int:
        return max(1, round(self.seconds * self.model.sample_rate))

    def waveform(self, batch: int) -> Tensor:
        """(batch, samples) of noise."""
        return torch.randn(batch, self.samples, device=self.device) * 0.1

    def on_paper(self, batch: int) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters and buffers by name, and a waveform, for `run` to count with.

        Stand-ins, unless the model does what needs values: look at a result, or hand an address to foreign code.
        """
        named: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        if not self._runs_on_paper:
            return named, self.waveform(batch)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        tensors: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in named.items()}
        with mode:
            return tensors, torch.empty(batch, self.samples, device=self.device)

    @cached_property
    def _runs_on_paper(self) -> bool:
        self.__dict__["_runs_on_paper"] = True  # for the attempt
        try:
            # An address asked for is an error here, where it would else be zero and foreign code would write to it.
            with functorch_config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
                for training in (False, True):
                    tensors, waveform = self.on_paper(2)
                    self.run(waveform, training, tensors)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            log.info(
                "counting runs the model, which cannot be traced without: %s",
                (str(error) or type(error).__name__).splitlines()[0],
            )
            return False
        return True

    def run(self, waveform: Tensor, training: bool, tensors: dict[str, Tensor] | None = None) -> None:
        """Forward, and for training the backward pass of a stand-in for the loss: the sum of squares of the embeddings.

        tensors: take the place of the parameters and buffers of the same name. Raises CannotRun.
        """
        self.model.train(training)
        lengths = torch.full((len(waveform),), waveform.shape[1])
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        try:
            with torch.set_grad_enabled(training), cast:
                inputs = (waveform, lengths)
                embedding = self.model(*inputs) if tensors is None else functional_call(self.model, tensors, inputs)
            if training:
                embedding.float().square().sum().backward()
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory("the GPU's memory is too small") from error
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise CannotRun("batch normalisation needs more than one utterance") from error
            raise


@dataclass(frozen=True)
class Call:
    """One call of a module: what went in and came out, and what a probe read before and after."""

    name: str
    module: nn.Module
    inputs: "Extent"
    output: "Extent"
    before: int
    after: int


@dataclass(frozen=True)
class Extent:
    """Bytes of all tensors in an argument list or a result, and the shape of the largest."""

    bytes: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tree: Any) -> "Extent":
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        largest = max(range(len(sizes)), key=sizes.__getitem__, default=None)
        return cls(sum(sizes), () if largest is None else tuple(tensors[largest].shape))


@contextmanager
def module_calls(model: nn.Module, probe: Callable[[], int]) -> Iterator[list[Call]]:
    """The calls of all modules of `model` that are made inside, in the order in which they end."""
    calls: list[Call] = []
    begun: list[int] = []

    def hooks(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            begun.append(probe())

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.append(Call(name, module, Extent.of((args, kwargs)), Extent.of(output), begun.pop(), probe()))

        return before, after

    handles = []
    for name, module in model.named_modules():
        before, after = hooks(name)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
