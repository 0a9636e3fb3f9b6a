"""The training loop. `Trainer.fit` and `Trainer._one_step` are all that ever happens to the weights."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spkexp import batch_memory, checkpoint, distributed
from spkexp.averages import MovingAverage
from spkexp.counter import torch_seed
from spkexp.data.dataset import Batch
from spkexp.data.supply import Supply
from spkexp.interrupt import StopRequest
from spkexp.meter import BadFiles, Meter
from spkexp.non_finite import Guard
from spkexp.parameter_groups import Freezing
from spkexp.position import Position
from spkexp.progress import TrainingProgress
from spkexp.pruning import Pruning
from spkexp.savepoint import Origin, Savepoints
from spkexp.scoring.extract import Interrupted
from spkexp.sections import Trainer as Settings
from spkexp.step import StepOutput, TrainStep
from spkexp.step_trace import StepTrace
from spkexp.tracking import Tracker
from spkexp.validation import Measure, Validation, criterion
from spkexp.watchdog import Watchdog

log = logging.getLogger(__name__)

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Pruned(Exception):
    """The hyper-parameter search that a run belongs to has no use for it any more."""


class Trainer:
    """Trains `train_step`, validates and saves.

    batches: the batches from a step on; validate: the metrics of the validation trials, None where there are none.
    """

    def __init__(
        self,
        train_step: TrainStep,
        optimizer: Optimizer,
        schedule: Callable[[int], float],
        freezing: Freezing,
        batches: Callable[[int], Iterator[Batch]],
        validate: Measure | None,
        settings: Settings,
        seed: int,
        meter: Meter,
        bad_files: BadFiles,
        tracker: Tracker,
        pruning: Pruning,
        origin: Origin,
        folder: Path,
        device: torch.device,
        stop: StopRequest,
    ) -> None:
        self.train_step, self.optimizer, self.schedule, self.freezing = train_step, optimizer, schedule, freezing
        self.batches, self.settings, self.seed = batches, settings, seed
        self.meter, self.bad_files, self.tracker, self.pruning = meter, bad_files, tracker, pruning
        self.origin, self.folder, self.device, self.stop = origin, folder, device, stop
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.average = MovingAverage(train_step, settings.ema) if settings.ema is not None else None
        self.guard = Guard(settings.on_nan, train_step)
        self.position = Position()
        self.savepoints = Savepoints(
            folder, origin, train_step, optimizer, self.scaler, self.average, bad_files, self.position
        )
        self.validation = Validation(
            validate,
            train_step,
            self.average,
            self.savepoints,
            settings,
            meter,
            origin.steps_per_epoch,
            origin.total_steps,
        )
        self.watchdog = Watchdog(settings.timeout_minutes, folder)
        self._saved: tuple[int, int] | None = None  # (step, validated) of the last checkpoint
        self._saved_at = time.monotonic()

    def fit(self) -> None:
        """Train to the end. Raises Stopped, with everything saved, where a signal asked for it, and Pruned."""
        position, settings = self.position, self.settings
        self._first_step = position.step
        module = self._wrapped()
        trace = StepTrace(settings.profile, self.folder / "profile", self.device)
        with (
            self.stop.asked() as stop,
            Supply(self._parts) as source,
            TrainingProgress(position.step, self.origin.total_steps) as progress,
            self.watchdog,
            trace,
        ):
            self.meter.resume_clock()
            while True:
                stopping, late, unusable = distributed.any_of(stop(), self._is_late(), self.bad_files.pending)
                if unusable:
                    self.bad_files.settle()
                if self.validation.due():
                    self._save()
                    self._validate(stop)
                if stopping or late or self._save_due():
                    self._save()
                if stopping:
                    raise stop.stopped()
                if self.validation.finished():
                    return
                if self.freezing.apply(position.step):
                    module = self._wrapped()
                with batch_memory.explained(settings):
                    position.seconds += self._one_step(module, source)
                trace.step()
                self.watchdog.beat(f"step {position.step}")
                progress.update(position.step, self._line())
                if position.step % settings.log_every == 0 or position.step == self.origin.total_steps:
                    self._report()

    def _wrapped(self) -> nn.Module:
        self.freezing.apply(self.position.step)
        return distributed.wrap(self.train_step, static_graph=self.settings.static_graph)

    def _parts(self, given: int) -> Iterator[Batch]:
        """The parts of batches from the `given`th on, counted from the step that `fit` began at."""
        steps, parts = divmod(given, self.settings.accumulate)
        source = self.batches(self._first_step + steps)
        for _ in range(parts):
            next(source)
        return source

    def _one_step(self, module: nn.Module, source: Iterator[Batch]) -> float:
        """One optimizer step, a function of the weights and of (seed, step) alone; returns its seconds."""
        settings, position = self.settings, self.position
        # Dropout draws from torch's generator: it starts from the position, so a resumed run draws the same.
        torch.manual_seed(torch_seed(self.seed, position.step, distributed.rank()))
        for group, rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * self.schedule(position.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.remember()
        parts = []
        for index in range(settings.accumulate):
            batch = self.meter.wait(source)
            self.bad_files.add(batch)
            with distributed.no_sync(module, active=index < settings.accumulate - 1):
                output = self._forward(module, batch)
                self.scaler.scale(output.loss / settings.accumulate).backward()
            parts.append((batch, output))
        norm = self._clip()
        if self.guard.spoilt([output.loss for _, output in parts], norm):
            if self.scaler.is_enabled():  # a loss is not scaled: its scale has no part in this and stays
                self.scaler.update(self.scaler.get_scale())
            self._leave_out([batch.item for batch, _ in parts])
            return self.meter.left_out()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        position.step += 1
        # As a tensor, so that nothing waits for the device.
        scale = self.scaler.scale(torch.ones((), device=self.device)) if self.scaler.is_enabled() else None
        return self.meter.record(position.step, parts, norm, scale)

    def _forward(self, module: nn.Module, batch: Batch) -> StepOutput:
        dtype = _AUTOCAST[self.settings.precision]
        waveform, label = (tensor.to(self.device, non_blocking=True) for tensor in (batch.waveform, batch.label))
        # Lengths stay on the CPU: whether masks are needed is then known without waiting for the device.
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return module(waveform, batch.lengths, label, batch.key, batch.material, step=self.position.step)

    def _clip(self) -> Tensor | None:
        """The gradient's norm, before it is limited; None where nobody asks for it.

        With fp16 an overflow is the scaler's business: it leaves the step out and scales less, and the meter sees to
        it that it does not do so for ever.
        """
        limit = self.settings.clip_norm
        if limit is None and not self.guard.looks:
            return None
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.train_step.parameters(), float("inf") if limit is None else limit)
        return None if self.scaler.is_enabled() else norm

    def _leave_out(self, items: list[Tensor]) -> None:
        """Go past a spoilt step, without an update, or with the weights of the last checkpoint."""
        position, bad = self.position, self.position.step
        shown = self.meter.utterances(items)
        skipped, rollbacks, seconds = position.skipped_steps + 1, position.rollbacks, position.seconds
        if self.settings.on_nan == "skip":
            log.warning("step %d left out: loss or gradient not finite, with the utterances %s", bad + 1, shown)
        else:
            self.guard.count_rollback(bad + 1)
            rollbacks += 1
            files = self.bad_files.state()  # those found since are not found again
            last = distributed.decided_by_main(lambda: checkpoint.newest(self.folder))
            assert last is not None  # one was saved before the first step
            self.savepoints.load(last)
            self.bad_files.load(files)
            log.warning(
                "step %d: loss or gradient not finite, with the utterances %s; the weights are those of step %d again, "
                "the data goes on (rollback %d)",
                bad + 1, shown, position.step, rollbacks,
            )  # fmt: skip
        position.step, position.skipped_steps, position.rollbacks = bad + 1, skipped, rollbacks
        position.seconds = seconds  # what was undone took its time all the same

    def _validate(self, stop: StopRequest) -> None:
        """Raises Stopped, and Pruned where the search that this run belongs to has no use for it."""
        step = self.position.step

        def should_stop() -> bool:
            self.watchdog.beat(f"validation after step {step}")
            return stop()

        try:
            found = self.validation.run(should_stop)
        except Interrupted:  # the weights are saved; the resumed run validates first
            raise stop.stopped() from None
        self.tracker.log(step, {"epoch": self.epoch, "seconds": round(self.position.seconds, 3), **found})
        self._save()
        self.meter.resume_clock()
        if not found or self.validation.finished():  # at its end a run is worth its results
            return
        value = min(criterion(metrics)[1] for metrics in found.values())
        # One process asks for all: they must not disagree.
        prune = distributed.is_main() and self.pruning.report(max(1, round(self.epoch)), value)
        if distributed.any_of(prune)[0]:
            raise Pruned

    @property
    def epoch(self) -> float:
        return round(self.position.step / self.origin.steps_per_epoch, 3)

    def _line(self) -> str:
        """Loss, rate and speed, for the progress bar. A starving loader must be seen."""
        now = self.meter.latest()
        wait = f"  data wait {now['data_wait']:.0%}" if now["data_wait"] >= 0.05 else ""
        return (
            f"epoch {self.epoch:.1f}  loss {now['loss']:.3f}  acc {now['accuracy']:.0%}  "
            f"lr {self.optimizer.param_groups[0]['lr']:.1e}  {now['utterances_per_second']:.0f} utt/s{wait}"
        )

    def _report(self) -> None:
        position = self.position
        margin = self.train_step.head.margin_at(position.step - 1)
        groups = self.optimizer.param_groups
        rates: dict[str, Any] = {"epoch": self.epoch, "lr": groups[0]["lr"], "margin": margin}
        if len(groups) > 1:
            rates["lr_of"] = {group["name"]: group["lr"] for group in groups}
        counts = {"skipped_steps": position.skipped_steps} if self.guard.looks else {}
        self.tracker.log(position.step, {**rates, **counts, "train": self.meter.report()})

    def _is_late(self) -> bool:
        minutes = self.settings.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save_due(self) -> bool:
        step, every = self.position.step, self.settings.checkpoint_steps
        # A rollback needs something to go back to.
        first = step == 0 and self.settings.on_nan == "rollback"
        return first or step == self.origin.total_steps or (every is not None and step > 0 and step % every == 0)

    def _save(self) -> None:
        """Write checkpoints/last, unless it holds this very state already."""
        now = (self.position.step, self.position.validated)
        if self._saved != now:
            self.meter.flush()  # raises before weights that are not finite replace good ones, as does the next line
            self.meter.check_finite(self.train_step)
            self.savepoints.write("last")
            self.watchdog.beat(f"checkpoint of step {self.position.step}")
            self._saved, self._saved_at = now, time.monotonic()
            self.meter.resume_clock()

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`. Raises UserError where its position means nothing for this run."""
        self.savepoints.load(folder)
        self._saved = (self.position.step, self.position.validated)
