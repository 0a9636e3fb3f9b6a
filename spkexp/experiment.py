"""A run from its config to its results: set up, train, score the best checkpoint, write what people read."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, checkpoint, corpus, distributed, run_folder
from spkexp.cli import set_up_logging
from spkexp.data.dataset import Batch, Crops, Parts, loader
from spkexp.data.load import EvaluationSet
from spkexp.errors import ConfigError, UserError
from spkexp.meter import BadFiles, Meter
from spkexp.report.confusion import write_classified
from spkexp.report.plots import det_plot
from spkexp.report.table import results_table
from spkexp.scoring.classification import classify_all, closed_set, largest_class, summarise_classes
from spkexp.scoring.verification import Policy, Scored, score, summarise, write_scores
from spkexp.sections import Scoring, Tracking
from spkexp.sections import Trainer as TrainerSettings
from spkexp.step import TrainStep
from spkexp.tracking import Tracker
from spkexp.trainer import Trainer

log = logging.getLogger(__name__)


class Experiment:
    """One training run: the constructor builds everything, `run` uses it."""

    def __init__(self, cfg: DictConfig, device: torch.device, resumed: bool) -> None:
        """resumed: cfg.run_dir is the folder of a run to go on with. Raises UserError."""
        self.cfg, self.device = cfg, device
        self.settings = TrainerSettings.model_validate(OmegaConf.to_container(cfg.trainer))
        self.scoring = Scoring.model_validate(OmegaConf.to_container(cfg.scoring))
        self.policy = Policy(cfg.data.on_error, cfg.data.max_bad_fraction)
        self.workers = corpus.num_workers(cfg, device)
        self._check_against_machine()
        self.folder = _open_folder(cfg, resumed)
        try:
            self._build(resumed)
        except UserError:
            if not resumed and distributed.is_main():  # nothing was trained: the corrected command finds the place free
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _build(self, resumed: bool) -> None:
        # The augmentation first: its mistakes are found in seconds, and reading the data can take minutes.
        rate, augment = self.cfg.model.features.sample_rate, self.cfg.augment
        self.augmentation = build.augmentation(augment.waveform, "augment.waveform", rate)
        self.augment_features = build.augmentation(augment.features, "augment.features", rate)
        self.banks = self.augmentation.banks if self.augmentation else ()
        self.data = corpus.data(self.cfg)
        if not distributed.all_have(self.data.train.digest()):
            raise UserError(
                "data: the processes see different utterances; let them share data.cache_dir and the corpus, or run "
                "spkexp.prepare refresh=true on each node"
            )
        self.labels = self.data.train.label_names
        self.sampler = build.sampler(self.cfg, self.data.train, self.settings.batch_size)
        self.steps_per_epoch = self.sampler.steps_per_epoch
        last = self.settings.epochs * self.steps_per_epoch
        self.total_steps = min(last, self.settings.max_steps or last)
        found = checkpoint.repaired(self.folder / "checkpoints" / "last") if resumed else None
        self.train_step = self._build_step(pretrained=found is None)
        self.trainer = self._build_trainer(resumed, found)
        if resumed and distributed.is_main():  # the next resume goes by what changed in this one
            run_folder.update_config(self.cfg, self.folder)

    def run(self) -> None:
        """Train to the end, or raise Stopped with everything saved; then score and report."""
        trainer = self.trainer
        try:
            self._announce()
            trainer.fit()
            results = self._report()
        except BaseException as error:
            self._explain_the_end(error)
            raise
        if distributed.is_main():
            print(results_table(results))
            print(f"run folder: {self.folder}", flush=True)
        trainer.tracker.summarise(results, sorted((self.folder / "plots").glob("*.png")))
        trainer.tracker.close()

    def _check_against_machine(self) -> None:
        """What `config.check` cannot know: the processes and the device of this launch."""
        mistakes = []
        # A sampler of batches of several sizes says what all of them are multiples of.
        multiple = self.cfg.data.sampler.get("multiple_of")
        key = "trainer.batch_size" if multiple is None else "data.sampler.multiple_of"
        size, parts = multiple or self.settings.batch_size, self.settings.accumulate * distributed.world_size()
        if size % parts:
            mistakes.append(
                f"{key}: {size} utterances cannot be shared equally by {distributed.world_size()} "
                f"processes × trainer.accumulate={self.settings.accumulate}; choose a multiple of {parts}"
            )
        if self.settings.precision == "fp16" and self.device.type != "cuda":
            mistakes.append("trainer.precision: fp16 needs a CUDA device; bf16 runs here too")
        if size // parts == 1:
            mistakes.append(
                f"{key}: batch normalisation needs two utterances in each of the {parts} parts; "
                f"choose at least {2 * parts}"
            )
        if mistakes:
            raise ConfigError(mistakes)

    def _build_step(self, pretrained: bool) -> TrainStep:
        """Model and head with their initial weights, of which the published ones are read only if `pretrained`."""
        cfg = self.cfg
        torch.manual_seed(cfg.seed)
        model = build.model(cfg.model)
        if cfg.init_from is not None:
            folder = checkpoint.find(cfg.init_from)
            checkpoint.load_into(model, checkpoint.load_tensors(folder)[0], folder, "model")
            log.info("encoder from %s", folder)
        elif pretrained:
            distributed.main_first(model.load_pretrained)  # one process downloads
        head = build.head(cfg, self.data.train, model.embedding_size, self.steps_per_epoch)
        return TrainStep(model, head, self.augmentation, self.augment_features).to(self.device)

    def _build_trainer(self, resumed: bool, found: Path | None) -> Trainer:
        cfg, train = self.cfg, self.data.train
        optimizer = build.build(cfg.trainer.optimizer, "trainer.optimizer", params=self.train_step.parameter_groups())
        schedule = build.build(
            cfg.trainer.schedule,
            "trainer.schedule",
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
        )
        step = checkpoint.load_state(found)["step"] if found else None
        tracking = Tracking.model_validate(OmegaConf.to_container(cfg.tracking))
        trainer = Trainer(
            train_step=self.train_step,
            optimizer=optimizer,
            schedule=schedule,
            batches=self._batches(),
            validate=self._validate if "val" in self.data.evaluation else None,
            settings=self.settings,
            meter=Meter(train.id),
            bad_files=BadFiles(cfg.data.on_error, cfg.data.max_bad_fraction, train.rows),
            tracker=Tracker(self.folder, cfg, tracking, resume_step=(step or 0) if resumed else None),
            config=cfg,
            labels=self.labels,
            data_digest=train.digest(),
            bank_digests={bank.place: bank.digest for bank in self.banks},
            folder=self.folder,
            device=self.device,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        if found:
            trainer.load(found)
            log.info("resumed at step %d of %d", trainer.step, self.total_steps)
        elif resumed:
            log.info("resumed: there is no checkpoint yet, so from the start")
        return trainer

    def _batches(self) -> Callable[[int], Iterator[Batch]]:
        cfg, data = self.cfg.data, self.data
        seconds, longest = cfg.crop_seconds, float(data.train.duration.max())
        if seconds is not None and longest < seconds:
            log.info("crops of %.2f s: no training utterance reaches data.crop_seconds=%g", longest, seconds)
            seconds = longest
        one_copy = self.cfg.augment.speed_copies == "one"
        crops = Crops(data.train, data.reading, seconds, cfg.short, self.cfg.seed, one_copy, self.augmentation)

        def batches(step: int) -> Iterator[Batch]:
            parts = Parts(
                self.sampler,
                self.cfg.seed,
                range(step, self.total_steps),
                self.settings.accumulate,
                distributed.world_size(),
                distributed.rank(),
            )
            return iter(loader(crops, parts, self.workers, pin=self.device.type == "cuda"))

        return batches

    def _score(self, evaluation: EvaluationSet, should_stop: Callable[[], bool] = lambda: False) -> Scored:
        model, reading = self.train_step.model, self.data.reading
        return score(model, evaluation, reading, self.scoring, self.policy, self.workers, should_stop)

    def _evaluate(self, evaluation: EvaluationSet, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        scored = self._score(evaluation, should_stop)
        found = summarise(scored, self.scoring, interval=False)
        return {key: found[key] for key in ("eer", "min_dcf") if key in found} | self._closed_set(scored)

    def _validate(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        return self._evaluate(self.data.evaluation["val"], should_stop)

    def _closed_set(self, scored: Scored) -> dict[str, float]:
        return closed_set(self.train_step.head, scored, self.cfg.data.label, self.labels, self.device)

    def _report(self) -> dict[str, Any]:
        """Score the best checkpoint and the untrained encoder on every trial list; write results, scores and plots."""
        trainer, cfg = self.trainer, self.cfg
        best = checkpoint.find(distributed.broadcast(self.folder))
        checkpoint.load_into(self.train_step.model, checkpoint.load_tensors(best)[0], best, "model")
        checkpoint.load_into(self.train_step.head, checkpoint.load_tensors(best)[1], best, "head")
        scored = {name: self._score(evaluation) for name, evaluation in self.data.evaluation.items()}
        classified = classify_all(self.train_step.head, scored, cfg.data.label, self.labels, self.device)
        closed = {name: self._closed_set(result) for name, result in scored.items() if name not in classified}
        untrained = {} if classified else self._untrained()  # a classifier's chance level is its largest class
        utterances = trainer.step * self.sampler.utterances_per_epoch / self.steps_per_epoch
        results = {
            "model": cfg.names.model,
            "data": cfg.names.data,
            "seed": cfg.seed,
            "parameters": sum(p.numel() for p in self.train_step.model.parameters()),
            "classes": len(self.labels),
            "steps": trainer.step,
            "best_step": trainer.best.get("step", trainer.step),
            "train_seconds": round(trainer.seconds, 3),
            "utterances_per_second": round(utterances / max(trainer.seconds, 1e-9), 3),
            "skipped_files": self.data.skipped + len(trainer.bad_files),
            "skipped_recordings": len(trainer.bad_files.recordings() | {f for bank in self.banks for f, _ in bank.bad}),
            "trials": {},
        }
        if not distributed.is_main():
            return results
        for name, result in scored.items():
            results["trials"][name] = {
                **summarise(result, self.scoring, interval=True),
                **closed.get(name, {}),
                **({"untrained": untrained[name]} if untrained else {}),
            }
            if self.scoring.save_scores and result.trials is not None:
                write_scores(self.folder / "scores" / f"{name}.txt", result)
        for name, answers in classified.items():
            majority = largest_class(self.data.train)
            results["trials"][name] = summarise_classes(answers, self.scoring.bootstrap, majority)
            write_classified(self.folder, answers, self.scoring.save_scores)
        det_plot(self.folder / "plots" / "det.png", scored)
        run_folder.write_json(self.folder / "results.json", results)
        return results

    def _untrained(self) -> dict[str, Any]:
        """What the initial weights score on every trial list; nothing where they cannot be had any more.

        They are a function of the seed and made again here, so that training starts without a delay.
        """
        try:
            self.train_step = self._build_step(pretrained=True)
        except UserError as error:
            log.warning("the untrained encoder is not scored: %s", error)
            return {}
        return {name: self._evaluate(evaluation) for name, evaluation in self.data.evaluation.items()}

    def _announce(self) -> None:
        size = sum(p.numel() for p in self.train_step.model.parameters())
        processes, on_cuda = distributed.world_size(), self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if on_cuda else f"{torch.get_num_threads()} threads"
        log.info(
            "model: %s, %.2f M parameters, embedding of %d; %d classes",
            self.cfg.names.model, size / 1e6, self.train_step.model.embedding_size, len(self.labels),
        )  # fmt: skip
        log.info(
            "training: %d steps, %d an epoch, which takes %d of %d utterances, on %s%s",
            self.total_steps, self.steps_per_epoch, self.sampler.utterances_per_epoch, len(self.data.train),
            device, f" × {processes} processes" if processes > 1 else "",
        )  # fmt: skip
        if "val" not in self.data.evaluation:
            log.warning(
                "no validation trials: the best checkpoint is the last; data.split or data.trials.val gives some"
            )

    def _explain_the_end(self, error: BaseException) -> None:
        """After an interruption or a failure, say what there is to go on from."""
        if not distributed.is_main() or not isinstance(error, Exception | KeyboardInterrupt):
            return
        saved = checkpoint.repaired(self.folder / "checkpoints" / "last")
        what = f"saved at step {checkpoint.load_state(saved)['step']}" if saved else "nothing was saved yet"
        log.info("%s; go on with: python -m spkexp.train resume=%s", what, self.folder)


def _open_folder(cfg: DictConfig, resumed: bool) -> Path:
    """The run's folder, the same on every process, with its log file and environment.json."""
    folder: Path | UserError | None = None
    if distributed.is_main():
        try:
            folder = Path(cfg.run_dir) if resumed else run_folder.create(cfg)
        except UserError as error:
            folder = error
    folder = distributed.broadcast(folder)
    if isinstance(folder, UserError):
        raise folder
    assert folder is not None
    set_up_logging(folder / "train.log" if distributed.is_main() else None)
    if distributed.is_main():
        run_folder.record_environment(folder)
        log.info("run folder: %s", folder)
    return folder
