"""What a toolkit's checkpoints have in common, whatever the architecture."""

from collections.abc import Callable
from typing import Any, NamedTuple

from spkexp.conversion.family import Family, Head, LeftOut, Refused, Settings
from spkexp.conversion.reading import Found, read

CLASSIFIER = "classifier.ckpt"
# Kaldi's own features, by the names of conf/model: what a toolkit has otherwise is its own.
KALDI = {
    "_target_": "spkexp.features.LogMel",
    "sample_rate": 16000,
    "frame_length_ms": 25.0,
    "frame_shift_ms": 10.0,
    "low_hz": 20.0,
    "high_hz": 0.0,
    "window": "povey",
    "preemphasis": 0.97,
    "scale": 1.0,
    "normalise": "mean",
}


class Toolkit(NamedTuple):
    """A toolkit whose checkpoints are read.

    files: what its weights are called in a folder, the first that is there is taken.
    companions: what may lie beside them, or one or two folders above, and says more.
    settings: what the companions say of the model, or what the file itself does. Raises UserError for what is refused.
    features: the node of the front end, less the number of mel bins where the architecture knows it. Raises UserError
    that does not name the file.
    head: the classifier, where there is one of plain cosines.
    shells: classes of objects beside the tensors, which are read as empty shells, without their packages.
    """

    name: str
    files: tuple[str, ...]
    companions: tuple[str, ...]
    families: tuple[Family, ...]
    refused: tuple[Refused, ...]
    left_out: tuple[LeftOut, ...]
    settings: Callable[[Found], Settings]
    features: Callable[[Found, Settings], dict[str, Any]]
    head: Callable[[Found, Settings], Head | None]
    shells: tuple[str, ...] = ()


def classifier_beside(found: Found, settings: Settings) -> Head | None:
    """Of a classifier.ckpt beside the model; None: there is none, or it is more than one layer of cosines."""
    file = found.companions.get(CLASSIFIER)
    if file is None:
        return None
    tensors, _ = read(file)
    return Head(tensors["weight"], file.name) if set(tensors) == {"weight"} else None
