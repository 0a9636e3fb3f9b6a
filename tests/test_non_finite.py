"""Steps that are not finite: what a guard undoes and when it gives up, and what a trainer is left with."""

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from spkexp import checkpoint, distributed
from spkexp.data.dataset import Batch
from spkexp.data.utterances import Strings
from spkexp.interrupt import StopRequest
from spkexp.meter import BadFiles, Meter
from spkexp.non_finite import FORGET_AFTER, MAX_IN_A_ROW, MAX_ROLLBACKS, MIN_SCALE, Guard, NotFinite
from spkexp.parameter_groups import Freezing
from spkexp.pruning import Pruning
from spkexp.savepoint import Origin
from spkexp.sections import Tracking
from spkexp.sections import Trainer as Settings
from spkexp.step import StepOutput
from spkexp.tracking import Tracker
from spkexp.trainer import Trainer

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def guard(policy: Literal["raise", "skip", "rollback"] = "skip") -> tuple[Guard, nn.BatchNorm1d]:
    norm = nn.BatchNorm1d(2)
    return Guard(policy, norm), norm


@pytest.mark.parametrize(("loss", "norm"), [(BAD, GOOD), (GOOD, BAD), (GOOD, torch.tensor(float("inf"))), (BAD, None)])
def test_a_spoilt_steps_statistics_are_undone(loss: Tensor, norm: Tensor | None) -> None:
    found, module = guard()
    module(torch.randn(4, 2))
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    found.remember()
    module(torch.full((4, 2), float("nan")))
    assert not module.running_mean.isfinite().any()  # type: ignore[union-attr]
    assert found.spoilt([GOOD, loss], norm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.named_buffers())


def test_a_good_steps_statistics_stay() -> None:
    found, module = guard()
    found.remember()
    module(torch.randn(4, 2))
    assert not found.spoilt([GOOD], None)
    assert module.num_batches_tracked == 1


def test_what_one_process_finds_counts_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found, module = guard()
    asked: list[tuple[bool, ...]] = []

    def any_of(*flags: bool) -> tuple[bool, ...]:
        asked.append(flags)
        return (True,)  # the other process's is spoilt

    monkeypatch.setattr(distributed, "any_of", any_of)
    found.remember()
    module(torch.randn(4, 2))
    assert found.spoilt([GOOD], GOOD)
    assert asked == [(False,)]
    assert module.num_batches_tracked == 0


def test_raise_leaves_it_to_the_meter() -> None:
    found, _ = guard("raise")
    found.remember()
    assert not found.looks
    assert not found.spoilt([BAD], BAD)


def test_so_many_in_a_row_end_the_run() -> None:
    found, _ = guard()
    found.remember()
    for _ in range(2):  # a good step begins a new row
        assert all(found.spoilt([BAD], None) for _ in range(MAX_IN_A_ROW - 1))
        assert not found.spoilt([GOOD], None)
    with pytest.raises(NotFinite, match=rf"trainer\.on_nan=skip: .* of {MAX_IN_A_ROW} steps in a row"):
        deque(found.spoilt([BAD], None) for _ in range(MAX_IN_A_ROW))


@pytest.mark.parametrize("good", [FORGET_AFTER, FORGET_AFTER - 1])
def test_rollbacks_of_long_ago_do_not_count(good: int) -> None:
    found, _ = guard("rollback")

    def lead_a_life() -> None:
        for step in range(2 * MAX_ROLLBACKS):
            found.count_rollback(step)
            for _ in range(good):
                found.spoilt([GOOD], None)

    if good == FORGET_AFTER:
        lead_a_life()
    else:
        with pytest.raises(NotFinite, match=f"step {MAX_ROLLBACKS} is not finite, after {MAX_ROLLBACKS} rollbacks"):
            lead_a_life()


