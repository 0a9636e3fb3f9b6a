"""The training loop. `Trainer.fit` and `Trainer._one_step` are all that ever happens to the weights."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from spkexp import checkpoint, distributed
from spkexp.counter import torch_seed
from spkexp.data.dataset import Batch
from spkexp.errors import UserError
from spkexp.interrupt import StopRequest
from spkexp.meter import BadFiles, Meter
from spkexp.progress import TrainingProgress
from spkexp.scoring.extract import Interrupted
from spkexp.sections import Trainer as Settings
from spkexp.step import StepOutput, TrainStep
from spkexp.tracking import Tracker

log = logging.getLogger(__name__)

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Trains `train_step`, validates and saves. Its whole position is `step`, the optimizer steps done.

    batches: the batches from a step on; validate: the metrics of the validation trials, None where there are none.
    """

    def __init__(
        self,
        train_step: TrainStep,
        optimizer: Optimizer,
        schedule: Callable[[int], float],
        batches: Callable[[int], Iterator[Batch]],
        validate: Callable[[Callable[[], bool]], dict[str, Any]] | None,
        settings: Settings,
        meter: Meter,
        bad_files: BadFiles,
        tracker: Tracker,
        config: DictConfig,
        labels: list[str],
        data_digest: str,
        bank_digests: dict[str, str],
        folder: Path,
        device: torch.device,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.train_step, self.optimizer, self.schedule = train_step, optimizer, schedule
        self.batches, self.validate, self.settings = batches, validate, settings
        self.meter, self.bad_files, self.tracker = meter, bad_files, tracker
        self.config, self.labels, self.folder, self.device = config, labels, folder, device
        self.data_digest, self.bank_digests = data_digest, bank_digests
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.step = 0
        self.validated = 0  # the step that was validated last
        self.best: dict[str, float] = {}  # step of the best checkpoint and the value, lower is better, that made it so
        self.seconds = 0.0  # spent in steps
        self._saved: tuple[int, int] | None = None  # (step, validated) of the last checkpoint
        self._saved_at = time.monotonic()

    def fit(self) -> None:
        """Train from `step` to `total_steps`. Raises Stopped, with everything saved, where a signal asked for it."""
        module = distributed.wrap(self.train_step)
        source = self.batches(self.step)
        self.meter.resume_clock()
        with StopRequest() as stop, TrainingProgress(self.step, self.total_steps) as progress:
            while True:
                stopping, late, unusable = distributed.any_of(stop(), self._is_late(), self.bad_files.pending)
                if unusable:
                    self.bad_files.settle()
                if self._validation_due():
                    self._save()
                    self._validate(stop)
                if stopping or late or self._save_due():
                    self._save()
                if stopping:
                    raise stop.stopped()
                if self.step == self.total_steps:
                    return
                self.seconds += self._one_step(module, source)
                progress.update(self.step, self._line())
                if self.step % self.settings.log_every == 0 or self.step == self.total_steps:
                    self._report()

    def _one_step(self, module: nn.Module, source: Iterator[Batch]) -> float:
        """One optimizer step, a function of the weights and of (seed, step) alone; returns its seconds."""
        settings = self.settings
        # Dropout draws from torch's generator: it starts from the position, so a resumed run draws the same.
        torch.manual_seed(torch_seed(self.config.seed, self.step, distributed.rank()))
        for group, rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * self.schedule(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for index in range(settings.accumulate):
            batch = self.meter.wait(source)
            self.bad_files.add(batch)
            with distributed.no_sync(module, active=index < settings.accumulate - 1):
                output = self._forward(module, batch)
                self.scaler.scale(output.loss / settings.accumulate).backward()
            parts.append((batch, output))
        norm = None
        if settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.train_step.parameters(), settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        # With fp16 an overflow is the scaler's business: it leaves the step out and scales less.
        return self.meter.record(self.step, parts, None if self.scaler.is_enabled() else norm)

    def _forward(self, module: nn.Module, batch: Batch) -> StepOutput:
        dtype = _AUTOCAST[self.settings.precision]
        waveform, label = (tensor.to(self.device, non_blocking=True) for tensor in (batch.waveform, batch.label))
        # Lengths stay on the CPU: whether masks are needed is then known without waiting for the device.
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return module(waveform, batch.lengths, label, batch.key, batch.material, step=self.step)

    def _validation_due(self) -> bool:
        every = self.settings.validate_every * self.steps_per_epoch
        at_end = self.step == self.total_steps
        return self.validate is not None and self.step > self.validated and (self.step % every == 0 or at_end)

    def _validate(self, stop: StopRequest) -> None:
        assert self.validate is not None
        distributed.share_buffers(self.train_step)
        try:
            metrics = self.validate(stop)
        except Interrupted:  # the weights are saved; the resumed run validates first
            raise stop.stopped() from None
        self.validated = self.step
        shown, value = criterion(metrics)
        better = value < self.best.get("value", float("inf"))
        if better:
            self.best = {"step": self.step, "value": value}
        self.tracker.log(self.step, {"epoch": self.epoch, "seconds": round(self.seconds, 3), "val": metrics})
        log.info(
            "epoch %g  val %s%s  loss %.3f  %.0f utt/s  %.0f s",
            self.epoch,
            shown,
            " (best)" if better else "",
            self.meter.latest()["loss"],
            self.meter.latest()["utterances_per_second"],
            self.seconds,
        )
        if better:  # before `last`, so that a kill in between only makes the resumed run validate again
            self._write("best")
        self._save()
        self.meter.resume_clock()

    @property
    def epoch(self) -> float:
        return round(self.step / self.steps_per_epoch, 3)

    def _line(self) -> str:
        """Loss, rate and speed, for the progress bar. A starving loader must be seen."""
        now = self.meter.latest()
        wait = f"  data wait {now['data_wait']:.0%}" if now["data_wait"] >= 0.05 else ""
        return (
            f"epoch {self.epoch:.1f}  loss {now['loss']:.3f}  acc {now['accuracy']:.0%}  "
            f"lr {self.optimizer.param_groups[0]['lr']:.1e}  {now['utterances_per_second']:.0f} utt/s{wait}"
        )

    def _report(self) -> None:
        margin = self.train_step.head.margin_at(self.step - 1)
        rates = {"epoch": self.epoch, "lr": self.optimizer.param_groups[0]["lr"], "margin": margin}
        self.tracker.log(self.step, {**rates, "train": self.meter.report()})

    def _is_late(self) -> bool:
        minutes = self.settings.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save_due(self) -> bool:
        every = self.settings.checkpoint_steps
        return self.step == self.total_steps or (every is not None and self.step > 0 and self.step % every == 0)

    def _save(self) -> None:
        """Write checkpoints/last, unless it holds this very state already."""
        if self._saved != (self.step, self.validated):
            self._write("last")
            self._saved, self._saved_at = (self.step, self.validated), time.monotonic()
            self.meter.resume_clock()

    def _write(self, name: str) -> None:
        self.meter.flush()  # raises before weights that are not finite replace good ones, as does the next line
        self.meter.check_finite(self.train_step)
        if not distributed.is_main():
            return
        state = {
            "step": self.step,
            "data_digest": self.data_digest,
            "bank_digests": self.bank_digests,
            "steps_per_epoch": self.steps_per_epoch,
            "validated": self.validated,
            "best": self.best,
            "seconds": self.seconds,
            "bad_files": self.bad_files.state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        folder = self.folder / "checkpoints" / name
        checkpoint.save(folder, self.train_step.model, self.train_step.head, self.config, self.labels, state)

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`. Raises UserError where its position means nothing for this run."""
        state = checkpoint.load_state(folder)
        if (state["data_digest"], state["steps_per_epoch"]) != (self.data_digest, self.steps_per_epoch):
            raise UserError(
                f"resume: the training utterances are not those that {folder} was trained on (other ids, speakers or "
                "order), so its position in them means nothing; bring them back, or start anew with init_from"
            )
        for place, digest in self.bank_digests.items():
            if state.get("bank_digests", {}).get(place, digest) != digest:
                log.warning(
                    "resume: %s has other files than the run began with; the noise or the rooms that are drawn from it "
                    "will not be those of a run without a break",
                    place,
                )
        if state["step"] > self.total_steps:
            raise UserError(
                f"resume: the run is at step {state['step']}, past the end at {self.total_steps} that trainer.epochs "
                "and trainer.max_steps ask for"
            )
        model, head = checkpoint.load_tensors(folder)
        checkpoint.load_into(self.train_step.model, model, folder, "model")
        checkpoint.load_into(self.train_step.head, head, folder, "head")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.bad_files.load(state["bad_files"])
        self.step, self.validated, self.best = state["step"], state["validated"], state["best"]
        self.seconds = state["seconds"]
        self._saved = (self.step, self.validated)


def criterion(metrics: dict[str, Any]) -> tuple[str, float]:
    """What chooses the best checkpoint, in words, and its value, the lower the better.

    The EER where there are trials; for classes other than speakers the macro F1, which no answering of the largest
    class can raise; else the errors of the closed set.
    """
    if "eer" in metrics:
        return f"EER {100 * metrics['eer']:.2f} %", metrics["eer"]
    if "macro_f1" in metrics:
        shown = f"macro F1 {100 * metrics['macro_f1']:.2f} %, accuracy {100 * metrics['accuracy']:.2f} %"
        return shown, 1.0 - metrics["macro_f1"]
    errors = 1.0 - metrics["accuracy"]
    return f"error {100 * errors:.2f} %", errors
