"""Which weights are the best so far: those that are trained, their moving average, or the mean of the last ones."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from spkexp import distributed
from spkexp.averages import MovingAverage, in_place_of
from spkexp.meter import Meter
from spkexp.position import Position
from spkexp.savepoint import AVERAGE, EMA, WEIGHTS, Savepoints
from spkexp.sections import Trainer as Settings
from spkexp.step import TrainStep

log = logging.getLogger(__name__)
_NAMES = {WEIGHTS: "val", EMA: "val_ema", AVERAGE: "val_average"}  # as metrics.jsonl calls them
Measure = Callable[[Callable[[], bool]], dict[str, Any]]


class Validation:
    """measure: the metrics of the validation trials, given what says whether to stop; None where there are no trials.

    Without trials the newest weights are the best, of averages the last that is listed above.
    """

    def __init__(
        self,
        measure: Measure | None,
        train_step: TrainStep,
        average: MovingAverage | None,
        savepoints: Savepoints,
        settings: Settings,
        meter: Meter,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.measure, self.train_step, self.average = measure, train_step, average
        self.savepoints, self.settings, self.meter = savepoints, settings, meter
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps

    @property
    def position(self) -> Position:
        return self.savepoints.position

    def due(self) -> bool:
        """Whether this step is to be validated, and was not yet."""
        position, settings = self.position, self.settings
        wanted = self.measure is not None or settings.ema is not None or settings.average_last is not None
        at_end = position.step == self.total_steps
        epoch_ends = position.step % (settings.validate_every * self.steps_per_epoch) == 0
        return wanted and position.step > position.validated and (epoch_ends or at_end)

    def finished(self) -> bool:
        """Whether training is at its end, or trainer.early_stop is."""
        position, patience = self.position, self.settings.early_stop
        return position.step == self.total_steps or (patience is not None and position.since_best >= patience)

    def run(self, should_stop: Callable[[], bool]) -> dict[str, dict[str, Any]]:
        """Metrics by whose weights they are of; the best of all so far become checkpoints/best. Raises Interrupted."""
        position = self.position
        distributed.share_buffers(self.train_step)
        position.validated = position.step
        position.since_best += 1
        found = {_NAMES[WEIGHTS]: self._offer(WEIGHTS, None, should_stop)}
        if self.average:
            found[_NAMES[EMA]] = self._offer(EMA, self.average.tensors, should_stop)
        if self.settings.average_last is not None:
            self.savepoints.keep(self.settings.average_last)
            if self.finished():
                # Which ends the training, however good the average is.
                patience = position.since_best
                found[_NAMES[AVERAGE]] = self._offer(AVERAGE, self.savepoints.averaged(), should_stop)
                position.since_best = patience
        best = _NAMES[position.best["weights"]] if position.best.get("step") == position.step else None
        log.info(
            "epoch %g  %s  loss %.3f  %.0f utt/s  %.0f s",
            round(position.step / self.steps_per_epoch, 3),
            "  ".join(
                f"{name} {criterion(metrics)[0]}{' (best)' * (name == best)}"
                for name, metrics in found.items()
                if metrics
            ),
            self.meter.latest()["loss"],
            self.meter.latest()["utterances_per_second"],
            position.seconds,
        )
        if self.finished() and position.step < self.total_steps:
            log.info("trainer.early_stop: %d validations without a better one; that was the last", position.since_best)
        return {name: metrics for name, metrics in found.items() if metrics}

    def _offer(
        self, weights: str, tensors: dict[str, Tensor] | None, should_stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """The metrics with `tensors` as the weights (None: as they are)."""
        place: AbstractContextManager[Any] = in_place_of(self.train_step, tensors) if tensors else nullcontext()
        with place as own:
            if tensors:
                distributed.share_buffers(self.train_step)
            metrics = self.measure(should_stop) if self.measure else {}
            if self.position.offer(criterion(metrics)[1] if metrics else None, weights):
                self.position.since_best = 0
                # Before `last`, so that a kill in between only makes the resumed run validate again.
                self.meter.flush()
                self.savepoints.write("best", weights, own)
        return metrics


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
