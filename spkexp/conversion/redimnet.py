"""ReDimNet, from its authors' code and from WeSpeaker's."""

import re
from functools import partial
from typing import Any

from spkexp.conversion.family import (
    Architecture,
    Family,
    LeftOut,
    Rule,
    Settings,
    Tensors,
    attentive_pooling,
    count,
    has,
    shape,
    split_context,
)

_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "out": "output"}
# Of the first stage's only input, a softmax of one: not learned.
CONSTANT = LeftOut(r"^backbone\.(stage0\.0\.w|inputs_weights\.0)$", "the weight of the first stage's only input is 1")
_HEADS = 4  # stands in their code alone


def _names(offset: int) -> tuple[Rule, ...]:
    """offset: where the strided convolution stands in a stage; the blocks follow it."""

    def block(part: str) -> Any:
        return lambda match: f"encoder.stages.{match[1]}.blocks.{int(match[2]) - offset - 1}.{part}"

    return (
        (r"^backbone\.stem\.0\.", "encoder.stem."),
        (r"^backbone\.stem\.1\.", "encoder.stem_norm.norm."),
        (r"^backbone\.fin_wght1d\.w$", "encoder.outputs.weight"),
        (r"^backbone\.stage(\d)\.0\.w$", r"encoder.stages.\1.inputs.weight"),
        (rf"^backbone\.stage(\d)\.{offset}\.", r"encoder.stages.\1.pool."),
        (r"^backbone\.stage(\d)\.(\d+)\.conv_block\.", block("")),
        (r"^backbone\.stage(\d)\.(\d+)\.0\.", block("conv.")),
        (r"^backbone\.stage(\d)\.(\d+)\.1\.", block("norm.")),
        (r"^backbone\.stage(\d)\.(\d+)\.3\.", block("pointwise.")),
        (r"^backbone\.stage(\d)\.\d+\.", r"encoder.stages.\1.time."),
        (r"red_dim_conv\.0\.", "reduce."),
        (r"red_dim_conv\.1\.", "norm.norm."),
        (r"exp_dim_conv\.", "expand."),
        (r"tcm\.4\.attention\.(q|k|v|out)_proj\.", lambda match: f"attention.{_PROJECTIONS[match[1]]}."),
        (r"tcm\.4\.layer_norm\.", "attention.norm1."),
        (r"tcm\.4\.final_layer_norm\.", "attention.norm2."),
        (r"tcm\.4\.feed_forward\.intermediate_dense\.", "attention.feed_in."),
        (r"tcm\.4\.feed_forward\.output_dense\.", "attention.feed_out."),
        (r"tcm\.(\d)\.", r"convolutions.\1."),
        (r"dwconvs\.0\.", "conv."),
        (r"pwconv1\.", "pointwise."),
        (r"conv(\d)pw\.", r"pointwise\1."),
        (r"\.bn(\d)\.", r".norm\1."),
        (r"\.se\.squeeze\.", ".gate.squeeze."),
        (r"\.se\.exitation\.", ".gate.excite."),
        (r"^pool\.linear1\.", "pooling.hidden."),
        (r"^pool\.linear2\.", "pooling.scores."),
        (r"^bn\.", "pooling_norm."),
        (r"^(linear|seg_1)\.", "embedding."),
        (r"^bn2\.", "embedding_norm."),
    )


