"""ECAPA-TDNN in the two forms that are about: WeSpeaker's, and SpeechBrain's, which 3D-Speaker took over.

They are not a rename of each other: of the groups of a Res2 block WeSpeaker passes the last through and SpeechBrain the
first, as ours; and SpeechBrain has batch normalisation behind the aggregation and in the attention.
"""

from spkexp.conversion.family import (
    Architecture,
    Family,
    Rule,
    Settings,
    Tensors,
    attentive_pooling,
    count,
    has,
    shape,
    split_context,
)

_OF_WESPEAKER: tuple[Rule, ...] = (
    (r"^layer1\.(conv|bn)\.", r"encoder.first.\1."),
    (r"^layer(\d)\.se_res2block\.", lambda match: f"encoder.blocks.{int(match[1]) - 2}."),
    (r"(blocks\.\d)\.0\.", r"\1.before."),
    (r"(blocks\.\d)\.1\.convs\.(\d+)\.", r"\1.mixer.convolutions.\2.conv."),
    (r"(blocks\.\d)\.1\.bns\.(\d+)\.", r"\1.mixer.convolutions.\2.norm."),
    (r"(blocks\.\d)\.2\.", r"\1.after."),
    (r"(blocks\.\d)\.3\.linear1\.", r"\1.excitation.squeeze."),
    (r"(blocks\.\d)\.3\.linear2\.", r"\1.excitation.excite."),
    (r"\.bn\.", ".norm."),
    (r"^conv\.", "encoder.aggregation.conv."),
    (r"^pool\.linear1\.", "pooling.hidden."),
    (r"^pool\.linear2\.", "pooling.scores."),
    (r"^bn\.", "pooling_norm."),
    (r"^linear\.", "embedding."),
    (r"^bn2\.", "embedding_norm."),
)
_OF_SPEECHBRAIN: tuple[Rule, ...] = (
    (r"\.conv\.conv\.", ".conv."),
    (r"\.norm\.norm\.", ".norm."),
    (r"^blocks\.0\.", "encoder.first."),
    (r"^blocks\.(\d+)\.", lambda match: f"encoder.blocks.{int(match[1]) - 1}."),
    (r"\.tdnn1\.", ".before."),
    (r"\.tdnn2\.", ".after."),
    (r"\.res2net_block\.blocks\.", ".mixer.convolutions."),
    (r"\.se_block\.conv1\.conv\.", ".excitation.squeeze."),
    (r"\.se_block\.conv2\.conv\.", ".excitation.excite."),
    (r"^mfa\.", "encoder.aggregation."),
    (r"^asp\.tdnn\.conv\.", "pooling.hidden."),
    (r"^asp\.tdnn\.norm\.", "pooling.norm."),
    (r"^asp\.conv\.", "pooling.scores."),
    (r"^asp_bn\.norm\.", "pooling_norm."),
    (r"^fc\.conv\.", "embedding."),
)


def _architecture_of_wespeaker(tensors: Tensors, settings: Settings) -> Architecture:
    blocks = range(2, 2 + count(tensors, r"layer(\d)\.se_res2block\."))
    changes = {
        "encoder.channels": shape(tensors, "layer1.conv.weight", 0),
        "encoder.kernel_sizes": [
            shape(tensors, "layer1.conv.weight", 2),
            *(shape(tensors, f"layer{i}.se_res2block.1.convs.0.weight", 2) for i in blocks),
        ],
        "encoder.dilations": [1, *blocks],  # stand in their code alone
        "encoder.res2net_scale": 1 + count(tensors, r"layer2\.se_res2block\.1\.convs\.(\d+)\."),
        "encoder.se_channels": shape(tensors, "layer2.se_res2block.3.linear1.weight", 0),
        "encoder.aggregation_channels": shape(tensors, "conv.weight", 0),
        "embedding_size": shape(tensors, "linear.weight", 0),
        "embedding_norm": has(tensors, r"^bn2\."),
        "features.num_mels": shape(tensors, "layer1.conv.weight", 1),
        "pooling": attentive_pooling(tensors, "pool.linear1.weight", "pool.linear2.weight"),
    }
    return Architecture("ecapa", changes)


def _finish_wespeaker(tensors: Tensors) -> Tensors:
    """The group of channels that a Res2 block passes unchanged is their last and our first."""
    rolled = dict(tensors)
    for name, tensor in tensors.items():
        group = tensors.get(name.split(".before.")[0].split(".after.")[0] + ".mixer.convolutions.0.conv.bias")
        if group is None or not tensor.ndim:
            continue
        if ".before." in name:
            rolled[name] = tensor.roll(len(group), dims=0)
        elif name.endswith(".after.conv.weight"):
            rolled[name] = tensor.roll(len(group), dims=1)
    return split_context(rolled)


def _architecture_of_speechbrain(tensors: Tensors, settings: Settings) -> Architecture:
    blocks = range(1, count(tensors, r"blocks\.(\d+)\."))
    dilations = settings.get("dilations") or [1, *(i + 1 for i in blocks)]
    pooling = attentive_pooling(
        tensors, "asp.tdnn.conv.conv.weight", "asp.conv.conv.weight",
        context_correction=0, attention_norm=True, variance_floor=1e-12,
    )  # fmt: skip
    changes = {
        "encoder.channels": shape(tensors, "blocks.0.conv.conv.weight", 0),
        "encoder.kernel_sizes": [
            shape(tensors, "blocks.0.conv.conv.weight", 2),
            *(shape(tensors, f"blocks.{i}.res2net_block.blocks.0.conv.conv.weight", 2) for i in blocks),
        ],
        "encoder.dilations": list(dilations)[: len(blocks) + 1],
        "encoder.res2net_scale": 1 + count(tensors, r"blocks\.1\.res2net_block\.blocks\.(\d+)\."),
        "encoder.se_channels": shape(tensors, "blocks.1.se_block.conv1.conv.weight", 0),
        "encoder.aggregation_channels": shape(tensors, "mfa.conv.conv.weight", 0),
        "encoder.aggregation_norm": True,
        "encoder.padding": "reflect",
        "embedding_size": shape(tensors, "fc.conv.weight", 0),
        "features.num_mels": shape(tensors, "blocks.0.conv.conv.weight", 1),
        "pooling": pooling,
    }
    return Architecture("ecapa", changes)


WESPEAKER = Family(
    "ECAPA-TDNN",
    (r"^layer2\.se_res2block\.1\.convs\.", r"^pool\.linear1\."),
    _OF_WESPEAKER,
    _architecture_of_wespeaker,
    _finish_wespeaker,
)
SPEECHBRAIN = Family(
    "ECAPA-TDNN",
    (r"^blocks\.1\.res2net_block\.", r"^asp\.tdnn\."),
    _OF_SPEECHBRAIN,
    _architecture_of_speechbrain,
    split_context,
)
