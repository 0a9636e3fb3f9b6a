"""The checkpoints of a training: what goes into them, and how training goes on from one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer

from spkexp import checkpoint, distributed, kept_weights
from spkexp.averages import MovingAverage
from spkexp.errors import UserError
from spkexp.meter import BadFiles
from spkexp.position import Position
from spkexp.step import TrainStep

log = logging.getLogger(__name__)
WEIGHTS, EMA, AVERAGE = "weights", "ema", "average"  # whose weights are in a checkpoint
RECENT = "recent"  # weights that are kept to be averaged
_MODEL, _HEAD, _DISTILLATION = "model.", "head.", "distillation."  # as the parts of a TrainStep are called


@dataclass(frozen=True)
class Origin:
    """What a checkpoint's position is a position in."""

    config: DictConfig
    labels: list[str]
    data_digest: str
    bank_digests: Mapping[str, str]  # of each bank of recordings, by its place in the config
    steps_per_epoch: int
    total_steps: int
    teacher_digest: str | None = None  # of the weights that distill.teacher has


class Savepoints:
    """Writes checkpoints/NAME of the run in `folder`, by the main process, and loads them, by all."""

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        train_step: TrainStep,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        average: MovingAverage | None,
        bad_files: BadFiles,
        position: Position,
    ) -> None:
        self.folder, self.origin, self.train_step = folder / "checkpoints", origin, train_step
        self.optimizer, self.scaler, self.average = optimizer, scaler, average
        self.bad_files, self.position = bad_files, position

    def write(self, name: str, weights: str = WEIGHTS, own: Mapping[str, Tensor] | None = None) -> None:
        """weights: whose values the model has now; own: where they are an average's, those that are trained."""
        if not distributed.is_main():
            return
        state = {
            "position": self.position.state(),
            "data_digest": self.origin.data_digest,
            "bank_digests": dict(self.origin.bank_digests),
            "steps_per_epoch": self.origin.steps_per_epoch,
            "teacher_digest": self.origin.teacher_digest,
            "processes": distributed.world_size(),
            "bad_files": self.bad_files.state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.average.state() if self.average else None,
            "weights": weights,
            "trained": dict(own) if own is not None else None,
            "distillation": _of_part(_DISTILLATION, own if own is not None else self.train_step.state_dict()),
        }
        step, origin = self.train_step, self.origin
        checkpoint.save(self.folder / name, step.model, step.head, origin.config, origin.labels, state)

    def keep(self, count: int) -> None:
        """Keep these weights, of the last `count`, for `averaged`."""
        if distributed.is_main():
            step = self.train_step
            kept_weights.save(self.folder / RECENT, self.position.step, step.model, step.head, count)

    def averaged(self) -> dict[str, Tensor]:
        """The mean of what `keep` kept, by the names of the TrainStep's state_dict."""
        files = distributed.broadcast(sorted((self.folder / RECENT).glob("step-*.safetensors")))
        model, head = kept_weights.average(files)
        log.info("trainer.average_last: the mean of %d, of steps %s", len(files), _steps(files))
        # What is learnt for the teacher's sake is no part of the model and goes on as it is.
        return _joined(model, head) | {
            name: value for name, value in self.train_step.state_dict().items() if name.startswith(_DISTILLATION)
        }

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`. Raises UserError where its position means nothing for this run."""
        state = read_state(folder)
        self._check(folder, state)
        tensors = state["trained"] or _joined(*checkpoint.load_tensors(folder))
        for part, module in ((_MODEL, self.train_step.model), (_HEAD, self.train_step.head)):
            checkpoint.load_into(module, _of_part(part, tensors), folder, part.rstrip("."))
        if learnt := state.get("distillation"):
            checkpoint.load_into(self.train_step.get_submodule("distillation"), learnt, folder, "distillation")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load(state["ema"])
        self.bad_files.load(state["bad_files"])
        self.position.load(state["position"])
        if distributed.is_main():
            kept_weights.drop_after(self.folder / RECENT, self.position.step)

    def _check(self, folder: Path, state: dict[str, Any]) -> None:
        origin = self.origin
        if (state["data_digest"], state["steps_per_epoch"]) != (origin.data_digest, origin.steps_per_epoch):
            raise UserError(
                f"resume: the training utterances are not those that {folder} was trained on (other ids, speakers or "
                "order), so its position in them means nothing; bring them back, or start anew with init_from"
            )
        if state.get("teacher_digest") != origin.teacher_digest:
            raise UserError(
                f"resume: distill.teacher={origin.config.distill.teacher} has other weights than the teacher that "
                f"{folder} was trained with; bring those back, or start anew with init_from"
            )
        for place, digest in origin.bank_digests.items():
            if state["bank_digests"].get(place, digest) != digest:
                log.warning(
                    "resume: %s has other files than the run began with; the noise or the rooms that are drawn from it "
                    "will not be those of a run without a break",
                    place,
                )
        if state["processes"] != distributed.world_size():
            log.warning(
                "resume: %d processes where there were %d: the batches stay the same, in the same order; batch "
                "statistics and dropout are per process, so the weights will not be the same to the bit",
                distributed.world_size(),
                state["processes"],
            )
        if state["position"]["step"] > origin.total_steps:
            raise UserError(
                f"resume: the run is at step {state['position']['step']}, past the end at {origin.total_steps} that "
                "trainer.epochs and trainer.max_steps ask for"
            )


def read_state(folder: Path) -> dict[str, Any]:
    """What `Savepoints.write` left beside the weights. Raises UserError for a checkpoint of an earlier version."""
    state = checkpoint.load_state(folder)
    if "position" not in state:
        raise UserError(
            f"resume: {folder} was written by an earlier version; it can be evaluated, and init_from={folder} "
            "starts a new run from its encoder"
        )
    return state


def _of_part(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


def _joined(model: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{_MODEL}{n}": t for n, t in model.items()} | {f"{_HEAD}{n}": t for n, t in head.items()}


def _steps(files: list[Path]) -> str:
    return ", ".join(str(int(file.stem.removeprefix("step-"))) for file in files)
