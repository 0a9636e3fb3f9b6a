"""What a run counts and says of files that it could not use."""

import logging

import pytest
import torch

from spkexp.data.dataset import Bad, Batch
from spkexp.errors import UserError
from spkexp.meter import BadFiles


def batch(rows: int, *bad: Bad) -> Batch:
    none = torch.zeros(rows, dtype=torch.int64)
    return Batch(torch.zeros(rows, 4), none, none, none, none, [], list(bad))


def test_recordings_are_counted_once_and_five_are_named(caplog: pytest.LogCaptureFixture) -> None:
    found = BadFiles("raise", 0.0, 10)
    for number in (*range(8), *range(8)):
        found.add(batch(2, Bad(f"noise{number}.wav", "broken", True)))
    assert not found.pending  # no utterance is lost by them
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
