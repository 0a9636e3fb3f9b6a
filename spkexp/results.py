"""What a run ends with: the best checkpoint, and the weights that it began with, on every trial list."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from spkexp import build, checkpoint, distributed
from spkexp.cost.macs import count_macs
from spkexp.cost.workload import Workload
from spkexp.errors import UserError
from spkexp.interrupt import StopRequest
from spkexp.report.confusion import write_classified
from spkexp.report.plots import det_plot
from spkexp.report.table import BEFORE, UNTRAINED
from spkexp.resume import RESULTS
from spkexp.savepoint import RECENT, read_state
from spkexp.scorer import Scorer
from spkexp.scoring.classification import largest_class, summarise_classes
from spkexp.scoring.extract import Interrupted
from spkexp.scoring.verification import Scored
from spkexp.step import TrainStep
from spkexp.trainer import Trainer
from spkexp.trial_results import write_trials
from spkexp.whole_file import write_json

log = logging.getLogger(__name__)
MACS_SECONDS = 2.0  # of audio, as papers count multiply-accumulates


def write_results(
    cfg: DictConfig,
    folder: Path,
    trainer: Trainer,
    scorer: Scorer,
    utterances_per_epoch: int,
    banks: tuple[Any, ...],
    initial: Callable[[], TrainStep],
    stop: StopRequest,
) -> tuple[dict[str, Any], dict[str, Scored]]:
    """Score the best checkpoint and the initial weights on every trial list; write results, scores and plots.

    initial: makes what training began with, a function of the seed: the untrained encoder, or that of cfg.init_from.
    Training starts without the delay of scoring it.
    Returns results.json's content, in the main process with its "trials", and what was scored. Raises Stopped.
    """
    step, data, settings = trainer.train_step, scorer.data, scorer.settings
    chosen = _load_best(folder, step)
    with stop.asked():  # the processes score together, and stop together
        try:
            scored = scorer.score(step.model, data.evaluation, stop)
            classified = scorer.classify(step.head, scored)
            closed = {
                name: scorer.closed_set(step.head, found, chosen.step)
                for name, found in scored.items()
                if name not in classified
            }
            # A classifier's chance level is its largest class.
            began_with = {} if classified else _beginning(scorer, initial, stop)
        except Interrupted:
            raise stop.stopped() from None
    results = _of_training(cfg, trainer, scorer, utterances_per_epoch, banks, chosen)
    if not distributed.is_main():
        return results, scored
    entries, scores = write_trials(folder, scored, settings, [name for name in scored if name not in classified])
    beginning = UNTRAINED if cfg.init_from is None else BEFORE
    for name, entry in entries.items():
        results["trials"][name] = entry | closed[name] | ({beginning: began_with[name]} if began_with else {})
    for name, answers in classified.items():
        results["trials"][name] = summarise_classes(answers, settings.bootstrap, largest_class(data.train))
        write_classified(folder, answers, settings.save_scores)
    det_plot(folder / "plots" / "det.png", scores)
    write_json(folder / RESULTS, results)  # last: a run that has it is at its end
    shutil.rmtree(folder / "checkpoints" / RECENT, ignore_errors=True)
    return results, scored


class _Chosen(NamedTuple):
    """The checkpoint that the results are of: its step, whose weights it has, and what chose it, if it is the best."""

    step: int
    weights: str
    value: float | None


def _load_best(folder: Path, step: TrainStep) -> _Chosen:
    """Load the best checkpoint, and where it is damaged the newest one that is whole. Raises UserError."""

    def choose() -> Path:
        try:
            return checkpoint.find(folder)
        except UserError as damaged:
            if (other := checkpoint.newest(folder)) is None:
                raise
            log.warning("%s; the results are those of %s", damaged, other)
            return other

    found = distributed.decided_by_main(choose)
    model, head = checkpoint.load_tensors(found)
    checkpoint.load_into(step.model, model, found, "model")
    checkpoint.load_into(step.head, head, found, "head")
    state = read_state(found)
    at, best = state["position"]["step"], state["position"]["best"]
    is_best = (best.get("step"), best.get("weights")) == (at, state["weights"])
    return _Chosen(at, state["weights"], best["value"] if is_best else None)


def _beginning(scorer: Scorer, initial: Callable[[], TrainStep], stop: StopRequest) -> dict[str, Any]:
    """What the initial weights score on every trial list; nothing where they cannot be had any more."""
    step = None
    try:
        step = initial()
    except UserError as error:
        log.warning("the initial weights are not scored: %s", error)
    if distributed.any_of(step is None)[0]:  # a process that fails alone must not leave the others waiting for it
        return {}
    assert step is not None
    return scorer.evaluate(step, scorer.data.evaluation, stop)


def _of_training(
    cfg: DictConfig,
    trainer: Trainer,
    scorer: Scorer,
    utterances_per_epoch: int,
    banks: tuple[Any, ...],
    chosen: _Chosen,
) -> dict[str, Any]:
    position, bad_files = trainer.position, trainer.bad_files
    utterances = position.step * utterances_per_epoch / trainer.origin.steps_per_epoch
    recordings = bad_files.recordings() | {file for bank in banks for file, _ in bank.bad}
    return {
        "model": cfg.names.model,
        "data": cfg.names.data,
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in trainer.train_step.model.parameters()),
        "macs": count_macs(Workload(build.model(cfg.model), MACS_SECONDS, "fp32")).model,
        "classes": len(scorer.labels),
        "steps": position.step,
        "best_step": chosen.step,
        "best_weights": chosen.weights,
        "best_value": chosen.value,
        "train_seconds": round(position.seconds, 3),
        "utterances_per_second": round(utterances / max(position.seconds, 1e-9), 3),
        "skipped_files": scorer.data.skipped + len(bad_files),
        "skipped_recordings": len(recordings),
        "skipped_steps": position.skipped_steps,
        "rollbacks": position.rollbacks,
        "trials": {},
    }
