"""ResNet, Res2Net and ERes2NetV2 as WeSpeaker names their tensors, and 3D-Speaker and pyannote.audio after it."""

from functools import partial

from spkexp.conversion.family import (
    Architecture,
    Family,
    Refused,
    Rule,
    Settings,
    Tensors,
    attentive_pooling,
    count,
    has,
    shape,
    split_context,
)
from spkexp.errors import UserError

_NAMES: tuple[Rule, ...] = (
    (r"^conv1\.", "encoder.first.conv."),
    (r"^bn1\.", "encoder.first.norm."),
    (r"^layer(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.{match[2]}."),
    (r"^pool\.linear1\.", "pooling.hidden."),
    (r"^pool\.linear2\.", "pooling.scores."),
    (r"^seg_1\.", "embedding."),
    (r"\.shortcut\.0\.", ".shortcut.conv."),
    (r"\.shortcut\.1\.", ".shortcut.norm."),
)
_BLOCKS: tuple[Rule, ...] = (
    (r"\.conv([123])\.", r".conv\1.conv."),
    (r"\.bn([123])\.", r".conv\1.norm."),
)
_RES2_BLOCKS: tuple[Rule, ...] = (
    (r"\.conv1\.", ".before.conv."),
    (r"\.bn1\.", ".before.norm."),
    (r"\.conv3\.", ".after.conv."),
    (r"\.bn3\.", ".after.norm."),
    (r"\.convs\.(\d+)\.", r".convs.\1.conv."),
    (r"\.bns\.(\d+)\.", r".convs.\1.norm."),
)
_FUSIONS: tuple[Rule, ...] = (
    (r"^layer3_ds\.", "encoder.downsample."),
    (r"^fuse34\.local_att\.", "encoder.fusion."),
    (r"\.fuse_models\.(\d+)\.local_att\.", r".fusions.\1."),
    (r"(\.fusion|\.fusions\.\d+)\.0\.", r"\1.squeeze."),
    (r"(\.fusion|\.fusions\.\d+)\.1\.", r"\1.squeeze_norm."),
    (r"(\.fusion|\.fusions\.\d+)\.3\.", r"\1.excite."),
    (r"(\.fusion|\.fusions\.\d+)\.4\.", r"\1.excite_norm."),
)
_NUM_MELS = 80  # in the recipes of all three, where no setting says it
REFUSED = (
    Refused(r"^seg_2\.", "two_emb_layer=True, a second layer behind the embedding"),
    Refused(r"^(fuse_mode\d|layer\d_downsample)", "ERes2Net; ERes2NetV2 is read"),
)


def families(variance_floor: float) -> tuple[Family, ...]:
    """variance_floor: what the toolkit adds to the variances that it pools."""
    read = partial(_architecture, variance_floor)
    return (
        Family(
            "ERes2NetV2",
            (r"^fuse34\.", r"^layer3_ds\."),
            (*_NAMES, *_RES2_BLOCKS, *_FUSIONS),
            partial(read, "eres2netv2"),
            split_context,
        ),
        Family(
            "Res2Net",
            (r"^layer1\.0\.convs\.0\.", r"^seg_1\."),
            (*_NAMES, *_RES2_BLOCKS),
            partial(read, "res2net"),
            split_context,
        ),
        Family(
            "ResNet",
            (r"^layer1\.0\.conv1\.", r"^seg_1\."),
            (*_NAMES, *_BLOCKS),
            partial(read, "resnet34"),
            split_context,
        ),
    )


def _architecture(variance_floor: float, model: str, tensors: Tensors, settings: Settings) -> Architecture:
    stages = count(tensors, r"layer(\d)\.\d+\.")
    num_blocks = [count(tensors, rf"layer{stage}\.(\d+)\.") for stage in range(1, stages + 1)]
    channels = shape(tensors, "conv1.weight", 0)
    last = "conv3" if has(tensors, r"^layer1\.0\.conv3\.") else "conv2"
    expansion = shape(tensors, f"layer1.0.{last}.weight", 0) // channels
    changes = {"encoder.channels": channels, "encoder.num_blocks": num_blocks}
    changes["embedding_size"] = shape(tensors, "seg_1.weight", 0)
    if model == "resnet34":
        changes["encoder.block"] = "bottleneck" if last == "conv3" else "basic"
    else:
        groups = count(tensors, r"layer1\.0\.convs\.(\d+)\.")
        # In the last stage, where the width of a group is rounded the least.
        group = shape(tensors, f"layer{stages}.0.convs.0.weight", 0)
        changes["encoder.base_width"] = group * 64 // (channels * 2 ** (stages - 1))
        changes["encoder.scale"] = groups + (model == "res2net")  # the group that passes unchanged has no convolution
        changes["encoder.expansion"] = expansion
    width = channels * 2 ** (stages - 1) * expansion  # of the last stage
    if has(tensors, r"^pool\.linear1\."):
        attention = ("pool.linear1.weight", "pool.linear2.weight")
        pooled = shape(tensors, attention[1], 0)
        changes["pooling"] = attentive_pooling(tensors, *attention, variance_floor=variance_floor)
    elif settings.get("pooling_func") == "TAP":
        pooled = shape(tensors, "seg_1.weight", 1)
        changes["pooling"] = {"_target_": "spkexp.models.pooling.MeanPooling"}
    else:
        pooled = shape(tensors, "seg_1.weight", 1) // 2
        changes["pooling.variance_floor"] = variance_floor
    # The stages halve the frequencies, rounded up, and the pooled channels have what is left. A pooling without
    # parameters, that no setting names, shows here alone.
    step = 2 ** (stages - 1)
    known = has(tensors, r"^pool\.linear1\.") or "pooling_func" in settings
    mels = settings.get("num_mels", pooled // width * step if known else _NUM_MELS)
    if pooled != width * -(-mels // step):
        raise UserError(
            f"{pooled / width * step:g} mel bins follow from its shapes, not {mels}: it has another pooling, or other "
            "features; put its config.yaml beside it"
        )
    changes["features.num_mels"] = mels
    return Architecture(model, changes)
