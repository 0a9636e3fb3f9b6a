"""One process more or fewer on the way: the same batches, and weights that differ by rounding alone."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.conftest import Victim
from tests.faults.traces import metrics

# Neither batch statistics nor dropout, which are each process's own: what is left is the order of float32 sums.
SETTINGS = ("model=transformer", "model.encoder.dropout=0", "trainer/optimizer=sgd", "trainer.optimizer.lr=0.01")
# Of the largest weight of each tensor, after twenty steps; measured were 1.0e-6 at most.
TOLERANCE = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_on_another_number_of_processes(victim: Victim, corpus: Path, before: int, after: int) -> None:
    one = Victim(corpus, victim.folder.parent / "one")
    run = one.start(*SETTINGS)
    assert run.wait() == 0, run.text()
    victim.forked, victim.processes = before == 1, before
    run = victim.start(*SETTINGS)
    victim.reaches(5, run)
    run.signal(signal.SIGTERM)
    assert run.wait() != 0, run.text()
    victim.forked, victim.processes = after == 1, after
    run = victim.resume()
    assert run.wait() == 0, run.text()
    victim.assert_clean(run)
    assert f"{after} processes where there were {before}" in run.text()
    losses = [[line["train"]["loss"] for line in metrics(f) if "train" in line] for f in (one.folder, victim.folder)]
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = (load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (one.folder, victim.folder))
    for name, tensor in a.items():
        furthest = (tensor - b[name]).abs().max() / tensor.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        assert furthest <= TOLERANCE, name
