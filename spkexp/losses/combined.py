"""Several losses of the same embeddings, added up."""

from collections.abc import Mapping

from torch import Tensor, nn

from spkexp.losses.head import Head, Loss, LossOutput
from spkexp.types import NonNegative


class Combined(Loss):
    """Σ weight · loss over `losses`. None leaves one out, whose weight may stay.

    One of them at most has classes: that one classifies, and its are the accuracy and the margin. Without one they are
    the first loss's. Where one compares the utterances of a batch, all get those of all processes.
    """

    def __init__(self, losses: Mapping[str, Loss | None], weights: dict[str, NonNegative]) -> None:
        """Raises ValueError where losses and weights do not go together."""
        super().__init__()
        present = {name: part for name, part in losses.items() if part is not None}
        if not present:
            raise ValueError("losses: give at least one")
        for name, part in present.items():
            if not isinstance(part, Loss):
                raise ValueError(f"losses.{name}: must be a loss, but {type(part).__name__} is none")
            if hasattr(nn.ModuleDict(), name) or "." in name:
                raise ValueError(f"losses.{name}: torch has no module of this name; choose another")
        if not set(present) <= set(weights) <= set(losses):
            raise ValueError(f"weights must be given for {', '.join(present)}, got {', '.join(weights) or 'none'}")
        heads = [name for name, part in present.items() if part.classifier is not None]
        if len(heads) > 1:
            raise ValueError(f"losses: {' and '.join(heads)} have classes each, and one at most can classify")
        self.losses = nn.ModuleDict(present)
        self.weights = {name: weights[name] for name in present}
        self.leading = (heads or list(present))[0]
        self.needs_pairs = any(part.needs_pairs for part in present.values())

    def _part(self, name: str) -> Loss:
        part = self.losses[name]
        assert isinstance(part, Loss)
        return part

    def measure(self, embedding: Tensor, label: Tensor, step: int) -> LossOutput:
        found = {name: self._part(name).measure(embedding, label, step) for name in self.weights}
        total = sum((weight * found[name].loss for name, weight in self.weights.items()), embedding.new_zeros(()))
        return LossOutput(total, found[self.leading].accuracy)

    @property
    def classifier(self) -> Head | None:
        return self._part(self.leading).classifier

    def margin_at(self, step: int) -> float:
        return self._part(self.leading).margin_at(step)

    def class_tensors(self) -> frozenset[str]:
        names = ((name, tensor) for name in self.weights for tensor in self._part(name).class_tensors())
        return frozenset(f"losses.{name}.{tensor}" for name, tensor in names)
