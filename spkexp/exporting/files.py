"""The files of an export, each of which gets its name once it says what torch says."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from spkexp.durable import cause_and_remedy
from spkexp.errors import UserError
from spkexp.exporting.agreement import check
from spkexp.exporting.int8 import quantise
from spkexp.exporting.metadata import describe
from spkexp.exporting.onnx_file import OPSET, OnnxModel, require_onnx, write_onnx
from spkexp.exporting.program import export_program
from spkexp.exporting.program_file import read_program, write_program
from spkexp.models.speaker import SpeakerModel
from spkexp.whole_file import replacing

ONNX, PROGRAM = ".onnx", ".pt2"
_ANY_NUMBER = sys.float_info.max  # 8 bits are not expected to agree; error rates say what they cost


class Exported(NamedTuple):
    """A file, and the largest deviation from torch that its check found."""

    file: Path
    deviation: float


def int8_name(output: Path) -> Path:
    """encoder.int8.onnx beside encoder.onnx."""
    return output.with_suffix(f".int8{output.suffix}")


def check_output(output: Path, int8: bool) -> None:
    """Raise UserError where `output` cannot become a file of either kind, before anything is worked on."""
    if output.suffix not in (ONNX, PROGRAM):
        raise UserError(f"output={output}: expected a name that ends in {ONNX} (ONNX) or {PROGRAM} (torch.export)")
    if output.is_dir():
        raise UserError(f"output={output}: is a folder; name a file")
    if int8 and output.suffix != ONNX:
        raise UserError(f"quantise=int8: onnxruntime quantises, and {output.name} is no ONNX file; name a {ONNX} file")
    if output.suffix == ONNX:
        require_onnx()


def export(model: SpeakerModel, metadata: Mapping[str, str], output: Path, int8: bool) -> list[Exported]:
    """Write `output`, and with `int8` its sibling; model: in evaluation mode, on the CPU. Raises UserError."""
    check_output(output, int8)
    program = export_program(model)
    try:
        with replacing(output) as file:
            if output.suffix == PROGRAM:
                write_program(program, file, metadata)
                return [Exported(output, check(read_program(file), model, output.name))]
            metadata = {**metadata, "opset": str(OPSET)}
            write_onnx(program, file, metadata, describe(metadata))
            whole = Exported(output, check(_runs(file), model, output.name))
            if not int8:
                return [whole]
            rounded = int8_name(output)
            with replacing(rounded) as smaller:
                quantise(file, smaller)
                return [whole, Exported(rounded, check(_runs(smaller), model, rounded.name, tolerance=_ANY_NUMBER))]
    except OSError as error:
        cause, remedy = cause_and_remedy(error)
        raise UserError(f"output={output}: cannot be written: {cause}; {remedy}, or name another file") from error


def _runs(file: Path) -> OnnxModel:
    return OnnxModel(file, torch.get_num_threads())
