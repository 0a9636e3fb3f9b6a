"""The path of a batch through a step: rows that the augmentation adds, drops or reorders keep their labels."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from spkexp import build, distributed
from spkexp.augment.augmentation import FeatureAugmentation
from spkexp.augment.chain import Parallel, prepared
from spkexp.compose import compose_config
from spkexp.counter import Keys, item_keys
from spkexp.losses.combined import Combined
from spkexp.losses.head import Head
from spkexp.losses.margin import AAMSoftmax
from spkexp.step import TrainStep
from tests.loss_tools import METRIC, RUN_TIME, margin_head
from tests.test_chain import Halve

RATE = 16_000
PROCESSES = 2


class Recording(Head):
    """Keeps the labels that it gets; its loss is the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[int] = []

    def scores(self, embedding: Tensor) -> Tensor:
        """Of class 0 or 1 where the first entry is negative or positive."""
        return torch.stack([-embedding[:, 0], embedding[:, 0]], dim=1)

    def loss(self, scores: Tensor, label: Tensor, step: int) -> Tensor:
        assert len(scores) == len(label)
        self.labels, self.scored = label.tolist(), scores
        return label[0].float()


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
        torch.randn(3, RATE), torch.full((3,), RATE), torch.tensor([7, 1, 0]), torch.from_numpy(key.view(np.int64)),
        [], 0,
    )  # fmt: skip
    assert head.labels == [7, 1, 0] * 3
    assert output.loss == 7
    hits = (head.scored.argmax(dim=1) == torch.tensor([7, 1, 0] * 3)).sum().item()
    assert output.accuracy == pytest.approx(hits / 9)
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


def gradients_of_all_losses(rows: slice) -> dict[str, Tensor]:
    """Of a step that sees the `rows` of a batch of 8 utterances of 1 s, with a head and all metric losses added up.

    In evaluation mode, for batch statistics are each process's own.
    """
    generator = torch.Generator().manual_seed(0)
    waveform, label = torch.randn(8, RATE, generator=generator).cumsum(1), torch.tensor([2, 2, 0, 0, 5, 0, 2, 1])
    key, lengths = torch.from_numpy(item_keys(0, 0, np.arange(8)).view(np.int64)), torch.full((8,), RATE)
    torch.manual_seed(0)
    small = ["model.encoder.channels=[8,8,8,8,16]", f"model.embedding_size={RUN_TIME['embedding_size']}"]
    model = build.model(compose_config(["model=xvector", *small]).model)
    losses = {"aam": margin_head(AAMSoftmax), **{name: make() for name, make in METRIC.items()}}
    step = TrainStep(model, Combined(losses, dict.fromkeys(losses, 1.0)), None, None).eval()
    parallel = distributed.wrap(step, static_graph=False)
    output = parallel(waveform[rows], lengths[rows], label[rows], key[rows], [], step=0)
    output.loss.backward()
    gradients = {name: value.grad for name, value in step.named_parameters()}
    return gradients | {"the loss": output.loss.detach(), "the accuracy": output.accuracy}


def in_a_process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with distributed.processes("cpu"):
        gathered = distributed.gather_rows(torch.full((2, 3), rank, dtype=torch.int64))
        assert gathered.tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
        rows = torch.tensor([[1.0 + rank]], requires_grad=True)
        # Each process weighs the rows in its own way: 1 and 10 in one, 2 and 20 in the other.
        (distributed.gather_rows(rows) * torch.tensor([[1.0], [10.0]]) * (1 + rank)).sum().backward()
        assert rows.grad.item() == [3.0, 30.0][rank]
        half = 8 // PROCESSES
        found = gradients_of_all_losses(slice(rank * half, (rank + 1) * half))
        torch.save(found, folder / f"{rank}.pt")


def test_processes_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    """Speakers have utterances in both processes, some have one only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(in_a_process, (port, tmp_path), nprocs=PROCESSES)
    expected = gradients_of_all_losses(slice(None))
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        wrong = {
            name: (found[name], value)
            for name, value in expected.items()
            if not (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-9
        }
        assert not wrong
