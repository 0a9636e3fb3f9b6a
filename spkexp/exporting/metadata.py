"""What an exported file says of itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from spkexp import checkpoint
from spkexp.code_state import package_version
from spkexp.models.speaker import SpeakerModel


def metadata_of(model: SpeakerModel, cfg: DictConfig, folder: Path) -> dict[str, str]:
    """Of the model in the checkpoint `folder`, whose config is `cfg`.

    sample_rate (Hz), embedding_size, model and data (names of the config), parameters, spkexp_version, weights_sha256
    (of the checkpoint's model.safetensors) and, where the validation of the run gave one, threshold: what the cosine of
    two embeddings of one speaker exceeds, at the equal error rate of those trials.
    """
    names = cfg.get("names") or {}
    found = {
        "sample_rate": str(model.sample_rate),
        "embedding_size": str(model.embedding_size),
        "model": str(names.get("model", type(model.encoder).__name__)),
        "data": str(names.get("data", "")),
        "parameters": str(sum(parameter.numel() for parameter in model.parameters())),
        "spkexp_version": package_version() or "unknown",
        "weights_sha256": hashlib.sha256((folder / checkpoint.MODEL).read_bytes()).hexdigest(),
    }
    threshold = _threshold(folder)
    if threshold is not None:
        found |= {"threshold": repr(threshold), "threshold_of": "the equal error rate of the run's validation trials"}
    return found


def describe(metadata: Mapping[str, str]) -> str:
    """What goes into the graph and what comes out, in a sentence."""
    return (
        f"Speaker embeddings ({metadata['model']}). waveform (batch, samples) float32 in [-1, 1] at "
        f"{metadata['sample_rate']} Hz, rows filled up behind their ends; lengths (batch,) int64, samples of each row; "
        f"embedding (batch, {metadata['embedding_size']}) float32. Features are computed inside."
    )


def as_json(metadata: Mapping[str, str]) -> str:
    return json.dumps(dict(metadata), indent=2, ensure_ascii=False)


def _threshold(folder: Path) -> float | None:
    file = checkpoint.results_file(folder)
    if file is None:
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))["trials"]["val"]["eer_threshold"]
        return None if value is None else float(value)
    except (OSError, ValueError, KeyError, TypeError):  # the results of another version, or none of verification
        return None
