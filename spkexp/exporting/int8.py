"""Dynamic quantisation of an ONNX file: weights as 8-bit integers, activations rounded to 8 bits as they come."""

from pathlib import Path
from typing import Any

from spkexp.exporting.onnx_file import SCOPE
from spkexp.exporting.program import quiet

# What onnxruntime has integer kernels for on a CPU; that of convolutions takes unsigned weights alone.
OPERATORS = ("MatMul", "Gemm", "Conv")
# What hears the waveform: Fourier transform, mel filters and learned filterbanks, whose logarithms need every bit.
_EXACT = ("features", "filterbank", "feature_extractor")


def quantise(source: Path, target: Path, operators: tuple[str, ...] = OPERATORS) -> None:
    """Write `source` to `target` with the weights of `operators` as integers, except the front ends'."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    kept = [node.name for node in model.graph.node if _front_end(node)]
    for value in model.graph.value_info:  # sizes of one trace; the quantiser infers its own and wants no others
        value.type.tensor_type.ClearField("shape")
    with quiet():
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=list(operators),
            nodes_to_exclude=kept,
            per_channel=False,
            weight_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def _front_end(node: Any) -> bool:
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPE), "")
    return any(f".{name}" in scopes for name in _EXACT)
