"""What a trainer takes up from a checkpoint, and which weights become the best."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from spkexp import checkpoint
from spkexp.averages import MovingAverage
from spkexp.errors import UserError
from spkexp.meter import BadFiles
from spkexp.position import Position
from spkexp.savepoint import Origin, Savepoints
from spkexp.sections import Trainer as Settings
from spkexp.validation import Validation

CONFIG = OmegaConf.create({"model": {"_target_": "spkexp.models.speaker.SpeakerModel"}, "seed": 0})


class Step(nn.Module):
    """As a TrainStep is made of a model and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.head = nn.Linear(2, 2), nn.Linear(2, 3)

    def set(self, value: float) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


class Latest:
    """Of a meter, what validation shows."""

    def latest(self) -> dict[str, float]:
        return {"loss": 1.0, "utterances_per_second": 2.0}

    def flush(self) -> None:
        pass


def savepoints(folder: Path, banks: dict[str, str] | None = None, *, decay: float | None = None) -> Savepoints:
    step = Step()
    origin = Origin(CONFIG, ["a", "b", "c"], "digest", banks or {}, steps_per_epoch=5, total_steps=10)
    optimizer = torch.optim.Adam(step.parameters())
    average = None if decay is None else MovingAverage(step, decay)
    files, scaler = BadFiles("skip", 1.0, 10), torch.amp.GradScaler("cpu", enabled=False)
    return Savepoints(folder, origin, step, optimizer, scaler, average, files, Position())  # type: ignore[arg-type]


def test_a_bank_with_other_files_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = savepoints(tmp_path, {"augment.waveform.noise": "1", "augment.waveform.rooms": "2"})
    first.position.step = 3
    first.write("last")
    with caplog.at_level(logging.WARNING):
        savepoints(tmp_path, dict(first.origin.bank_digests)).load(tmp_path / "checkpoints" / "last")
        assert caplog.records == []
        other = savepoints(tmp_path, {"augment.waveform.noise": "1", "augment.waveform.rooms": "3"})
        other.load(tmp_path / "checkpoints" / "last")
    (record,) = caplog.records
    assert record.message.startswith("resume: augment.waveform.rooms has other files than the run began with")
    assert other.position.step == 3


def test_another_number_of_processes_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("spkexp.distributed.world_size", lambda: 4)
        savepoints(tmp_path).write("last")
    savepoints(tmp_path).load(tmp_path / "checkpoints" / "last")
    (record,) = caplog.records
    assert "1 processes where there were 4: the batches stay the same, in the same order" in record.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_digest": "other"}, "the training utterances are not those"),
        ({"steps_per_epoch": 4}, "the training utterances are not those"),
        ({"total_steps": 2}, "the run is at step 3, past the end at 2"),
    ],
)
def test_a_position_that_means_nothing_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    first = savepoints(tmp_path)
    first.position.step = 3
    first.write("last")
    other = savepoints(tmp_path)
    other.origin = Origin(**{**other.origin.__dict__, **change})
    with pytest.raises(UserError, match=message):
        other.load(tmp_path / "checkpoints" / "last")


def validation(points: Savepoints, measure: Callable[[Any], dict[str, Any]] | None, **settings: Any) -> Validation:
    chosen = {"ema": None, "average_last": None, "early_stop": None, "validate_every": 1, **settings}
    made = Settings.model_construct(**chosen)
    step: Any = points.train_step
    return Validation(measure, step, points.average, points, made, Latest(), 5, 10)  # type: ignore[arg-type]