class Net(nn.Module):
    """As a TrainStep is made of a model and a head; what a batch does to it is written in its label.

    0: nothing; 1: the loss is NaN; 2: the gradient is, and the loss is not.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.head.margin_at = lambda step: 0.0  # type: ignore[assignment]

    def forward(self, waveform: Tensor, lengths: Tensor, label: Tensor, *rest: Any, step: int) -> StepOutput:
        kind = int(label[0])
        loss = self.head(self.model(waveform)).float().square().mean()
        if kind == 1:
            loss = loss * float("nan")
        if kind == 2:  # the square root of zero has the slope infinity, and that times zero is NaN
            loss = loss + (0.0 * loss).sqrt()
        return StepOutput(loss, torch.tensor(1.0))


def trainer(folder: Path, kinds: list[int], **chosen: Any) -> Trainer:
    settings = Settings.model_construct(
        **{
            "precision": "fp32", "ema": None, "on_nan": "raise", "clip_norm": None, "accumulate": 1, "batch_size": 3,
            "timeout_minutes": 5.0, "checkpoint_minutes": None, "checkpoint_steps": None, "log_every": 1,
            "validate_every": 10**6, "average_last": None, "early_stop": None, "profile": False, "static_graph": False,
            **chosen,
        }
    )  # fmt: skip
    net: Any = Net()
    folder.mkdir()

    def batches(first: int) -> Iterator[Batch]:
        for step, kind in enumerate(kinds[first:], start=first):
            rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            none = torch.zeros(3, dtype=torch.int64)
            yield Batch(rows, none, torch.full((3,), kind), torch.full((3,), step), none, [], [])

    config = OmegaConf.create({"model": {"_target_": "spkexp.models.speaker.SpeakerModel"}, "seed": 0})
    tracking = Tracking(wandb="off", project="p", entity=None, group=None, tags=[])
    return Trainer(
        train_step=net,
        optimizer=torch.optim.AdamW(net.parameters(), lr=0.01),
        schedule=lambda step: 1.0,
        freezing=Freezing(net, {}, steps_per_epoch=10),
        batches=batches,
        validate=None,
        settings=settings,
        seed=0,
        meter=Meter(Strings(pl.Series([f"utt{step}" for step in range(len(kinds))]))),
        bad_files=BadFiles("raise", 0.0, 10),
        tracker=Tracker(folder, config, tracking, None),
        pruning=Pruning(None),
        origin=Origin(config, ["a", "b"], "digest", {}, steps_per_epoch=10, total_steps=len(kinds)),
        folder=folder,
        device=torch.device("cpu"),
        stop=StopRequest(),
    )


def state(found: Trainer) -> dict[str, Tensor]:
    """Weights, statistics, their moving average and the optimizer's moments, as they are now."""
    tensors = dict(found.train_step.state_dict())
    if found.average:
        tensors |= {f"average {name}": tensor for name, tensor in found.average.tensors.items()}
    for index, moments in found.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {index} {name}": tensor for name, tensor in moments.items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", [1, 2])
def test_a_rollback_brings_back_all_of_the_checkpoint(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = trainer(tmp_path / "until", [0] * 4, ema=0.9)
    until.fit()
    chosen = {"on_nan": "rollback", "ema": 0.9, "checkpoint_steps": 4}
    found = trainer(tmp_path / "run", [0] * 6 + [kind], **chosen)  # two good steps are lost, too
    seconds, one_step = [], found._one_step

    def timed(module: nn.Module, source: Iterator[Batch]) -> float:
        seconds.append(one_step(module, source))
        return seconds[-1]

    monkeypatch.setattr(found, "_one_step", timed)
    found.fit()
    assert same(state(found), state(until))
    assert (found.position.step, found.position.skipped_steps, found.position.rollbacks) == (7, 1, 1)
    assert found.position.seconds == pytest.approx(sum(seconds))  # what was undone took its time


@pytest.mark.parametrize("kind", [1, 2])
def test_a_skipped_step_leaves_nothing(tmp_path: Path, kind: int) -> None:
    until = trainer(tmp_path / "until", [0] * 6, ema=0.9)
    until.fit()
    found = trainer(tmp_path / "run", [0] * 6 + [kind], on_nan="skip", ema=0.9)
    found.fit()
    assert same(state(found), state(until))
    assert (found.position.step, found.position.skipped_steps, found.position.rollbacks) == (7, 1, 0)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_fp16_ends_where_gradients_are_never_finite(tmp_path: Path, policy: str) -> None:
    """Each is taken for an overflow of the loss scale, left out, and nothing is ever learned."""
    found = trainer(tmp_path / "run", [2] * 60, precision="fp16", on_nan=policy, clip_norm=5.0)
    before = state(found)
    with pytest.raises(NotFinite, match=r"step 27: the loss scale of fp16 is down to 0\.00049.*utterances utt26"):
        found.fit()
    assert same({name: state(found)[name] for name in ("head.weight",)}, {"head.weight": before["head.weight"]})


def test_fp16_may_lower_its_scale(tmp_path: Path) -> None:
    """As it does at the start of nearly every run, where 2¹⁶ is too much."""
    found = trainer(tmp_path / "run", [2] * 16 + [0] * 4, precision="fp16")
    found.fit()
    lines = [json.loads(line)["train"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss_scale"] for line in lines] == [2.0 ** max(0, 15 - step) for step in range(20)]
    assert not any("grad_norm" in line for line in lines)
    saved = checkpoint.load_state(tmp_path / "run" / "checkpoints" / "last")
    assert saved["scaler"]["scale"] == 1.0 > MIN_SCALE


def test_a_loss_that_is_not_finite_leaves_the_scale_alone(tmp_path: Path) -> None:
    found = trainer(tmp_path / "run", [0, 1, 0, 1, 0], precision="fp16", on_nan="skip", clip_norm=5.0)
    found.fit()
    without = trainer(tmp_path / "without", [0] * 5, precision="fp16")
    without.fit()
    assert found.scaler.get_scale() == without.scaler.get_scale()
    assert found.position.skipped_steps == 2


@pytest.mark.parametrize(
    ("limit", "policy", "there"), [(None, "raise", False), (5.0, "raise", True), (None, "skip", True)]
)
def test_the_norm_is_logged_where_it_is_computed(tmp_path: Path, limit: float | None, policy: str, there: bool) -> None:
    trainer(tmp_path / "run", [0] * 3, clip_norm=limit, on_nan=policy).fit()
    lines = [json.loads(line)["train"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("grad_norm", 0) > 0 for line in lines] == [there] * 3
    assert all(("grad_norm" in line) == there for line in lines)
