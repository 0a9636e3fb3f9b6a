"""One process of several fails, is killed, or hangs: all end in time, nothing is lost, and the run goes on."""

import json
from pathlib import Path

import pytest

from spkexp.data.sampler import RandomSampler, parts_of_batch
from tests.faults.conftest import EPOCHS, Victim
from tests.faults.runs import Run
from tests.faults.traces import metrics, saved_step

SEED, EPOCH = 0, 2
UTTERANCES, BATCH, PROCESSES = 32, 8, 2


def struck(rank: int) -> int:
    """Number of the utterance at which the fault strikes, in the part of the batch that `rank` has."""
    batch = RandomSampler(UTTERANCES, BATCH).epoch(SEED, EPOCH)[0]
    (own,) = parts_of_batch(batch, 1, PROCESSES, rank)
    return int(own[0])


def fault(kind: str, once: Path, rank: int = 1) -> str:
    """In the ninth step, the first of the third epoch."""
    at = [SEED, EPOCH, struck(rank)]
    node = f"_target_: tests.faults.injected.{kind}, at: {at}, rank: {rank}, once: '{once}'"
    return f"augment.waveform={{{node}}}"


def launched(victim: Victim, launcher: str) -> list[str]:
    victim.forked, victim.processes = False, 2 if launcher == "torchrun" else 1
    return ["trainer.nproc=2"] if launcher == "nproc" else []


@pytest.mark.slow
def test_a_killed_rank_is_started_again(victim: Victim, tmp_path: Path) -> None:
    run = victim.start(*launched(victim, "nproc"), "trainer.max_restarts=1", fault("Kill", tmp_path / "struck"))
    assert run.wait() == 0, run.text()
    victim.assert_clean(run)
    assert (tmp_path / "struck").exists()
    assert [line["step"] for line in metrics(victim.folder) if "train" in line] == list(range(1, 21))
    assert json.loads((victim.folder / "results.json").read_text())["steps"] == 20


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes, and nothing happens."""
    place = tmp_path_factory.mktemp("two")
    (place / "struck").touch()
    two = Victim(corpus, place / "whole", forked=False, processes=2)
    run = two.start(EPOCHS, fault("Kill", place / "struck"))
    assert run.wait() == 0, run.text()
    return two.folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["Raise", "Kill", "Hang"])
@pytest.mark.parametrize("launcher", ["nproc", "torchrun"])
def test_all_end_and_the_run_goes_on(
    victim: Victim, undisturbed: Path, tmp_path: Path, launcher: str, kind: str, rank: int
) -> None:
    given = launched(victim, launcher)
    run = victim.start(*given, "trainer.timeout_minutes=0.1", fault(kind, tmp_path / "struck", rank))
    assert run.wait(90) not in (0, 2, 75), run.text()
    victim.assert_clean(run)
    assert (tmp_path / "struck").exists()
    assert saved_step(victim.folder) == 8
    _assert_it_says_what_happened(kind, rank, victim.folder, run)
    victim.assert_finishes_like(undisturbed, victim.resume())


def _assert_it_says_what_happened(kind: str, rank: int, folder: Path, run: Run) -> None:
    if kind == "Raise":
        assert "an injected error" in run.text()
    if kind == "Kill":
        assert "SIGKILL" in run.text() or "Signal 9" in run.text()
    if kind == "Hang":
        stacks = (folder / "stacks" / f"rank-{rank}.txt").read_text(encoding="utf-8")
        assert "injected.py" in stacks
        assert "strike" in stacks
        assert "the run hangs here" in stacks  # the one that hangs is told apart from the one that waits for it
        assert "made no progress" in run.text()


@pytest.mark.slow
def test_a_hang_without_other_processes(victim: Victim, whole: Path, tmp_path: Path) -> None:
    run = victim.start("trainer.timeout_minutes=0.1", fault("Hang", tmp_path / "struck", rank=0))
    assert run.wait(60) not in (0, 2, 75), run.text()
    victim.assert_clean(run)
    assert "strike" in (victim.folder / "stacks" / "rank-0.txt").read_text(encoding="utf-8")
    victim.assert_finishes_like(whole, victim.resume())
