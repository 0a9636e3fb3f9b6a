"""The trace of a few steps: torch's profiler on real operations."""

import json
import logging
from pathlib import Path

import pytest
import torch

from spkexp.step_trace import STEPS, WAIT, WARM_UP, StepTrace


def run(folder: Path, steps: int, enabled: bool = True) -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    with StepTrace(enabled, folder, torch.device("cpu")) as trace:
        for _ in range(steps):
            torch.mm(weight, weight).sum().backward()
            trace.step()


def test_it_names_the_operations_of_its_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "profile ü"
    with caplog.at_level(logging.INFO):
        run(folder, WAIT + WARM_UP + STEPS + 3)
    assert "aten::mm" in (folder / "operations.txt").read_text(encoding="utf-8")
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert len(products) == 3 * STEPS  # one forward, two backward, and none of the other steps
    assert [record.message for record in caplog.records] == [f"trainer.profile: {STEPS} steps traced, see {folder}"]


@pytest.mark.parametrize("steps", [0, WAIT, WAIT + 1, WAIT + WARM_UP])
def test_a_run_too_short_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int) -> None:
    run(tmp_path / "profile", steps)
    (record,) = caplog.records
    assert record.message == f"trainer.profile: the run is shorter than {WAIT + WARM_UP + 1} steps; nothing was traced"
    assert not (tmp_path / "profile").exists()


def test_a_run_just_long_enough_is_traced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path / "profile", WAIT + WARM_UP + 1)
    assert [record.message for record in caplog.records] == [
        f"trainer.profile: 1 steps traced, see {tmp_path / 'profile'}"
    ]
    assert "aten::mm" in (tmp_path / "profile" / "operations.txt").read_text(encoding="utf-8")


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "profile", WAIT + WARM_UP + STEPS, enabled=False)
    assert not (tmp_path / "profile").exists()
