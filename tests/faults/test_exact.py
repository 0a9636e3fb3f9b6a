"""Stopped at a step and resumed, a run ends with the weights of the one that was not stopped, bit for bit."""

import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from spkexp.compose import compose_config
from spkexp.counter import generator
from spkexp.data.dataset import Parts
from spkexp.data.sampler import BucketSampler, RandomSampler, ShardSampler, SpeakerSampler, WeightedSampler
from spkexp.experiment import run_experiment
from spkexp.interrupt import Stopped, StopRequest
from spkexp.resume import config_to_resume
from spkexp.step import StepOutput, TrainStep
from tests.faults.corpus import arguments, write_corpus
from tests.faults.soak import WHOLE
from tests.faults.traces import differences, result

STEPS = 7
# Name: (settings, data.num_workers before and after the stop). Between them they have every sampler and what carries
# state from step to step.
QUICK = {
    "plain": ([], 0, 0),
    "accumulation, EMA, weighted": (["trainer.accumulate=2", "trainer.ema=0.9", "data/sampler=weighted"], 0, 0),
    "bf16, speakers": (["trainer.precision=bf16", "data/sampler=speakers", "loss=am_softmax"], 0, 0),
    "bucketed whole utterances, noise and rooms": ([*WHOLE, "augment=simulated"], 0, 0),
    "shards, speed copies, momentum": (["data/sampler=shards", "augment=speed", "trainer/optimizer=sgd"], 0, 0),
    "workers come": (["augment=simulated"], 0, 2),
}
FULL = {
    "workers stay": (["augment=simulated", "trainer.average_last=2"], 2, 2),
    "workers go": (["augment=simulated"], 4, 0),
    "workers change": (["augment=full", "augment.speeds=[0.9]", "augment.waveform=null"], 2, 4),
    "one copy of several": (["augment=simulated", "augment.speeds=[0.9,1.1]", "augment.speed_copies=one"], 0, 2),
    "dropout": (["model=transformer"], 0, 0),
    "accumulation, bf16, EMA, average": (
        ["trainer.accumulate=4", "trainer.precision=bf16", "trainer.ema=0.9", "trainer.average_last=2"], 0, 2,
    ),
    "everything": (
        [*WHOLE, "augment=simulated", "trainer.accumulate=2", "trainer.precision=bf16", "trainer.ema=0.9"], 2, 0,
    ),
}  # fmt: skip


class Crash(Exception):
    """The end without a warning: what was not saved is gone."""


def crash() -> None:
    raise Crash


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("exact") / "a corpus ü")


@pytest.fixture(autouse=True)
def _keep_logging() -> Any:
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    for handler in [handler for handler in handlers if handler not in root.handlers]:
        root.addHandler(handler)


def settings(corpus: Path, folder: Path, more: list[str], workers: int) -> DictConfig:
    own = [f"trainer.max_steps={STEPS}", "trainer.checkpoint_steps=3", "trainer.validate_every=1"]
    given = arguments(corpus, folder, *more, *own, f"data.num_workers={workers}")
    return compose_config(given)


def run(cfg: DictConfig, resumed: bool) -> None:
    with StopRequest() as stop:
        run_experiment(cfg, torch.device("cpu"), resumed, stop)


def broken_at(step: int, happens: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """From now on, `happens` in the middle of the step after `step` steps, once."""
    forward = TrainStep.forward
    struck: list[bool] = []

    def strike(self: TrainStep, *inputs: Any, **named: Any) -> StepOutput:
        if named["step"] == step and not struck:
            struck.append(True)
            happens()
        return forward(self, *inputs, **named)

    patch.setattr(TrainStep, "forward", strike)


def check(corpus: Path, folder: Path, row: tuple[list[str], int, int], at: int, happens: Callable[[], None]) -> None:
    more, before, after = row
    torch.set_num_threads(1)
    run(settings(corpus, folder / "whole", more, before), False)
    with pytest.MonkeyPatch.context() as patch:
        broken_at(at, happens, patch)
        with pytest.raises((Crash, Stopped)):
            run(settings(corpus, folder / "broken", more, before), False)
    run(config_to_resume(str(folder / "broken"), [f"data.num_workers={after}"]), True)
    log = (folder / "broken" / "train.log").read_text(encoding="utf-8")
    found = re.search(r"training: \d+ steps, (\d+) an epoch", log)
    assert found
    epoch = int(found[1])
    # A signal lets the step end and saves it; after a crash the last checkpoint is that of a multiple of three, or of
    # an epoch's end.
    began = at + 1 if happens is terminate else max(at // 3 * 3, at // epoch * epoch)
    assert (f"resumed at step {began} of {STEPS}" if began else "resumed: there is no checkpoint yet") in log
    assert differences(result(folder / "whole"), result(folder / "broken")) == []


@pytest.mark.parametrize("name", QUICK)
def test_exact(corpus: Path, tmp_path: Path, name: str) -> None:
    at = 1 + list(QUICK).index(name) % 5
    check(corpus, tmp_path, QUICK[name], at, crash if at % 2 else terminate)


@pytest.mark.slow
@pytest.mark.parametrize("happens", [crash, terminate])
@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("name", [*QUICK, *FULL])
def test_exact_everywhere(corpus: Path, tmp_path: Path, name: str, at: int, happens: Callable[[], None]) -> None:
    check(corpus, tmp_path, {**QUICK, **FULL}[name], at, happens)


LABELS = np.repeat(np.arange(6), 16).astype(np.int32)
SAMPLERS = {
    "random": RandomSampler(96, 24),
    "weighted": WeightedSampler(LABELS, 24, 1.0),
    "speakers": SpeakerSampler(LABELS, 24, 2.0, utterances_per_speaker=4, epoch_hours=None),
    "bucketed": BucketSampler(generator(1).uniform(1, 9, 96), 24, None, batch_seconds=120.0, buckets=3, multiple_of=12),
    "shards": ShardSampler(np.repeat(np.arange(12), 8).astype(np.int32), 24, 3),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_any_number_of_processes_sees_the_same_batches_in_the_same_order(name: str, accumulate: int) -> None:
    """From any step on, with one, two, three processes: what they work through makes up the same global batches."""
    sampler = SAMPLERS[name]
    steps = range(3, 2 * sampler.steps_per_epoch + 1)
    seen = []
    for world in (1, 2, 3):
        ranks = [list(Parts(sampler, 5, steps, accumulate, world, rank)) for rank in range(world)]
        parts = [part for step in zip(*ranks, strict=True) for part in step]  # rank by rank, part by part
        batches = [parts[i : i + accumulate * world] for i in range(0, len(parts), accumulate * world)]
        seen.append([[key for part in batch for key in part] for batch in batches])
    assert len(seen[0]) == len(steps)
    assert seen[0] == seen[1] == seen[2]
    assert len({tuple(batch) for batch in map(tuple, seen[0])}) == len(steps)
