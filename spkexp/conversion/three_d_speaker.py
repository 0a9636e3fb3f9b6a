"""3D-Speaker: embedding_model.ckpt, or a published .bin, .ckpt or .pt, with config.yaml beside or above it."""

from typing import Any

from spkexp.conversion import campplus, ecapa, residual
from spkexp.conversion.family import Refused, Settings
from spkexp.conversion.reading import Found, read_settings
from spkexp.conversion.toolkit import CLASSIFIER, KALDI, Toolkit, classifier_beside
from spkexp.errors import UserError

_CONFIG = "config.yaml"
_POOLINGS = ("TSTP", "ASTP", "TAP")


def _settings(found: Found) -> Settings:
    """Arguments of the model, with mean_nor, sample_rate and num_mels of the features."""
    file = found.companions.get(_CONFIG)
    if file is None:
        return {}
    content = read_settings(file)
    model, features = _arguments(content.get("embedding_model")), _arguments(content.get("feature_extractor"))
    if (pooling := model.get("pooling_func", "TSTP")) not in _POOLINGS:
        raise UserError(f"{file}: has the pooling {pooling}; {', '.join(_POOLINGS)} are read")
    mels = {"num_mels": int(features["n_mels"])} if "n_mels" in features else {}
    rate = features.get("sample_rate", 16000)
    return model | mels | {"mean_nor": features.get("mean_nor", True), "sample_rate": rate}


def _arguments(node: Any) -> dict[str, Any]:
    arguments = node.get("args") if isinstance(node, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def _features(found: Found, settings: Settings) -> dict[str, Any]:
    """Kaldi's own, on waveforms in [-1, 1]."""
    normalise = "mean" if settings.get("mean_nor", True) else "none"
    return KALDI | {"sample_rate": settings.get("sample_rate", 16000), "normalise": normalise}


THREE_D_SPEAKER = Toolkit(
    name="3dspeaker",
    files=("embedding_model.ckpt",),
    companions=(_CONFIG, CLASSIFIER),
    # CAM++ pools without a floor; one this small shows only where a channel is constant.
    families=(ecapa.SPEECHBRAIN, campplus.family(1e-10), *residual.families(1e-8)),
    refused=(
        *residual.REFUSED,
        Refused(r"^frame_1\.", "its x-vector, whose convolutions have no padding"),
    ),
    left_out=(),
    settings=_settings,
    features=_features,
    head=classifier_beside,
)
