"""What a run measures of its steps, and what it counts and says of files that it could not use."""

import logging
import time

import polars as pl
import pytest
import torch

from spkexp import distributed
from spkexp.data.dataset import Bad, Batch
from spkexp.data.utterances import Strings
from spkexp.errors import UserError
from spkexp.meter import BadFiles, Meter
from spkexp.step import StepOutput


def batch(rows: int, *bad: Bad) -> Batch:
    none = torch.zeros(rows, dtype=torch.int64)
    return Batch(torch.zeros(rows, 4), none, none, none, none, [], list(bad))


def test_recordings_are_counted_once_and_five_are_named(caplog: pytest.LogCaptureFixture) -> None:
    found = BadFiles("raise", 0.0, 10)
    for number in (*range(8), *range(8)):
        found.add(batch(2, Bad(f"noise{number}.wav", "broken", True)))
    assert found.pending  # the other processes are to know of them,
    found.settle()
    assert not found.pending
    assert len(found) == 0  # but no utterance is lost by them
    assert [record.message for record in caplog.records] == [
        f"augmentation: noise{number}.wav: broken; another was taken in its place" for number in range(5)
    ]
    assert found.recordings() == {f"noise{number}.wav" for number in range(8)}
    assert caplog.records[-1].message == "augmentation: 8 recordings could not be used where they were drawn"
    resumed = BadFiles("raise", 0.0, 10)
    resumed.load(found.state())
    assert resumed.recordings() == found.recordings()


def test_a_bank_of_which_nothing_can_be_used_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(UserError) as caught:
        BadFiles("skip", 1.0, 10).add(batch(0, Bad("augment", "/noise: none of 100 recordings can be used", True)))
    assert str(caught.value) == "/noise: none of 100 recordings can be used"
    assert caplog.records == []


def test_a_checkpoint_knows_what_other_processes_could_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = BadFiles("skip", 1.0, 10), BadFiles("skip", 1.0, 10)
    main.add(batch(2, Bad("hiss.wav", "broken", True)))
    other.add(batch(2, Bad("hum.wav", "broken", True), Bad("utt1", "broken")))
    assert other.pending  # so that `settle` is called in both

    def gathered(mine: object) -> list[object]:
        assert mine == (main._found, main._new_recordings)
        return [mine, (other._found, other._new_recordings)]

    monkeypatch.setattr(distributed, "gather", gathered)
    main.settle()
    assert main.state() == {"utterances": ["utt1"], "recordings": ["hiss.wav", "hum.wav"]}
    assert not main.pending


def parts(loss: float) -> list[tuple[Batch, StepOutput]]:
    return [(batch(4), StepOutput(torch.tensor(loss), torch.tensor(0.5)))]


def meter() -> Meter:
    return Meter(Strings(pl.Series(["utt0", "utt1"])))


def test_only_what_was_computed_is_reported() -> None:
    without, clipped = meter(), meter()
    for step, (loss, norm) in enumerate(((1.0, 3.0), (2.0, 5.0)), start=1):
        without.record(step, parts(loss), None, None)
        clipped.record(step, parts(loss), torch.tensor(norm), None)
    speeds = {"utterances_per_second", "data_wait"}
    assert without.report().keys() == {"loss", "accuracy"} | speeds
    found = clipped.report()
    assert found.keys() == {"loss", "accuracy", "grad_norm"} | speeds
    assert (found["loss"], found["accuracy"], found["grad_norm"]) == (1.5, 0.5, 4.0)


def test_before_the_first_step_there_is_no_norm_either() -> None:
    assert "grad_norm" not in meter().latest()


def test_the_loss_scale_is_the_newest() -> None:
    found = meter()
    for step, scale in enumerate((65536.0, 32768.0), start=1):
        found.record(step, parts(1.0), None, torch.tensor(scale))
    assert found.report()["loss_scale"] == 32768.0


def test_a_step_that_is_left_out_counts_as_time_alone() -> None:
    found = meter()
    time.sleep(0.05)
    assert 0.05 <= found.left_out() < 1
    assert found.left_out() < 0.05  # the clock goes on from there
    found.record(1, parts(3.0), None, None)
    report = found.report()
    assert report["loss"] == 3.0  # the mean over one step
    assert report["utterances_per_second"] <= 4 / 0.05
