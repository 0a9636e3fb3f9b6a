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

    What runs, and why, is logged once.

    Args:
        name: of the operation, for messages.
        loaders: for a type of device ("cuda", "cpu") what returns the kernel or raises Unavailable.
    """

    def __init__(self, name: str, loaders: Mapping[str, Callable[[], Any]]) -> None:
        self.name = name
        self._loaders = loaders
        self._load = cache(self._load_once)
        self._say = cache(self._log)

    def choose(self, backend: Backend, tensor: torch.Tensor, rather_torch: str = "") -> Any | None:
        """The fused kernel for the device of `tensor`, or None: torch. Raises UserError if "fused" cannot be had.

        rather_torch: why "auto" leaves the kernel alone for this tensor, if it does.
        """
        device, kernel = tensor.device.type, None
        if backend not in ("auto", "fused", "torch"):
            raise ValueError(f"{self.name}: backend={backend!r}; it is 'auto', 'fused' or 'torch'")
        if backend == "torch":
            reason = "backend=torch"
        elif torch.compiler.is_exporting():
            reason = "an exported graph holds no kernel"
        elif tensor.dtype == torch.float64 or device == "meta":
            reason = f"there is no kernel for {tensor.dtype} on {device}"
        elif backend == "auto" and rather_torch:
            reason = rather_torch
        else:
            kernel, reason = self._load(device)
        if kernel is None and backend == "fused":
            raise UserError(f"{self.name}: backend=fused, but {reason}; or use backend=auto, which falls back to torch")
        self._say(device, f"plain torch ({reason})" if kernel is None else "fused kernel")
        return kernel

    def _load_once(self, device: str) -> tuple[Any | None, str]:
        if device not in self._loaders:
            return None, f"there is no kernel for {device}"
        try:
            return self._loaders[device](), ""
        except Unavailable as reason:
            return None, str(reason)

    def _log(self, device: str, what: str) -> None:
        log.info("%s on %s: %s", self.name, device, what)
