"""How arithmetic is done: TF32, deterministic algorithms, torch.compile. What torch says of it becomes a UserError."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spkexp.errors import ConfigError, UserError
from spkexp.models.speaker import SpeakerModel
from spkexp.sections import Trainer as Settings

# cuBLAS sums in a fixed order with work space of a fixed size; read once, at a process's first matrix product on a GPU.
_WORKSPACE, _FIXED_SIZE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
_EAGER = "set trainer.compile=false"


@contextmanager
def configure(settings: Settings, device: torch.device) -> Iterator[None]:
    """Inside, torch computes as `settings` ask; a run that follows in this process finds everything as it was.

    To be entered before anything is computed on a GPU. Only the environment's CUBLAS_WORKSPACE_CONFIG stays: cuBLAS
    reads it once, and nothing else does. cudnn.benchmark times the algorithms for each new shape and takes the fastest,
    which can be another one in each run: that is why a deterministic run does without.
    """
    backends = torch.backends
    # The parent first: what is below it inherits from it until it has a value of its own.
    cudnn: Any = backends.cudnn  # a module in name only
    precisions: list[Any] = [cudnn, cudnn.conv, cudnn.rnn, backends.cuda.matmul]
    before = [backend.fp32_precision for backend in precisions]
    algorithms = (cudnn.benchmark, cudnn.deterministic)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if settings.deterministic and device.type == "cuda":
        os.environ.setdefault(_WORKSPACE, _FIXED_SIZE)
    try:
        for backend in precisions:
            backend.fp32_precision = "tf32" if settings.tf32 else "ieee"
        cudnn.benchmark, cudnn.deterministic = not settings.deterministic, settings.deterministic
        torch.use_deterministic_algorithms(settings.deterministic)
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic = algorithms
        for backend, precision in zip(precisions, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def varying_lengths() -> Iterator[None]:
    """Inside, cudnn takes its algorithms untimed: where every batch has lengths of its own it would only be timing."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def explain(error: BaseException) -> UserError | None:
    """What the user can do about an error of torch's that trainer.deterministic or trainer.compile brought; else None.

    To be raised `from error`, whose traceback says where it was.
    """
    text = str(error)
    compiler = sys.modules.get("torch._dynamo.exc")  # which takes seconds to import, and without it nothing compiles
    if compiler is not None and isinstance(error, compiler.BackendCompilerFailed):
        reason = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
        return UserError(f"trainer.compile: torch cannot compile the encoder here ({reason}); {_EAGER}")
    if not isinstance(error, RuntimeError):
        return None
    found = _NOT_DETERMINISTIC.search(text)
    if found:
        return UserError(
            f"trainer.deterministic: '{found[1]}'{_where(error)} has no deterministic implementation in torch for this "
            "device; set trainer.deterministic=false, or put another layer or argument in its place "
            "(model.encoder.padding=zeros for reflection, say)"
        )
    if _WORKSPACE in text:
        return UserError(
            f"trainer.deterministic: cuBLAS was in use before the run, or {_WORKSPACE} is set to another value; set it "
            f"before the start: {_WORKSPACE}={_FIXED_SIZE} python -m spkexp.train …"
        )
    return None


def _where(error: BaseException) -> str:
    """' in ECAPA', the innermost module of a network that `error` went through; nothing in a backward pass."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            name = f" in {type(owner).__name__}"
        trace = trace.tb_next
    return name


def compile_encoder(model: SpeakerModel, device: torch.device) -> None:
    """Let torch.compile make code for encoder and pooling of `model`, in place, when each first trains.

    Each size of a batch is compiled for itself, which takes up to minutes; from the ninth on torch says so and goes on
    uncompiled. (For any size at once torch 2.11 fails on images with their channels innermost, and it would choose
    the code by what was seen before, so that a resumed run rounded otherwise.) Uncompiled too are evaluation, where
    every batch has lengths of its own, and padded rows, whose masks make shapes that depend on data. The rest stays
    as it is: augmentation computes with numpy, features with complex numbers, and heads are one matrix product.
    Names of parameters do not change, and a copy of the model is not compiled.

    Raises ConfigError where there is nothing to compile with.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError([f"trainer.compile: needs triton on a GPU, and it is not there; install it, or {_EAGER}"])
    else:
        compiler = os.environ.get("CXX", "g++")  # as torch looks for it
        if shutil.which(compiler) is None:
            raise ConfigError(
                [f"trainer.compile: needs a C++ compiler; there is no '{compiler}': install g++, set CXX, or {_EAGER}"]
            )
    for module in (model.encoder, model.pooling):
        module.compile(dynamic=False)
        compiled = module._compiled_call_impl
        assert compiled is not None
        module._compiled_call_impl = _Choice(module, compiled)


class _Choice:
    """Calls a module as it was compiled where that pays, else as it was written."""

    def __init__(self, module: nn.Module, compiled: Callable[..., Any]) -> None:
        self.module, self.compiled = module, compiled

    def __call__(self, x: Tensor, lengths: Tensor | None) -> Any:
        call = self.compiled if self.module.training and lengths is None else self.module._call_impl
        return call(x, lengths)