def _architecture(offset: int, tensors: Tensors, settings: Settings) -> Architecture:
    channels = shape(tensors, "backbone.stem.0.weight", 0)
    width = shape(tensors, "pool.linear2.weight", 0)  # channels times frequencies, in every stage
    num_stages = count(tensors, r"backbone\.stage(\d)\.")
    stages = [_stage(tensors, index, offset, width) for index in range(num_stages)]
    strides, blocks, expansions, reductions = ([stage[i] for stage in stages] for i in range(4))
    first = f"backbone.stage0.{offset + 1}.conv_block."
    convnext = has(tensors, rf"^{first}dwconvs")
    gated = has(tensors, rf"^{first}se")
    changes = {
        "encoder.channels": channels,
        "encoder.block_2d": "convnext" if convnext else "resnet_gate" if gated else "resnet",
        "encoder.group_channels": _group_channels(tensors, convnext),
        "encoder.strides": strides,
        "encoder.num_blocks": blocks,
        "encoder.expansions": expansions,
        "encoder.time_reductions": reductions,
        "encoder.time_kernel_sizes": _time_kernel_sizes(tensors, offset, num_stages),
        "encoder.num_heads": _HEADS,
        "embedding_size": shape(tensors, "linear.weight" if "linear.weight" in tensors else "seg_1.weight", 0),
        "pooling_norm": has(tensors, r"^bn\."),
        "embedding_norm": has(tensors, r"^bn2\."),
        "features.num_mels": width // channels,
        "pooling": attentive_pooling(tensors, "pool.linear1.weight", "pool.linear2.weight"),
    }
    return Architecture("redimnet_b2", changes)


def _group_channels(tensors: Tensors, convnext: bool) -> int:
    """Channels in a group of the 3x3 convolutions, of which those with too few channels are one group."""
    endings = ("conv_block.dwconvs.0.weight",) if convnext else ("conv_block.conv1.weight", "conv_block.conv2.weight")
    weights = [tensor for name, tensor in tensors.items() if name.endswith(endings) and tensor.ndim == 4]
    in_groups = [weight.shape[1] for weight in weights if weight.shape[1] < weight.shape[0]]
    return min(in_groups, default=max(weight.shape[0] for weight in weights))


def _stage(tensors: Tensors, index: int, offset: int, width: int) -> tuple[int, int, int, int]:
    """Stride, number of blocks, expansion and what the 1-D block divides the channels by (0: there is none)."""
    place = f"backbone.stage{index}"
    pool = f"{place}.{offset}.weight"
    stride = shape(tensors, pool, 2)
    blocks = count(tensors, rf"{place.replace('.', chr(92) + '.')}\.(\d+)\.conv_block\.")
    inside = next((shape(tensors, name, 0) for name in tensors if _reduces(name, place)), 0)
    return stride, blocks, shape(tensors, pool, 0) // (stride * shape(tensors, pool, 1)), inside and width // inside


def _reduces(name: str, place: str) -> bool:
    return name.startswith(f"{place}.") and name.endswith(".red_dim_conv.0.weight")


def _time_kernel_sizes(tensors: Tensors, offset: int, num_stages: int) -> list[int]:
    """Of the first 1-D block; all have the same."""
    found = [name for name in tensors if name.endswith(".dwconvs.0.weight") and ".tcm." in name]
    place = found[0].partition(".tcm.")[0] if found else ""
    return [shape(tensors, name, 2) for name in found if name.startswith(f"{place}.tcm.")]


def _finish(tensors: Tensors) -> Tensors:
    """The weights of sums have a dimension more there, of size 1, in front."""
    ends = ("inputs.weight", "outputs.weight")
    flat = {name: tensor.squeeze(0) if name.endswith(ends) else tensor for name, tensor in tensors.items()}
    return split_context(flat)


def _finish_wespeaker(tensors: Tensors) -> Tensors:
    """The last of its numbered weights is that of the outputs' sum, the others are the stages'."""
    last = count(tensors, r"encoder\.inputs\.(\d+)$")
    named = {
        re.sub(r"^encoder\.inputs\.(\d+)$", lambda match: _sum_name(int(match[1]), last), name): tensor
        for name, tensor in tensors.items()
    }
    return _finish(named)


def _sum_name(index: int, last: int) -> str:
    return "encoder.outputs.weight" if index == last else f"encoder.stages.{index}.inputs.weight"


_MARKS = (r"^backbone\.stem\.0\.", r"^pool\.linear2\.")
AUTHORS = Family(
    "ReDimNet",
    (*_MARKS, r"^backbone\.fin_wght1d\."),
    _names(2),
    partial(_architecture, 2),
    _finish,
)
WESPEAKER = Family(
    "ReDimNet",
    (*_MARKS, r"^backbone\.inputs_weights\."),
    ((r"^backbone\.inputs_weights\.", "encoder.inputs."), *_names(0)),
    partial(_architecture, 0),
    _finish_wespeaker,
)
