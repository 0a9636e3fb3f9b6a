"""What an exported file says of itself."""

import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from spkexp import checkpoint, durable
from spkexp.code_state import package_version
from spkexp.inference.threshold import threshold_of
from spkexp.models.speaker import SpeakerModel


def metadata_of(model: SpeakerModel, cfg: DictConfig, folder: Path) -> dict[str, str]:
    """Of the model in the checkpoint `folder`, whose config is `cfg`.

    sample_rate (Hz), embedding_size, model and data (names of the config), parameters, spkexp_version, weights_sha256
    (of the checkpoint's model.safetensors) and, where the validation of the run gave one, threshold: what the cosine of
    two embeddings of one speaker exceeds, with threshold_of: where it comes from.
    """
    found = {
        "sample_rate": str(model.sample_rate),
        "embedding_size": str(model.embedding_size),
        "model": checkpoint.named(cfg, "model"),
        "data": checkpoint.named(cfg, "data"),
        "parameters": str(sum(parameter.numel() for parameter in model.parameters())),
        "spkexp_version": package_version() or "unknown",
        "weights_sha256": durable.digest(folder / checkpoint.MODEL),
    }
    threshold, _ = threshold_of(folder, cfg)
    if threshold is not None:
        found |= {"threshold": repr(threshold.value), "threshold_of": str(threshold)}
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
