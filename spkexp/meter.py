"""What a training loop measures of itself."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spkexp import distributed
from spkexp.data.dataset import Bad, Batch
from spkexp.data.utterances import Strings
from spkexp.errors import UserError
from spkexp.non_finite import MIN_SCALE, NotFinite
from spkexp.step import StepOutput

log = logging.getLogger(__name__)

LOGGED = 5  # recordings of the augmentation that a process names one by one


@dataclass
class _Pending:
    step: int
    loss: list[Tensor]
    accuracy: list[Tensor]
    shares: dict[str, list[Tensor]]  # of the loss, by name
    norm: Tensor | None
    scale: Tensor | None
    items: list[Tensor]


class Meter:
    """Averages since the last report: loss, accuracy, gradient norm, speed, and the share of time spent on waiting.

    The gradient's norm is there where somebody computed it, and with fp16 there is the newest loss scale.

    A step's tensors are read while the next one runs, so that a GPU never waits for the CPU.
    """

    def __init__(self, ids: Strings) -> None:
        """ids: names of the utterances, for the error that names them."""
        self._ids = ids
        self._pending: list[_Pending] = []
        self._newest: _Pending | None = None
        self._last_report = dict.fromkeys(("loss", "accuracy", "utterances_per_second", "data_wait"), 0.0)
        self._reset()

    def _reset(self) -> None:
        self._sums = {"loss": 0.0, "accuracy": 0.0}
        self._scale: dict[str, float] = {}
        self._steps = self._utterances = 0
        self._seconds = self._waited = 0.0
        self._latest = time.monotonic()

    def resume_clock(self) -> None:
        """Leave out the time since the last step: it went into validating or saving."""
        self._latest = time.monotonic()

    def wait(self, source: Iterator[Batch]) -> Batch:
        """The next batch; the time until it is there counts as waiting."""
        begin = time.monotonic()
        batch = next(source)
        self._waited += time.monotonic() - begin
        return batch

    def record(
        self, step: int, parts: list[tuple[Batch, StepOutput]], norm: Tensor | None, scale: Tensor | None
    ) -> float:
        """Take note of a step; returns the seconds it took. Raises NotFinite for the step before.

        norm: of the gradient, and scale: of the loss, after the step; None where there is none.
        """
        self._pending.append(
            _Pending(
                step,
                [output.loss.detach() for _, output in parts],
                [output.accuracy for _, output in parts],
                {name: [output.parts[name] for _, output in parts] for name in parts[0][1].parts},
                norm,
                scale,
                [batch.item for batch, _ in parts],
            )
        )
        self._newest = self._pending[-1]
        self._settle(keep=1)
        now = time.monotonic()
        seconds, self._latest = now - self._latest, now
        self._seconds += seconds
        self._steps += 1
        self._utterances += sum(len(batch.item) for batch, _ in parts) * distributed.world_size()
        return seconds

    def left_out(self) -> float:
        """A step that is not to be counted is over; returns the seconds it took."""
        now = time.monotonic()
        seconds, self._latest = now - self._latest, now
        self._seconds += seconds
        return seconds

    def flush(self) -> None:
        """Read what is still pending. Raises NotFinite."""
        self._settle(keep=0)

    def _settle(self, keep: int) -> None:
        while len(self._pending) > keep:
            entry = self._pending.pop(0)
            loss = torch.stack(entry.loss).mean().item()
            found = {"loss": loss, "accuracy": torch.stack(entry.accuracy).mean().item()}
            found |= {name: torch.stack(values).mean().item() for name, values in entry.shares.items()}
            if entry.norm is not None:
                found["grad_norm"] = entry.norm.item()
            for name, what in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
                if not math.isfinite(found.get(name, 0.0)):
                    self._raise(entry, f"{what} is {found[name]}")
            if entry.scale is not None:
                self._scale = {"loss_scale": entry.scale.item()}
                if self._scale["loss_scale"] < MIN_SCALE:
                    self._raise(
                        entry,
                        f"the loss scale of fp16 is down to {self._scale['loss_scale']:.2g}, for the "
                        "gradients of step after step are not finite",
                    )
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in found.items()}

    def check_finite(self, module: nn.Module) -> None:
        """Raises NotFinite, which names the newest step, where a weight or a statistic of `module` is not finite.

        A gradient can be NaN where the loss is not, and without trainer.clip_norm nobody has looked at it.
        """
        if self._newest is None:
            return
        state = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
        finite = torch.stack([tensor.isfinite().all() for tensor in state.values()])
        if not finite.all():  # one wait for the device, not one a tensor
            self._raise(self._newest, f"{list(state)[int(finite.int().argmin())]} is not finite any more")

    def utterances(self, items: list[Tensor]) -> str:
        """Names of utterances, the first few, for a message."""
        names = [self._ids[item] for item in torch.cat(items).tolist()]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def _raise(self, entry: _Pending, what: str) -> None:
        raise NotFinite(
            f"step {entry.step}: {what}, with the utterances {self.utterances(entry.items)}; a lower "
            "trainer.optimizer.lr, trainer.precision=fp32 or trainer.clip_norm help most often; trainer.on_nan=skip "
            "leaves such steps out"
        )

    def report(self) -> dict[str, float]:
        """Means over the steps since the last report and over all processes; starts anew."""
        self.flush()
        found = self.latest()
        shared = [name for name in found if name == "accuracy" or name.startswith("loss")]
        found |= dict(zip(shared, distributed.mean([found[name] for name in shared]), strict=True))
        self._last_report = found
        self._reset()
        return found

    def latest(self) -> dict[str, float]:
        """Means over this process's steps since the last report; where there are none yet, that report again.

        data_wait is the share of the time that went into waiting for data.
        """
        settled = self._steps - len(self._pending)
        if settled == 0:
            return self._last_report
        return {
            **{name: total / settled for name, total in self._sums.items()},
            **self._scale,
            "utterances_per_second": self._utterances / self._seconds,
            "data_wait": self._waited / self._seconds,
        }


class BadFiles:
    """Counts unusable files that training met, names each once, and ends the run past the limit.

    The processes agree: what one of them found counts in all.
    """

    def __init__(self, on_error: str, max_bad_fraction: float, total: int) -> None:
        self._on_error, self._limit, self._total = on_error, max_bad_fraction, total
        self._seen: set[str] = set()
        self._found: list[Bad] = []
        self._recordings: set[str] = set()
        self._new_recordings: set[str] = set()  # since `settle`

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, batch: Batch) -> None:
        """Take note of what `batch` could not read. Raises UserError where nothing of it could be."""
        if len(batch.item) == 0:
            last = batch.bad[-1]
            others = "" if last.of_augmentation else " (and so it went with all that were drawn in its place)"
            raise UserError(f"{last.reason}{others}")
        self._found += [entry for entry in batch.bad if entry.id not in self._seen and not entry.of_augmentation]
        for entry in batch.bad:  # nothing is lost by them
            if entry.of_augmentation and entry.id not in self._recordings:
                self._recordings.add(entry.id)
                self._new_recordings.add(entry.id)
                if len(self._recordings) <= LOGGED:
                    log.warning("augmentation: %s: %s; another was taken in its place", entry.id, entry.reason)

    @property
    def pending(self) -> bool:
        """Whether this process has found some since `settle`."""
        return bool(self._found or self._new_recordings)

    def settle(self) -> None:
        """Count what any process found. Raises UserError in all where files are not to be skipped, or too many were."""
        gathered = distributed.gather((self._found, self._new_recordings))
        # What a checkpoint holds is the main process's: it must know of all.
        self._recordings.update(*(recordings for _, recordings in gathered))
        self._new_recordings = set()
        for entry in sorted({entry for found, _ in gathered for entry in found}):
            if self._on_error == "raise":
                raise UserError(f"{entry.reason} (utterance {entry.id}; data.on_error=skip leaves such files out)")
            if entry.id not in self._seen:
                self._seen.add(entry.id)
                if distributed.is_main():
                    log.warning("skipped %s: %s (%d so far)", entry.id, entry.reason, len(self._seen))
        self._found = []
        if len(self._seen) > self._limit * self._total:
            raise UserError(
                f"{len(self._seen)} of {self._total} training files cannot be used, more than "
                f"data.max_bad_fraction={self._limit}; train.log lists them"
            )

    def recordings(self) -> set[str]:
        """Files of the augmentation that any process could not use, or not where it drew from them; the log gets their
        number. Every process calls this."""
        found = set().union(*distributed.gather(self._recordings))
        if len(found) > LOGGED and distributed.is_main():
            log.warning("augmentation: %d recordings could not be used where they were drawn", len(found))
        return found

    def state(self) -> dict[str, list[str]]:
        return {"utterances": sorted(self._seen), "recordings": sorted(self._recordings)}

    def load(self, state: dict[str, list[str]]) -> None:
        self._seen, self._recordings = set(state["utterances"]), set(state["recordings"])
