"""A run's checkpoints are validated while it trains: which of them, which is the best, and what a kill leaves."""

import json
import logging
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from spkexp import checkpoint, durable
from spkexp import watch as watching
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.watch import watch
from spkexp.whole_file import write_json

PER_EPOCH = 7  # steps


class Training:
    """A run whose weight is its epoch. It goes on by what `moves` says, whenever the watch would sleep."""

    def __init__(self, folder: Path, moves: list[int | str]) -> None:
        self.folder, self.moves = folder, moves
        folder.mkdir()
        self.config = OmegaConf.create({"model": {"size": 1}})
        OmegaConf.save(self.config, folder / "config.yaml", resolve=True)
        self.slept = 0

    def save(self, step: int) -> None:
        model, head = nn.Linear(1, 1), nn.Linear(1, 1)
        nn.init.constant_(model.weight, step / PER_EPOCH)
        state = {"position": {"step": step}, "steps_per_epoch": PER_EPOCH, "optimizer": torch.zeros(5)}
        checkpoint.save(self.folder / "checkpoints" / "last", model, head, self.config, ["a"], state)

    def finish(self) -> None:
        write_json(self.folder / "results.json", {"train_seconds": 1.0})

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        assert self.slept < 50, "the watch waits for ever"
        if self.moves:
            self.move(self.moves.pop(0))

    def move(self, what: int | str) -> None:
        if isinstance(what, int):
            self.save(what * PER_EPOCH)
        elif what == "finish":
            self.finish()
        elif what == "interrupt":
            raise KeyboardInterrupt


Scores = dict[int, float]  # EER by epoch


def measure_by(scores: Scores, seen: list[int] | None = None, then: Callable[[int], None] = lambda _: None) -> Any:
    """The EER of a checkpoint by what its weight says of its epoch."""

    def measure(folder: Path) -> dict[str, Any]:
        tensors, _ = checkpoint.load_tensors(checkpoint.find(folder))
        epoch = round(float(tensors["weight"]))
        if seen is not None:
            seen.append(epoch)
        then(epoch)
        return {"eer": scores.get(epoch, 0.5), "min_dcf": {"0.01": 2 * scores.get(epoch, 0.25)}}

    return measure


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """train(moves) is a Training that goes on while the watch sleeps."""
    caplog.set_level(logging.INFO, logger="spkexp")

    def start(*moves: int | str) -> Training:
        training = Training(tmp_path / "a run ü", list(moves))
        monkeypatch.setattr(watching, "time", type("Time", (), {"sleep": training.sleep, "monotonic": time.monotonic}))
        return training

    return start


def lines(training: Training) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (training.folder / "watch/val/metrics.jsonl").read_text().splitlines()]


def best_epoch(training: Training) -> float:
    """Of the checkpoint in best/, by its weight."""
    folder = training.folder / "watch/val/best"
    assert checkpoint.verify(folder) is None
    return float(checkpoint.load_tensors(checkpoint.find(folder))[0]["weight"])


def test_every_second_epoch_and_the_last(
    train: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    training, seen = train(1, 2, 3, 4, 5, 6, 7, "finish"), []
    watch(training.folder, "val", 2, measure_by({2: 0.3, 4: 0.1, 6: 0.2, 7: 0.4}, seen))
    assert seen == [2, 4, 6, 7]
    assert lines(training)[1] == {"epoch": 4.0, "step": 28, "eer": 0.1, "min_dcf": {"0.01": 0.2}}
    assert best_epoch(training) == 4
    assert json.loads((training.folder / "watch/val/best/validation.json").read_text()) == lines(training)[1]
    assert sorted(path.name for path in (training.folder / "watch/val").iterdir()) == [".lock", "best", "metrics.jsonl"]
    begin, *said = [re.sub(r"  scored.*", "", record.getMessage()) for record in caplog.records]
    assert begin.endswith("run ü: its checkpoint of every 2 epochs is validated on val as it comes")
    assert said == [
        "epoch 2  EER 30.00 % (best)", "epoch 4  EER 10.00 % (best)", "epoch 6  EER 20.00 %", "epoch 7  EER 40.00 %"
    ]  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" *\d", line)]
    assert rows == [
        ["2", "14", "30.00", "0.600"], ["4", "28", "10.00", "0.200", "best"],
        ["6", "42", "20.00", "0.400"], ["7", "49", "40.00", "0.800"],
    ]  # fmt: skip


