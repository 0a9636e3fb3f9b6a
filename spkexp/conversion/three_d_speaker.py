"""3D-Speaker: embedding_model.ckpt, or a published .bin, .ckpt or .pt, with config.yaml beside or above it."""

from typing import Any

from spkexp.conversion import campplus, ecapa, residual
from spkexp.conversion.family import Head, Refused, Settings
from spkexp.conversion.reading import Found, read, read_settings
from spkexp.conversion.toolkit import KALDI, Toolkit
from spkexp.errors import UserError

_CONFIG = "config.yaml"
_CLASSIFIER = "classifier.ckpt"
_POOLINGS = ("TSTP", "ASTP", "TAP")


def _settings(found: Found) -> Settings:
    """Arguments of the model, with mean_nor and sample_rate of the features."""
    file = found.companions.get(_CONFIG)
    if file is None:
        return {}
    content = read_settings(file)
    model, features = _arguments(content.get("embedding_model")), _arguments(content.get("feature_extractor"))
    if (pooling := model.get("pooling_func", "TSTP")) not in _POOLINGS:
        raise UserError(f"{file}: has the pooling {pooling}; {', '.join(_POOLINGS)} are read")
    return model | {"mean_nor": features.get("mean_nor", True), "sample_rate": features.get("sample_rate", 16000)}


def _arguments(node: Any) -> dict[str, Any]:
    arguments = node.get("args") if isinstance(node, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _features(found: Found, settings: Settings) -> dict[str, Any]:
    """Kaldi's own, on waveforms in [-1, 1]."""
    normalise = "mean" if settings.get("mean_nor", True) else "none"
    return KALDI | {"sample_rate": settings.get("sample_rate", 16000), "normalise": normalise}


def _head(found: Found, settings: Settings) -> Head | None:
    file = found.companions.get(_CLASSIFIER)
    if file is None:
        return None
    tensors, _ = read(file)
    return Head(tensors["weight"], file.name) if set(tensors) == {"weight"} else None


THREE_D_SPEAKER = Toolkit(
    name="3dspeaker",
    files=("embedding_model.ckpt",),
    companions=(_CONFIG, _CLASSIFIER),
    # CAM++ pools without a floor; one this small shows only where a channel is constant.
    families=(ecapa.SPEECHBRAIN, campplus.family(1e-10), *residual.families(1e-8)),
    refused=(
        *residual.REFUSED,
        Refused(r"^frame_1\.", "its x-vector, whose convolutions have no padding"),
    ),
    left_out=(),
    settings=_settings,
    features=_features,
    head=_head,
)
