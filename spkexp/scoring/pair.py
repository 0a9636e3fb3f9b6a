"""The score of two recordings."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from spkexp.data import audio
from spkexp.models.speaker import SpeakerModel


def compare(model: SpeakerModel, first: str | os.PathLike[str], second: str | os.PathLike[str]) -> float:
    """Cosine of the embeddings of two audio files, in [-1, 1]. Raises AudioError."""
    return float(F.cosine_similarity(_embed(model, first), _embed(model, second)))


def _embed(model: SpeakerModel, path: str | os.PathLike[str]) -> Tensor:
    wave = torch.from_numpy(audio.read(path, sample_rate=model.sample_rate, resample=True, mix_channels=True))[None]
    with torch.inference_mode():
        return model(wave.to(next(model.parameters()).device), torch.tensor([wave.shape[1]]))
