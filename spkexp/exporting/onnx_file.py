"""Exported models as ONNX files, and as onnxruntime runs them."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from spkexp.errors import UserError
from spkexp.exporting.program import BATCH, EMBEDDING, LENGTHS, SAMPLES, WAVEFORM, quiet

# The least that has GELU, and a DFT whose axis is an input; every onnxruntime since 1.17 reads it.
OPSET = 20
_MOST_BYTES = 2**31 - 2**24  # of a protobuf message, less what is no weight
# Where a node came from, by the names of modules: what is quantised is chosen by it (`int8`), then it is dropped.
SCOPE = "spkexp.scope"
_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"


def require_onnx() -> None:
    """Raise UserError unless the packages of the extra `onnx` are there."""
    try:  # to import them tells more than to find them: a library that they need may be missing
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'spkexp[onnx]' brings it") from error


def write_onnx(program: ExportedProgram, file: Path, metadata: Mapping[str, str], description: str) -> None:
    """Translate `program` and write it. metadata: what the file says of itself. Raises UserError, and OSError."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _MOST_BYTES:
        raise UserError(
            f"the weights are {size / 1e9:.1f} GB, and an ONNX file holds 2 GB at most; output=NAME.pt2 has no limit"
        )
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        translated = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            input_names=[WAVEFORM, LENGTHS],
            output_names=[EMBEDDING],
        )
    assert translated is not None
    model = translated.model
    import onnx_ir

    waveform, lengths = model.graph.inputs
    (embedding,) = model.graph.outputs
    waveform.shape = onnx_ir.Shape([BATCH, SAMPLES])
    lengths.shape = onnx_ir.Shape([BATCH])
    embedding.shape = onnx_ir.Shape([BATCH, metadata["embedding_size"]])
    model.graph.doc_string = description
    model.metadata_props.update(metadata)
    for node in model.graph.all_nodes():
        for value in node.outputs:  # a name that the exporter takes from torch's operations can be one of ours
            if value.name in (WAVEFORM, LENGTHS, EMBEDDING) and value is not embedding:
                value.name = f"{value.name}_inside"
        scopes = node.metadata_props.get(_TORCH_SCOPES)
        node.metadata_props.clear()  # lines of source, with the paths of this machine
        if scopes:
            node.metadata_props[SCOPE] = scopes
    translated.save(file, external_data=False)


class OnnxModel(nn.Module):
    """An ONNX file that stands in for its SpeakerModel wherever embeddings are wanted; it runs on the CPU."""

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.sample_rate = int(self.metadata["sample_rate"])
        self.embedding_size = int(self.metadata["embedding_size"])
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # tells callers of the CPU

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """waveform (B, samples) float32 and lengths (B,) int64 -> (B, embedding_size)."""
        inputs: dict[str, Any] = {WAVEFORM: waveform.numpy(), LENGTHS: lengths.numpy()}
        return torch.from_numpy(self._session.run([EMBEDDING], inputs)[0])
