"""A loss that is not a number: the run stops, leaves the step out, or goes back, as trainer.on_nan says, and counts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.conftest import Victim
from tests.faults.test_ranks import fault, struck
from tests.faults.traces import differences, metrics, saved_step

STRUCK = "spk{}-{}".format(*divmod(struck(0), 8))  # its name: each speaker has 8 utterances


def not_finite(once: Path | None = None) -> str:
    return fault("NaN", once or Path("null"), rank=0).replace("'null'", "null")


def test_raise_names_the_utterance_and_keeps_good_weights(victim: Victim) -> None:
    run = victim.start(not_finite(), "trainer.on_nan=raise")
    assert run.wait() == 2, run.text()
    assert STRUCK in run.text()
    assert "Traceback" not in run.text()
    victim.assert_clean(run)
    assert 8 <= saved_step(victim.folder) <= 11
    tensors = load_file(victim.folder / "checkpoints" / "last" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize("policy", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_the_run_goes_on_and_counts(victim: Victim, policy: str) -> None:
    run = victim.start(not_finite(), f"trainer.on_nan={policy}")
    assert run.wait() == 0, run.text()
    victim.assert_clean(run)
    assert STRUCK in run.text()
    results = json.loads((victim.folder / "results.json").read_text())
    assert results["skipped_steps"] == 1
    assert results["rollbacks"] == (policy == "rollback")
    assert results["steps"] == 20
    steps = [line["step"] for line in metrics(victim.folder) if "train" in line]
    assert steps == list(range(1, 21))


@pytest.mark.slow
def test_a_rollback_brings_back_weights_average_and_moments(victim: Victim, corpus: Path, tmp_path: Path) -> None:
    """The step of AT is the twelfth, and the checkpoint before it is that of the eighth."""
    common = (not_finite(), "trainer.ema=0.9", "trainer.checkpoint_steps=8", "trainer.max_steps=12")
    ended = Victim(corpus, tmp_path / "ended")
    first = ended.start(*common, "trainer.on_nan=raise")
    assert first.wait() == 2, first.text()
    assert saved_step(ended.folder) == 8
    second = victim.start(*common, "trainer.on_nan=rollback")
    assert second.wait() == 0, second.text()
    assert "the weights are those of step 8 again" in second.text()
    assert saved_step(victim.folder) == 12
    checkpoints = [run.folder / "checkpoints" / "last" for run in (ended, victim)]
    weights = [load_file(place / "model.safetensors") for place in checkpoints]
    assert differences(*weights) == []
    states = [torch.load(place / "train_state.pt", weights_only=True) for place in checkpoints]
    for part in ("ema", "optimizer"):
        moved = [{**state[part], "param_groups": None} for state in states]  # the learning rate is the next step's
        assert differences(*moved, part) == []
    assert states[1]["position"]["rollbacks"] == 1
