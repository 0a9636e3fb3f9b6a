"""Exported models as files of torch.export, which torch loads without spkexp."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from spkexp.exporting.metadata import as_json
from spkexp.exporting.program import quiet

METADATA = "spkexp.json"  # in the file, beside the program


def write_program(program: ExportedProgram, file: Path, metadata: Mapping[str, str]) -> None:
    """metadata: what the file says of itself. Raises OSError."""
    with quiet(), file.open("wb") as stream:
        torch.export.save(program, stream, extra_files={METADATA: as_json(metadata)})


def read_program(file: Path) -> nn.Module:
    """What `write_program` wrote, as a module (waveform, lengths) -> embedding."""
    with quiet(), file.open("rb") as stream:
        return torch.export.load(stream).module()