def best(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load_tensors(folder / "checkpoints" / "best")[0]


def test_the_best_of_weights_and_average_is_kept(tmp_path: Path) -> None:
    points = savepoints(tmp_path, decay=0.5)
    step: Any = points.train_step
    # The nearer the weight is to 3, the better: that is the average at first, and then the weights.
    checks = validation(points, lambda stop: {"eer": abs(float(step.model.weight.detach()[0, 0]) - 3.0)}, ema=0.5)
    assert points.average is not None
    for value, of_average, expected in ((5.0, 3.5, "ema"), (3.25, 4.0, "weights"), (9.0, 8.0, "weights")):
        points.position.step += 5
        step.set(value)
        for tensor in points.average.tensors.values():
            tensor.fill_(of_average)
        found = checks.run(lambda: False)
        assert found["val"]["eer"] == pytest.approx(abs(value - 3.0))
        assert found["val_ema"]["eer"] == pytest.approx(abs(of_average - 3.0))
        assert points.position.best["weights"] == expected
        assert float(step.model.weight.detach()[0, 0]) == value  # training goes on from its own
    assert points.position.best == {"step": 10, "value": 0.25, "weights": "weights"}
    assert points.position.since_best == 1
    assert torch.equal(best(tmp_path)["weight"], torch.full((2, 2), 3.25))


def test_an_averages_checkpoint_knows_the_weights_that_are_trained(tmp_path: Path) -> None:
    """It is the last resort of a resume where the others are damaged."""
    points = savepoints(tmp_path, decay=0.5)
    step: Any = points.train_step
    assert points.average is not None
    points.position.step = 5
    step.set(5.0)
    for tensor in points.average.tensors.values():
        tensor.fill_(3.0)
    validation(points, lambda stop: {"eer": abs(float(step.model.weight.detach()[0, 0]) - 3.0)}, ema=0.5).run(
        lambda: False
    )
    assert torch.equal(best(tmp_path)["weight"], torch.full((2, 2), 3.0))
    other = savepoints(tmp_path, decay=0.5)
    other.load(tmp_path / "checkpoints" / "best")
    assert torch.equal(other.train_step.model.weight, torch.full((2, 2), 5.0))
    assert other.average is not None
    assert torch.equal(other.average.tensors["model.weight"], torch.full((2, 2), 3.0))


def test_the_last_ones_are_averaged_at_the_end(tmp_path: Path) -> None:
    points = savepoints(tmp_path)
    step: Any = points.train_step
    seen = []

    def measure(stop: object) -> dict[str, float]:
        seen.append(float(step.model.weight.detach()[0, 0]))
        return {"eer": abs(seen[-1] - 3.0)}

    checks = validation(points, measure, average_last=2)
    for number, value in enumerate((100.0, 2.0, 4.0), start=1):
        points.position.step = min(10, 4 * number)
        step.set(value)
        found = checks.run(lambda: False)
    assert seen == [100.0, 2.0, 4.0, 3.0]
    assert found["val_average"]["eer"] == 0.0
    assert points.position.best == {"step": 10, "value": 0.0, "weights": "average"}
    assert torch.equal(best(tmp_path)["weight"], torch.full((2, 2), 3.0))


def test_without_trials_the_newest_average_is_the_best(tmp_path: Path) -> None:
    points = savepoints(tmp_path, decay=0.5)
    step: Any = points.train_step
    assert points.average is not None
    checks = validation(points, None, ema=0.5)
    for value in (1.0, 2.0):
        points.position.step += 5
        step.set(value + 10)
        points.average.tensors["model.weight"].fill_(value)
        assert checks.due()
        assert checks.run(lambda: False) == {}
        assert not checks.due()
    assert points.position.best == {"step": 10, "value": None, "weights": "ema"}
    assert torch.equal(best(tmp_path)["weight"], torch.full((2, 2), 2.0))


def test_it_stops_after_validations_without_a_better_one(tmp_path: Path) -> None:
    points = savepoints(tmp_path)
    values = iter((0.3, 0.2, 0.25, 0.2))
    checks = validation(points, lambda stop: {"eer": next(values)}, early_stop=2)
    ends = []
    for step in (1, 2, 3, 4):
        points.position.step = step
        checks.run(lambda: False)
        ends.append(checks.finished())
    assert ends == [False, False, False, True]  # an equal one is no better one
    assert points.position.best["step"] == 2


def test_an_average_that_is_better_does_not_undo_an_early_stop(tmp_path: Path) -> None:
    points = savepoints(tmp_path)
    step: Any = points.train_step
    checks = validation(
        points, lambda stop: {"eer": abs(float(step.model.weight.detach()[0, 0]) - 3.0)}, average_last=2, early_stop=1
    )
    for number, value in enumerate((2.0, 4.5), start=1):
        points.position.step = number
        step.set(value)
        assert not checks.finished()
        found = checks.run(lambda: False)
    assert found["val_average"]["eer"] == pytest.approx(0.25)
    assert points.position.best["weights"] == "average"
    assert checks.finished()
