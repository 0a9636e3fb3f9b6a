"""From a waveform to a speaker embedding: features, encoder, pooling, linear layer."""

import torch
from torch import Tensor, nn

from spkexp.ops.precision import without_autocast
from spkexp.types import PositiveInt


class SpeakerModel(nn.Module):
    """The one path from waveform to embedding, in training, validation, evaluation and inference.

    Lengths are always given, an int64 tensor. Keep them on the CPU, where a batch is made: then it is known without
    waiting for the device whether every row is full and masks are not needed. That is asked once, in
    `embed`; encoder and pooling get lengths on their own device or None, "every row is full". Lengths on a
    GPU are right too and cost one synchronisation a call. An exported graph keeps the masks: it serves padded batches.

    Args:
        features: (waveform, lengths) -> (features, frame lengths), with `out_channels` and `sample_rate`.
        encoder: (features, lengths or None) -> (hidden, lengths or None), with `out_channels`.
        pooling: (hidden, lengths or None) -> one vector an utterance, with `out_channels`.
        embedding_size: of the embedding.
        pooling_norm: batch normalisation of the pooled statistics (ECAPA).
        embedding_norm: batch normalisation of the embedding (the paper's ECAPA, "FC + BN").
    """

    def __init__(
        self,
        features: nn.Module,
        encoder: nn.Module,
        pooling: nn.Module,
        embedding_size: PositiveInt,
        pooling_norm: bool,
        embedding_norm: bool,
    ) -> None:
        super().__init__()
        self.sample_rate: int = features.sample_rate  # type: ignore[assignment]
        self.embedding_size = embedding_size
        self.features = features
        self.encoder = encoder
        self.pooling = pooling
        pooled: int = pooling.out_channels  # type: ignore[assignment]
        self.pooling_norm = nn.BatchNorm1d(pooled) if pooling_norm else nn.Identity()
        self.embedding = nn.Linear(pooled, embedding_size)
        self.embedding_norm = nn.BatchNorm1d(embedding_size) if embedding_norm else nn.Identity()

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """waveform (B, samples) in [-1, 1] and lengths (B,), in samples, -> embeddings (B, embedding_size)."""
        return self.embed(*self.extract_features(waveform, lengths))

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, T), in float32 even under autocast, and frame lengths (B,) on the device of `lengths`."""
        if lengths.is_floating_point():
            raise TypeError(f"lengths are {lengths.dtype}; give the number of samples of each utterance as int64")
        check_lengths(lengths, waveform.shape[1], "samples")
        with without_autocast(waveform.device):
            return self.features(waveform.float(), lengths)

    def embed(self, features: Tensor, lengths: Tensor) -> Tensor:
        """features (B, C, T) and lengths (B,), in frames, -> embeddings (B, embedding_size)."""
        full = not torch.compiler.is_exporting() and bool((lengths == features.shape[2]).all())
        hidden, frames = self.encoder(features, None if full else lengths.to(features.device, non_blocking=True))
        pooled = self.pooling_norm(self.pooling(hidden, frames))
        return self.embedding_norm(self.embedding(pooled))

    def load_pretrained(self) -> None:
        """Let the encoder take the published weights that its config names, if any; for a run that starts afresh."""
        load = getattr(self.encoder, "load_pretrained", None)
        if load is not None:
            load(self.features)


def check_lengths(lengths: Tensor, size: int, unit: str) -> None:
    """Raise ValueError for a length outside 1..size. Only lengths on the CPU are looked at: no waiting for a device."""
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1 or longest > size:
        raise ValueError(f"lengths from {shortest} to {longest} {unit} in a batch of {size}; each must be 1 to {size}")
