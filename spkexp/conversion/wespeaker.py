"""WeSpeaker: avg_model.pt or another model.pt with config.yaml beside it."""

from typing import Any

from spkexp.conversion import campplus, ecapa, redimnet, residual
from spkexp.conversion.family import Head, LeftOut, Refused, Settings
from spkexp.conversion.reading import Found, read_settings
from spkexp.conversion.toolkit import KALDI, Toolkit
from spkexp.errors import UserError

_CONFIG = "config.yaml"
_POOLINGS = ("TSTP", "ASTP", "TAP")
_VARIANCE_FLOOR = 1e-7  # what they add to variances that they pool
# Classes whose scores are cosines, with a margin in training alone.
_COSINES = ("arc_margin", "add_margin")
PROJECTION = LeftOut(r"^projection\.", "the classifier of its training speakers")


def _settings(found: Found) -> Settings:
    """model_args, with those of the features under "fbank", their number of mel bins under "num_mels" and the kind of
    classifier under "projection"."""
    file = found.companions.get(_CONFIG)
    if file is None:
        return {}
    content = read_settings(file)
    data = _mapping(content.get("dataset_args"))
    if (frontend := data.get("frontend", "fbank")) != "fbank":
        raise UserError(f"{file}: its front end is {frontend}, not fbank; that is not read")
    if not data.get("cmvn", True) or _mapping(data.get("cmvn_args")).get("norm_var"):
        raise UserError(f"{file}: its features are not normalised by the mean alone (dataset_args.cmvn)")
    arguments = _mapping(content.get("model_args"))
    if (pooling := arguments.get("pooling_func", "TSTP")) not in _POOLINGS:
        raise UserError(f"{file}: has the pooling {pooling}; {', '.join(_POOLINGS)} are read")
    projection = _mapping(content.get("projection_args")).get("project_type", _COSINES[0])
    rate = {"sample_rate": data["resample_rate"]} if "resample_rate" in data else {}
    fbank = _mapping(data.get("fbank_args"))
    return arguments | rate | num_mels(fbank) | {"fbank": fbank, "projection": projection}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def num_mels(fbank: Settings) -> dict[str, int]:
    """Arguments of kaldi.fbank -> what `residual.families` looks for; empty where they do not say it."""
    return {"num_mels": int(fbank["num_mel_bins"])} if "num_mel_bins" in fbank else {}


def kaldi_features(found: Found, settings: Settings) -> dict[str, Any]:
    """Kaldi's with a Hamming window on 16-bit samples: what it scores by has no dither."""
    stated = settings.get("fbank", {})
    return KALDI | {
        "sample_rate": settings.get("sample_rate", 16000),
        "window": "hamming",
        "scale": 32768.0,
        "frame_length_ms": float(stated.get("frame_length", 25)),
        "frame_shift_ms": float(stated.get("frame_shift", 10)),
    }


def _head(found: Found, settings: Settings) -> Head | None:
    names = [name for name in found.tensors if name.startswith("projection.")]
    if names != ["projection.weight"] or settings.get("projection", _COSINES[0]) not in _COSINES:
        return None
    return Head(found.tensors["projection.weight"], "projection.weight")


WESPEAKER = Toolkit(
    name="wespeaker",
    files=("avg_model.pt", "model.pt", "wespeaker.pt", "final_model.pt"),
    companions=(_CONFIG,),
    families=(
        ecapa.WESPEAKER,
        campplus.family(_VARIANCE_FLOOR),
        redimnet.WESPEAKER,
        *residual.families(_VARIANCE_FLOOR),
    ),
    refused=(
        *residual.REFUSED,
        Refused(r"^pool\.(heads_att_trans|n_query)\.", "the pooling MHASTP or MQMHASTP"),
        Refused(r"^frame_1\.", "its x-vector, whose convolutions have no padding"),
    ),
    left_out=(PROJECTION, redimnet.CONSTANT),
    settings=_settings,
    features=kaldi_features,
    head=_head,
)
