"""A model as one graph that serves any number of utterances of any length: torch.export's program."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spkexp.counter import torch_seed
from spkexp.errors import UserError
from spkexp.models.speaker import SpeakerModel

WAVEFORM, LENGTHS, EMBEDDING = "waveform", "lengths", "embedding"  # the inputs of every exported file, and its output
BATCH, SAMPLES = "batch", "samples"  # the names of their free sizes
# What the graph is traced with: any sizes that differ and that no layer has.
_ROWS, _SECONDS = 3, 1.0
# Silence behind each batch, at first and at most: enough for encoders that halve the frames three times, and for any.
_SILENCE, _MOST_SILENCE = 0.1, 10.0
# Their warnings tell those who write exporters how something was translated; whether it was right is checked after.
_CHATTER = ("torch.export", "torch._export", "torch.onnx", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir", "")


class Extended(nn.Module):
    """`model` with silence behind every batch, which leaves its embeddings as they are: padding is masked everywhere.

    A graph is one path through the code. That of a single frame is another one than that of several (torch broadcasts
    it, and pads what is shorter than a layer's kernel), so a graph has so much silence that it never meets the former.
    """

    def __init__(self, model: SpeakerModel, silence: int) -> None:
        """silence: in samples."""
        super().__init__()
        self.model = model
        self.silence = silence

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """waveform (B, samples) in [-1, 1], lengths (B,) in samples -> embeddings (B, embedding_size)."""
        return self.model(F.pad(waveform, (0, self.silence)), lengths)


def export_program(model: SpeakerModel) -> ExportedProgram:
    """The program of `model`, in evaluation mode on the CPU, for any batch of at least one sample. Raises UserError."""
    seconds = _SILENCE
    with quiet(), torch.no_grad():
        while seconds <= _MOST_SILENCE:
            program = _trace(Extended(model, round(seconds * model.sample_rate)))
            if _serves_one_sample(program):
                return program
            seconds *= 2
    raise UserError(
        f"{type(model.encoder).__name__}: its graph does not serve short utterances even with {_MOST_SILENCE:.0f} s of "
        "silence behind them; this encoder cannot be exported"
    )


def _trace(module: Extended) -> ExportedProgram:
    samples = int(_SECONDS * module.model.sample_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(0))
        waveform = torch.randn(_ROWS, samples) * 0.1
    lengths = torch.tensor([samples, samples // 2, samples // 3])
    free = {WAVEFORM: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, LENGTHS: {0: Dim.DYNAMIC}}
    try:
        return torch.export.export(module, (waveform, lengths), dynamic_shapes=free)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # torch raises a dozen kinds, of which some are private
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{type(module.model.encoder).__name__}: torch.export cannot make one graph of it for any batch and any "
            f"length: {reason}"
        ) from error


def _serves_one_sample(program: ExportedProgram) -> bool:
    """Whether the sizes that the program asserts allow for the shortest of all inputs."""
    try:
        program.module()(torch.zeros(1, 1), torch.ones(1, dtype=torch.int64))
    except (AssertionError, RuntimeError):
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Without the chatter of the exporters."""
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
