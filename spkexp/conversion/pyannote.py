"""pyannote.audio: a Lightning checkpoint (pytorch_model.bin) of XVectorSincNet or of WeSpeaker's ResNet."""

from typing import Any

from spkexp.conversion import residual
from spkexp.conversion.family import (
    Architecture,
    Family,
    Head,
    LeftOut,
    Refused,
    Rule,
    Settings,
    Tensors,
    count,
    shape,
)
from spkexp.conversion.reading import Found
from spkexp.conversion.toolkit import Toolkit
from spkexp.conversion.wespeaker import kaldi_features, num_mels
from spkexp.errors import UserError

# A convolution, a leaky ReLU and a batch normalisation each.
_PARTS = ("layers", "", "norms")
_SINCNET: tuple[Rule, ...] = (
    (r"^sincnet\.wav_norm1d\.", "encoder.waveform_norm."),
    (r"^sincnet\.conv1d\.0\.filterbank\.(low|band)_hz_$", r"encoder.filterbank.\1_hz"),
    (r"^sincnet\.conv1d\.(\d+)\.", lambda match: f"encoder.convolutions.{int(match[1]) - 1}."),
    (r"^sincnet\.norm1d\.", "encoder.instance_norms."),
    (r"^tdnns\.(\d+)\.", lambda match: f"encoder.{_PARTS[int(match[1]) % 3]}.{int(match[1]) // 3}."),
)
# What pyannote.audio and Lightning put into a checkpoint beside tensors, numbers and text.
_SHELLS = (
    *(f"pyannote.audio.core.task.{name}" for name in ("Specifications", "Problem", "Resolution")),
    "pyannote.audio.core.model.Introspection",
    "torch.torch_version.TorchVersion",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)


def _sinctdnn(tensors: Tensors, settings: Settings) -> Architecture:
    layers = [f"tdnns.{3 * i}.weight" for i in range(count(tensors, r"tdnns\.(\d+)\.weight") // 2)]
    convolutions = [f"sincnet.conv1d.{i}.weight" for i in range(1, 1 + count(tensors, r"sincnet\.conv1d\.([1-9])\."))]
    sincnet = settings.get("sincnet") or {}
    changes = {
        "encoder.sinc_filters": 2 * shape(tensors, "sincnet.conv1d.0.filterbank.low_hz_", 0),
        "encoder.sinc_stride": sincnet.get("stride", 10),
        "encoder.conv_channels": [shape(tensors, name, 0) for name in convolutions],
        "encoder.conv_kernel_size": shape(tensors, convolutions[0], 2),
        "encoder.channels": [shape(tensors, name, 0) for name in layers],
        "encoder.kernel_sizes": [shape(tensors, name, 2) for name in layers],
        "encoder.dilations": [1, 2, 3, 1, 1][: len(layers)],  # stand in their code alone
        "embedding_size": shape(tensors, "embedding.weight", 0),
        "pooling.variance_floor": 1e-10,  # they have none, which shows where a channel is constant
    }
    return Architecture("sinctdnn", changes)


def _resnet() -> Family:
    """WeSpeaker's, one level deeper; its pooling adds nothing to a variance."""
    family = residual.families(1e-10)[-1]
    return family._replace(
        marks=tuple(mark.replace("^", r"^resnet\.") for mark in family.marks),
        rules=((r"^resnet\.", ""), *family.rules),
        architecture=lambda tensors, settings: family.architecture(
            {name.removeprefix("resnet."): tensor for name, tensor in tensors.items()}, settings
        ),
    )


def _settings(found: Found) -> Settings:
    """What Lightning keeps of the model's arguments."""
    arguments = found.rest.get("hyper_parameters") or {}
    arguments = dict(arguments) if isinstance(arguments, dict) else {}
    if arguments.get("fbank_centering_span") is not None:
        raise UserError(
            f"{found.file}: centres its features in spans of {arguments['fbank_centering_span']} s; ours are by the "
            "utterance"
        )
    return arguments | num_mels(arguments) | {"fbank": arguments}


def _features(found: Found, settings: Settings) -> dict[str, Any]:
    """The waveform itself, or WeSpeaker's features."""
    if any(name.startswith("sincnet.") for name in found.tensors):
        sample_rate = settings.get("sample_rate", 16000)
        return {"_target_": "spkexp.features.Waveform", "sample_rate": sample_rate, "normalise": "none"}
    return kaldi_features(found, settings) | {"window": settings.get("window_type", "hamming")}


def _head(found: Found, settings: Settings) -> Head | None:
    """Of ArcFace, which has a column for each class."""
    weight = found.tensors.get("loss_func.W")
    return None if weight is None else Head(weight.T, "loss_func.W")


PYANNOTE = Toolkit(
    name="pyannote",
    files=("pytorch_model.bin",),
    companions=(),
    families=(
        Family("SincTDNN", (r"^sincnet\.conv1d\.", r"^tdnns\.0\.", r"^embedding\."), _SINCNET, _sinctdnn),
        _resnet(),
    ),
    refused=(
        Refused(r"^mfcc\.", "its XVectorMFCC"),
        *(refused._replace(pattern=refused.pattern.replace("^", r"^resnet\.")) for refused in residual.REFUSED),
    ),
    left_out=(
        LeftOut(r"^sincnet\.conv1d\.0\.filterbank\.(window_|n_)$", "constants of the filters, which ours computes"),
        LeftOut(r"^loss_func\.", "the classifier of its training speakers"),
    ),
    settings=_settings,
    features=_features,
    head=_head,
    shells=_SHELLS,
)
