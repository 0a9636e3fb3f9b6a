"""CAM++ as 3D-Speaker and WeSpeaker name its tensors."""

from functools import partial

import torch

from spkexp.conversion.family import Architecture, Family, Rule, Settings, Tensors, count, shape

_NAMES: tuple[Rule, ...] = (
    (r"^head\.layer(\d)\.(\d)\.", lambda m: f"encoder.front.blocks.{2 * int(m[1]) - 2 + int(m[2])}."),
    (r"^head\.(conv|bn)1\.", r"encoder.front.first.\1."),
    (r"^head\.(conv|bn)2\.", r"encoder.front.last.\1."),
    (r"(blocks\.\d)\.(conv|bn)1\.", r"\1.first.\2."),
    (r"(blocks\.\d)\.(conv|bn)2\.", r"\1.second.\2."),
    (r"\.shortcut\.0\.", ".skip.conv."),
    (r"\.shortcut\.1\.", ".skip.norm."),
    (r"\.bn\.", ".norm."),
    (r"^xvector\.block(\d)\.tdnnd(\d+)\.", lambda m: f"encoder.blocks.{int(m[1]) - 1}.layers.{int(m[2]) - 1}."),
    (r"^xvector\.transit(\d)\.", lambda m: f"encoder.transitions.{int(m[1]) - 1}."),
    (r"cam_layer\.linear_local\.", "conv."),
    (r"cam_layer\.linear1\.", "squeeze."),
    (r"cam_layer\.linear2\.", "excite."),
    (r"\.linear1\.", ".bottleneck."),
    (r"nonlinear2\.batchnorm\.", "bottleneck_norm."),
    (r"^xvector\.tdnn\.linear\.", "encoder.first."),
    (r"^xvector\.tdnn\.nonlinear\.batchnorm\.", "encoder.first_norm."),
    (r"^xvector\.out_nonlinear\.batchnorm\.", "encoder.norm."),
    (r"^xvector\.dense\.linear\.", "embedding."),
    (r"^xvector\.dense\.nonlinear\.batchnorm\.", "embedding_norm."),
    (r"(transitions\.\d)\.linear\.", r"\1.conv."),
    (r"nonlinear1?\.batchnorm\.", "norm."),
)


def family(variance_floor: float) -> Family:
    """variance_floor: what the toolkit adds to the variances that it pools."""
    marks = (r"^head\.conv1\.", r"^xvector\.block1\.tdnnd1\.cam_layer\.")
    return Family("CAM++", marks, _NAMES, partial(_architecture, variance_floor), _finish)


def _architecture(variance_floor: float, tensors: Tensors, settings: Settings) -> Architecture:
    blocks = count(tensors, r"xvector\.block(\d)\.")
    layer = "xvector.block{}.tdnnd1.cam_layer.linear_local.weight"
    front = shape(tensors, "head.conv1.weight", 0)
    changes = {
        "encoder.front_channels": front,
        "encoder.channels": shape(tensors, "xvector.tdnn.linear.weight", 0),
        "encoder.growth_rate": shape(tensors, layer.format(1), 0),
        "encoder.bottleneck_channels": shape(tensors, layer.format(1), 1),
        "encoder.context_channels": shape(tensors, "xvector.block1.tdnnd1.cam_layer.linear1.weight", 0),
        "encoder.num_layers": [count(tensors, rf"xvector\.block{i}\.tdnnd(\d+)\.") for i in range(1, blocks + 1)],
        "encoder.kernel_sizes": [shape(tensors, layer.format(i), 2) for i in range(1, blocks + 1)],
        "encoder.dilations": [1, 2, 2][:blocks],  # stand in their code alone
        "embedding_size": shape(tensors, "xvector.dense.linear.weight", 0),
        "features.num_mels": 8 * shape(tensors, "xvector.tdnn.linear.weight", 1) // front,
        "pooling.variance_floor": variance_floor,
    }
    return Architecture("campplus", changes)


def _finish(tensors: Tensors) -> Tensors:
    """Their last linear layer has no bias and the normalisation behind it no weight and bias: 0, 1 and 0 in ours."""
    weight = tensors.get("embedding.weight")
    if weight is None:
        return tensors
    zeros, ones = torch.zeros(len(weight)), torch.ones(len(weight))
    return {"embedding.bias": zeros, "embedding_norm.weight": ones, "embedding_norm.bias": zeros.clone()} | tensors
