"""Which implementation of an operation runs: a fused kernel of the device, or plain torch, exact and everywhere."""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import torch

from spkexp.errors import UserError

log = logging.getLogger(__name__)

Backend = Literal["auto", "fused", "torch"]


class Unavailable(Exception):
    """A kernel that this machine cannot run. The message says why and what would help."""


class FusedKernel:
    """An operation's fused kernels, by the type of device; each is loaded when it is first asked for.

    Args:
        name: of the operation, for messages.
        loaders: for a type of device ("cuda", "cpu") what returns the kernel or raises Unavailable.
    """

    def __init__(self, name: str, loaders: Mapping[str, Callable[[], Any]]) -> None:
        self.name = name
        self._loaders = loaders
        self._load = cache(self._load_once)

    def choose(self, backend: Backend, tensor: torch.Tensor) -> Any | None:
        """The fused kernel for the device of `tensor`, or None: torch. Raises UserError if "fused" cannot be had."""
        if backend == "torch":
            return None
        if backend not in ("auto", "fused"):
            raise ValueError(f"{self.name}: backend={backend!r}; it is 'auto', 'fused' or 'torch'")
        if tensor.dtype == torch.float64 or tensor.device.type == "meta" or torch.compiler.is_exporting():
            kernel, reason = None, f"no kernel for {tensor.dtype} on {tensor.device.type}"
        else:
            kernel, reason = self._load(tensor.device.type)
        if kernel is None and backend == "fused":
            raise UserError(f"{self.name}: backend=fused, but {reason}; or use backend=auto, which falls back to torch")
        return kernel

    def _load_once(self, device: str) -> tuple[Any | None, str]:
        try:
            if device not in self._loaders:
                raise Unavailable(f"there is no kernel for {device}")
            kernel = self._loaders[device]()
        except Unavailable as reason:
            log.info("%s on %s: plain torch (%s)", self.name, device, reason)
            return None, str(reason)
        log.info("%s on %s: fused kernel", self.name, device)
        return kernel, ""
