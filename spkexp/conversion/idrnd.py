"""ReDimNet as its authors publish it: a .pt with state_dict and model_config."""

from typing import Any

import torch

from spkexp.conversion import redimnet
from spkexp.conversion.family import Head, LeftOut, Settings
from spkexp.conversion.reading import Found
from spkexp.conversion.toolkit import Toolkit
from spkexp.errors import UserError
from spkexp.features_stft import CentredLogMel

# What `redimnet.AUTHORS` takes these keys to be: their values do not show in the tensors.
_READ = {
    "block_2d_type": ("convnext_like", "basic_resnet", "basic_resnet_fwse"),
    "feat_type": ("pt", "pt_mel"),
    "pooling_func": ("ASTP",),
    "tf_optimized_arch": (False,),
    "out_channels": (None,),
}
_READ_OF_FEATURES = {"norm_signal": (False,), "spec_norm": ("mn",), "sample_rate": (16000,)}
_HOP = 240  # samples, in the published models


def _settings(found: Found) -> Settings:
    """model_config, empty where the file has none."""
    config = found.rest.get("model_config") or {}
    if not isinstance(config, dict):
        raise UserError(f"{found.file}: its model_config is no mapping")
    spec = config.get("spec_params") or {}
    for read, stated in ((_READ, config), (_READ_OF_FEATURES, spec)):
        for key, values in read.items():
            if key in stated and stated[key] not in values:
                raise UserError(
                    f"{found.file}: its model_config has {key}={stated[key]}, which is not read; "
                    f"{' and '.join(map(str, values))} {'is' if len(values) == 1 else 'are'}"
                )
    return config


def _features(found: Found, settings: Settings) -> dict[str, Any]:
    """torchaudio's MelSpectrogram behind a pre-emphasis. Raises UserError where the file's own filters are others."""
    spec = settings.get("spec_params") or {}
    length, filters = _buffer(found, ".window"), _buffer(found, ".fb")
    node = {
        "_target_": "spkexp.features_stft.CentredLogMel",
        "sample_rate": 16000,
        "frame_length_ms": (len(length) if length is not None else spec.get("win_length", 400)) / 16,
        "frame_shift_ms": settings.get("hop_length", _HOP) / 16,
        "fft_size": 2 * (len(filters) - 1) if filters is not None else spec.get("n_fft", 512),
        "low_hz": float(spec.get("f_min", 20)),
        "high_hz": float(spec.get("f_max", 7600)),
        "window": "hamming",
        "filters": "htk",
        "padding": "reflect",
        "preemphasis": 0.97 if spec.get("do_preemph", True) else 0.0,
        "logarithm": "natural",
        "floor": 1e-6,
        "top_db": 0.0,
        "normalise": "mean",
    }
    if filters is not None:
        node["num_mels"] = filters.shape[1]
        ours = CentredLogMel(**{key: value for key, value in node.items() if key != "_target_"})
        if not torch.allclose(ours.filters, filters.T, atol=1e-5):
            raise UserError(f"its mel filters are not those of {spec or 'the published models'}")
        if length is not None and not torch.allclose(ours.window, length, atol=1e-5):
            raise UserError("its window is no Hamming window")
    return node


def _buffer(found: Found, ending: str) -> torch.Tensor | None:
    return next((x for name, x in found.tensors.items() if name.startswith("spec.") and name.endswith(ending)), None)


def _head(found: Found, settings: Settings) -> Head | None:
    return None


REDIMNET = Toolkit(
    name="redimnet",
    files=("model.pt",),
    companions=(),
    families=(redimnet.AUTHORS,),
    refused=(),
    left_out=(
        redimnet.CONSTANT,
        LeftOut(r"^spec\.", "constants of its front end, which ours computes (and was held against)"),
        LeftOut(r"^cls_head\.", "the classifier of its training speakers"),
    ),
    settings=_settings,
    features=_features,
    head=_head,
)
