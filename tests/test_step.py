"""The path of a batch through a step: rows that the augmentation adds, drops or reorders keep their labels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spkexp import build
from spkexp.augment.augmentation import FeatureAugmentation
from spkexp.augment.chain import Parallel, prepared
from spkexp.cli import compose_config
from spkexp.counter import Keys, item_keys
from spkexp.losses.head import Head, HeadOutput
from spkexp.step import TrainStep
from tests.test_chain import Halve

RATE = 16_000


class Recording(Head):
    """Keeps the labels that it gets; its loss is the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[int] = []

    def forward(self, embedding: Tensor, label: Tensor, step: int) -> HeadOutput:
        assert len(embedding) == len(label)
        self.labels = label.tolist()
        return HeadOutput(label[0].float(), self.scores(label.flip(0)))

    def scores(self, embedding: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(embedding, 50).float()


class RecordingKeys(FeatureAugmentation):
    def forward(self, features: Tensor, lengths: Tensor | None, key: Keys) -> Tensor:
        self.seen = key
        self.lengths = lengths
        return features


def test_labels_follow_their_rows() -> None:
    features = RecordingKeys()
    parallel = prepared(Parallel(True, {"short": Halve(1.0), "other": Parallel(False, {"x": Halve(0.0)})}))
    head = Recording()
    step = TrainStep(build.model(compose_config(["model=xvector"]).model), head, parallel, features).eval()
    key = item_keys(0, 0, np.arange(3))
    output = step(
        torch.randn(3, RATE), torch.full((3,), RATE), torch.tensor([7, 11, 42]), torch.from_numpy(key.view(np.int64)),
        [], 0,
    )  # fmt: skip
    assert head.labels == [7, 11, 42] * 3
    assert output.loss == 7
    assert output.accuracy == pytest.approx(3 / 9)  # the second row of three is its own mirror image
    assert len(features.seen) == 9
    assert np.array_equal(features.seen[:3], key)
    assert len(set(features.seen.tolist())) == 9
    assert features.lengths is not None
    assert (features.lengths[3:6] < features.lengths[:3]).all()


def test_labels_of_a_batch_without_its_original() -> None:
    """The source of each row, not its place, says whose label it has."""

    class Reversed(Parallel):
        def forward(self, signal, material):  # type: ignore[no-untyped-def]
            waveform, lengths, keys, source = super().forward(signal, material)
            return type(signal)(waveform.flip(0), lengths.flip(0), keys[::-1].copy(), source[::-1].copy())

    head = Recording()
    augmentation = prepared(Reversed(False, {"a": Halve(0.0), "b": Halve(1.0)}))
    step = TrainStep(build.model(compose_config(["model=xvector"]).model), head, augmentation, None).eval()
    key = torch.from_numpy(item_keys(0, 0, np.arange(2)).view(np.int64))
    step(torch.randn(2, RATE), torch.full((2,), RATE), torch.tensor([3, 9]), key, [], 0)
    assert head.labels == [9, 3, 9, 3]
