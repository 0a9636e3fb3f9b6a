"""SpeechBrain: embedding_model.ckpt with hyperparams.yaml, classifier.ckpt and label_encoder.txt beside it."""

from typing import Any

from spkexp.conversion import ecapa
from spkexp.conversion.family import Architecture, Family, Refused, Rule, Settings, Tensors, count, shape
from spkexp.conversion.reading import Found, read_settings
from spkexp.conversion.toolkit import CLASSIFIER, Toolkit, classifier_beside
from spkexp.errors import UserError

_HYPERPARAMS = "hyperparams.yaml"
LABELS = "label_encoder.txt"

# A convolution, a leaky ReLU and a batch normalisation each, then the pooling and a linear layer.
_XVECTOR: tuple[Rule, ...] = (
    (r"^blocks\.(\d+)\.conv\.", lambda match: f"encoder.layers.{int(match[1]) // 3}.conv."),
    (r"^blocks\.(\d+)\.norm\.", lambda match: f"encoder.layers.{int(match[1]) // 3}.norm."),
    (r"^blocks\.\d+\.w\.", "embedding."),
)


def _xvector(tensors: Tensors, settings: Settings) -> Architecture:
    convolutions = [f"blocks.{3 * i}.conv.weight" for i in range(count(tensors, r"blocks\.(\d+)\.conv\."))]
    changes = {
        "encoder.channels": [shape(tensors, name, 0) for name in convolutions],
        "encoder.kernel_sizes": [shape(tensors, name, 2) for name in convolutions],
        "encoder.dilations": settings.get("tdnn_dilations") or [1, 2, 3, 1, 1],
        "embedding_size": shape(tensors, next(name for name in tensors if name.endswith(".w.weight")), 0),
        "features.num_mels": shape(tensors, convolutions[0], 1),
        "pooling.variance_floor": 1e-10,  # they have none, which shows where a channel is constant
    }
    return Architecture("xvector", changes)


def _finish_xvector(tensors: Tensors) -> Tensors:
    """Their pooling adds 1e-5 to every deviation, and to every mean noise of 1e-5 to 9e-5, of mean 5e-5, always.

    Both are the same for all utterances but for the noise's chance, so that the next layer's bias can have them.
    """
    weight, bias = tensors.get("embedding.weight"), tensors.get("embedding.bias")
    if weight is None or bias is None or weight.shape[1] % 2:
        return tensors
    means, deviations = weight.double().tensor_split(2, dim=1)
    moved = bias.double() + 5e-5 * means.sum(dim=1) + 1e-5 * deviations.sum(dim=1)
    return tensors | {"embedding.bias": moved.to(bias.dtype)}


def _settings(found: Found) -> Settings:
    """Arguments of the model, with those of the features under "features" and of their normalisation under "norm"."""
    file = found.companions.get(_HYPERPARAMS)
    if file is None:
        return {}
    content = read_settings(file)
    # What EncoderClassifier asks for by these names.
    features, norm, model = (_node(content, key) for key in ("compute_features", "mean_var_norm", "embedding_model"))
    if features and not features["!"].endswith(".Fbank"):
        raise UserError(f"{file}: its features are {features['!']}; speechbrain.lobes.features.Fbank is read")
    for key in ("deltas", "context"):
        if features.get(key):
            raise UserError(f"{file}: its features have {key}, which ours have not")
    if norm and norm.get("norm_type", "global") != "sentence":
        raise UserError(
            f"{file}: normalises features by norm_type={norm.get('norm_type', 'global')}; ours do by the utterance "
            "alone (sentence)"
        )
    return model | {"features": features, "norm": norm}


def _node(content: dict[str, Any], key: str) -> dict[str, Any]:
    """The arguments of what !new: would make, its class under "!"; empty where there is no such key."""
    node = content.get(key)
    return node if isinstance(node, dict) and "!" in node else {}


def _features(found: Found, settings: Settings) -> dict[str, Any]:
    """SpeechBrain's Fbank and its normalisation over the sentence, in the recipes by the mean alone."""
    stated, norm = settings.get("features", {}), settings.get("norm", {})
    return {
        "_target_": "spkexp.features_stft.CentredLogMel",
        "sample_rate": stated.get("sample_rate", 16000),
        "frame_length_ms": float(stated.get("win_length", 25)),
        "frame_shift_ms": float(stated.get("hop_length", 10)),
        "fft_size": stated.get("n_fft", 400),
        "low_hz": float(stated.get("f_min", 0)),
        "high_hz": float(stated.get("f_max") or 0),
        "window": "hamming",
        "filters": "symmetric",
        "padding": "zeros",
        "preemphasis": 0.0,
        "logarithm": "decibel",
        "floor": 1e-10,
        "top_db": 80.0,
        "normalise": "mean_variance" if norm and norm.get("std_norm", True) else "mean",
    }


SPEECHBRAIN = Toolkit(
    name="speechbrain",
    files=("embedding_model.ckpt",),
    companions=(_HYPERPARAMS, CLASSIFIER, LABELS, "mean_var_norm_emb.ckpt"),
    families=(
        ecapa.SPEECHBRAIN,
        Family(
            "x-vector", (r"^blocks\.0\.conv\.weight", r"^blocks\.\d+\.w\.weight"), _XVECTOR, _xvector, _finish_xvector
        ),
    ),
    refused=(Refused(r"^layer1\.0\.conv1\.", "its ResNet, whose blocks have squeeze and excitation"),),
    left_out=(),
    settings=_settings,
    features=_features,
    head=classifier_beside,
)
