"""A short soak; `make soak` is the long one."""

from pathlib import Path

import pytest

from tests.faults.soak import SCENES, soak


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    (tally,) = soak(4, seed=1, only=["one process"], folder=tmp_path, forked=True).values()
    assert tally.good, tally
    assert tally.kills == 4


@pytest.mark.slow
@pytest.mark.parametrize("scene", [name for name in SCENES if name != "one process"])
def test_killed_in_every_configuration(tmp_path: Path, scene: str) -> None:
    (tally,) = soak(4, seed=2, only=[scene], folder=tmp_path, forked=False).values()
    assert tally.good, tally
    assert tally.kills == 4