def test_a_run_shorter_than_the_interval_is_measured_once(train: Any) -> None:
    training, seen = train(1, 2, "finish"), []
    watch(training.folder, "val", 5, measure_by({}, seen))
    assert seen == [2]


def test_a_run_that_is_at_its_end_already(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    training, seen = train(), []
    training.save(20 * PER_EPOCH)
    training.finish()
    watch(training.folder, "val", 5, measure_by({}, seen))
    assert seen == [20]
    assert "not measured: the checkpoints of epoch 5, 10, 15 were replaced" in caplog.text
    watch(training.folder, "val", 5, measure_by({}, seen))  # nothing is done twice
    assert seen == [20]


def test_what_training_overtakes_is_reported(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    """While one is scored, the run replaces it: what is scored is the copy, and the next is the newest."""
    training, seen = train(2, "finish"), []

    def overtake(epoch: int) -> None:
        if epoch == 2:
            for later in range(3, 10):
                training.save(later * PER_EPOCH)

    watch(training.folder, "val", 2, measure_by({2: 0.1, 9: 0.2}, seen, overtake))
    assert seen == [2, 9]
    assert best_epoch(training) == 2  # though the run has long removed that checkpoint
    assert "not measured: the checkpoints of epoch 4, 6 were replaced" in caplog.text


def test_checkpoints_within_an_epoch_are_not_yet_due(train: Any) -> None:
    training, seen = train(), []
    training.moves = [1, "finish"]
    training.save(PER_EPOCH - 1)
    watch(training.folder, "val", 1, measure_by({}, seen))
    assert [line["step"] for line in lines(training)] == [PER_EPOCH]


def test_a_watch_that_is_started_again_goes_on(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    training, seen = train(1, 2, "interrupt"), []
    with pytest.raises(KeyboardInterrupt):
        watch(training.folder, "val", 1, measure_by({1: 0.1, 2: 0.3}, seen))
    training.moves = [3, "finish"]
    watch(training.folder, "val", 1, measure_by({3: 0.2}, seen))
    assert seen == [1, 2, 3]
    assert [line["epoch"] for line in lines(training)] == [1, 2, 3]
    assert best_epoch(training) == 1

    def interrupt(epoch: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(training.folder, "test", 1, measure_by({}, then=interrupt))
    assert [path.name for path in (training.folder / "watch/test").iterdir()] == [".lock"]  # no copy takes room
    assert "going on after epoch 2" in caplog.text


@pytest.mark.parametrize("spot", ["replaced", "renamed"])
def test_a_kill_after_the_best_was_replaced_loses_nothing(
    train: Any, monkeypatch: pytest.MonkeyPatch, spot: str
) -> None:
    training, seen = train(1, 2, 3, "finish"), []
    replace = durable.replace

    def killed(partial: Path, folder: Path, former: Path | None) -> None:
        if not (folder / "validation.json").exists():
            replace(partial, folder, former)
        elif spot == "renamed":
            partial.rename(durable.beside(folder, "new"))
            raise SystemExit
        else:
            replace(partial, folder, former)
            raise SystemExit

    monkeypatch.setattr(durable, "replace", killed)
    with pytest.raises(SystemExit):
        watch(training.folder, "val", 1, measure_by({1: 0.4, 2: 0.1, 3: 0.2}, seen))
    monkeypatch.setattr(durable, "replace", replace)
    watch(training.folder, "val", 1, measure_by({3: 0.2}, seen))
    assert seen == [1, 2, 3]
    assert [line["eer"] for line in lines(training)] == [0.4, 0.1, 0.2]
    assert best_epoch(training) == 2


def test_a_checkpoint_that_is_replaced_while_it_is_taken(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the files are of the one, half of the other: the checksums tell, and it is taken again."""
    training, seen = train(1, "finish"), []
    link, calls = watching._link, []

    def interfering(file: Path, target: Path) -> None:
        calls.append(file.name)
        if len(calls) == 3:
            training.save(2 * PER_EPOCH)
        link(file, target)

    monkeypatch.setattr(watching, "_link", interfering)
    watch(training.folder, "val", 1, measure_by({}, seen))
    assert seen == [2]
    assert lines(training)[0]["step"] == 2 * PER_EPOCH  # of the position, too
    assert len(calls) == 2 * len(checkpoint.FILES)


def test_a_training_at_full_speed(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are replaced all the time by another thread: every copy is of one of them alone."""
    training, seen, saved = train(), [], []
    monkeypatch.setattr(watching, "time", time)

    def run() -> None:
        while len(saved) < 30 or (len(seen) < 3 and len(saved) < 10_000):
            saved.append(len(saved) + 1)
            training.save(saved[-1] * PER_EPOCH)
        training.finish()

    measure = measure_by({20: 0.1}, seen)

    def checked(folder: Path) -> dict[str, Any]:
        assert checkpoint.verify(folder) is None
        return measure(folder)

    thread = threading.Thread(target=run)
    thread.start()
    watch(training.folder, "val", 1, checked, poll_seconds=0.0)
    thread.join()
    assert [line["epoch"] for line in lines(training)] == seen
    assert seen[-1] == saved[-1]
    assert len(seen) > 2
    assert best_epoch(training) == (20 if 20 in seen else seen[0])


def test_the_copy_is_the_watchs_own(train: Any) -> None:
    """Nothing that is done to it reaches the run's checkpoint, with which it shares its files."""
    training = train("finish")
    training.save(PER_EPOCH)
    last = training.folder / "checkpoints/last"
    before = {file.name: file.read_bytes() for file in last.iterdir()}
    watch(training.folder, "val", 1, measure_by({}))
    assert {file.name: file.read_bytes() for file in last.iterdir()} == before
    assert (training.folder / "watch/val/best/model.safetensors").stat().st_nlink == 2  # no second copy on the disk
    assert subprocess.run(
        ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=training.folder / "watch/val/best", check=False
    ).returncode == 0  # fmt: skip


def test_a_damaged_checkpoint_is_waited_out(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    training, seen = train(*["nothing"] * 8, 2, "finish"), []
    training.save(PER_EPOCH)
    (training.folder / "checkpoints/last/model.safetensors").write_bytes(b"spoilt")
    watch(training.folder, "val", 1, measure_by({}, seen))
    assert seen == [2]
    assert caplog.text.count("model.safetensors is truncated") == 1


def test_two_of_one_name_exclude_each_other(train: Any) -> None:
    training = train()
    training.save(PER_EPOCH)
    training.finish()
    with hold(training.folder / "watch/val/.lock", None, ""):
        with pytest.raises(UserError, match=r"watch/val is being written by process \d+ .*, which watches"):
            watch(training.folder, "val", 1, measure_by({}))
        watch(training.folder, "test", 1, measure_by({}))
    assert (training.folder / "watch/test/best").is_dir()


def test_a_run_that_nobody_trains_is_waited_for(
    train: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "SILENT_SECONDS", -1.0)
    training = train("nothing", "nothing", 2, "nothing", "interrupt")
    (training.folder / "metrics.jsonl").touch()
    training.save(PER_EPOCH)
    with hold(training.folder / ".lock", None, ""):
        with pytest.raises(KeyboardInterrupt):
            watch(training.folder, "val", 1, measure_by({}))
        assert "nobody trains it" not in caplog.text
    training.moves = ["nothing", "nothing", "nothing", 3, "nothing", "nothing", "interrupt"]
    with pytest.raises(KeyboardInterrupt):
        watch(training.folder, "val", 1, measure_by({}))
    # Once before the third epoch, and once after it.
    assert caplog.text.count("nobody trains it now, and it is not at its end") == 2


@pytest.mark.parametrize(
    ("every", "folder", "expected"),
    [(0, "", "every: .* at least 1"), (1, "checkpoints/last", "is no run folder"), (1, "none", "is no run folder")],
)
def test_mistakes(train: Any, every: int, folder: str, expected: str) -> None:
    training = train()
    training.save(PER_EPOCH)
    with pytest.raises(UserError, match=expected):
        watch(training.folder / folder, "val", every, measure_by({}))


def test_a_line_that_is_none_is_named(train: Any) -> None:
    training = train()
    (training.folder / "watch/val").mkdir(parents=True)
    (training.folder / "watch/val/metrics.jsonl").write_text('{"epoch": 1, "step": 7, "eer": 0.1}\n{"epo\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: says nothing of a validation"):
        watch(training.folder, "val", 1, measure_by({}))
