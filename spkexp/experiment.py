"""A run from its config to its results: set up, train, score the best checkpoint, write what people read."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import build, checkpoint, corpus, distributed, durable, initial_weights, numerics, run_folder
from spkexp.augment.augmentation import Signal
from spkexp.batch_memory import largest_batch_size
from spkexp.cli import set_up_logging
from spkexp.data.dataset import Batch, Crops, Parts, loader
from spkexp.errors import UserError
from spkexp.interrupt import Stopped, StopRequest
from spkexp.loss_setup import check_loss, distillation, teacher_of
from spkexp.machine import check_machine
from spkexp.meter import BadFiles, Meter
from spkexp.model_choice import keep_model_of_source
from spkexp.outcome import Outcome
from spkexp.parameter_groups import Freezing, check_optimizer, parameter_groups
from spkexp.pruning import Pruning
from spkexp.report.finished import as_it_ended
from spkexp.report.table import results_table
from spkexp.results import write_results
from spkexp.savepoint import Origin, read_state
from spkexp.scorer import Scorer
from spkexp.sections import Search, Tracking
from spkexp.sections import Trainer as TrainerSettings
from spkexp.step import TrainStep
from spkexp.tracking import Tracker
from spkexp.trainer import Pruned, Trainer

log = logging.getLogger(__name__)


def run_experiment(cfg: DictConfig, device: torch.device, resumed: bool, stop: StopRequest) -> Outcome:
    """resumed: cfg.run_dir is the folder of a run to go on with. Raises UserError, and Stopped with all saved."""
    check_machine(cfg, device)
    settings = TrainerSettings.model_validate(OmegaConf.to_container(cfg.trainer))
    with numerics.configure(settings, device), run_folder.opened(cfg, resumed) as place:
        try:
            set_up_logging(place.folder / "train.log" if distributed.is_main() else None)
            if place.finished:
                return as_it_ended(place.folder, shown=distributed.is_main())
            if distributed.is_main():
                run_folder.record_environment(place.folder, cfg)
                keep_model_of_source(cfg, place.folder)
                log.info("run folder: %s", place.folder)
            experiment = Experiment(cfg, settings, device, place.folder, place.resumed, stop)
        except (OSError, KeyboardInterrupt, Stopped) as error:  # a mistake in the config leaves nothing to go on with
            if (mistake := _explain_the_end(place.folder, error)) is not None:
                raise mistake from error
            raise
        return experiment.run()


class Experiment:
    """One training run: the constructor builds everything, `run` uses it."""

    def __init__(
        self,
        cfg: DictConfig,
        settings: TrainerSettings,
        device: torch.device,
        folder: Path,
        resumed: bool,
        stop: StopRequest,
    ) -> None:
        self.cfg, self.settings, self.device, self.folder, self.stop = cfg, settings, device, folder, stop
        self.workers = corpus.num_workers(cfg, device)
        try:
            self._build(resumed)
        except UserError:
            if not resumed and distributed.is_main():  # nothing was trained: the corrected command finds the place free
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _build(self, resumed: bool) -> None:
        # The augmentation first: its mistakes are found in seconds, and reading the data can take minutes.
        rate, augment = self.cfg.model.features.sample_rate, self.cfg.augment
        self.augmentation = build.augmentation(augment.waveform, "augment.waveform", rate)
        self.augment_features = build.augmentation(augment.features, "augment.features", rate)
        self.banks = self.augmentation.banks if self.augmentation else ()
        teacher = teacher_of(self.cfg)
        self.data = corpus.data(self.cfg)
        if not distributed.all_have(self.data.train.digest()):
            raise UserError(
                "data: the processes see different utterances; let them share data.cache_dir and the corpus, or run "
                "spkexp.prepare refresh=true on each node"
            )
        self.labels = self.data.train.label_names
        self.scorer = Scorer(self.cfg, self.data, self.labels, self.device, self.workers)
        self._choose_batch_size(resumed)
        self.sampler = build.sampler(self.cfg, self.data.train, self.cfg.trainer.batch_size)
        last = self.settings.epochs * self.sampler.steps_per_epoch
        self.origin = Origin(
            self.cfg,
            self.labels,
            self.data.train.digest(),
            {bank.place: bank.digest for bank in self.banks},
            self.sampler.steps_per_epoch,
            min(last, self.settings.max_steps or last),
            durable.digest(teacher / checkpoint.MODEL) if teacher is not None else None,
        )
        found = distributed.decided_by_main(self._newest) if resumed else None
        self.train_step = step = self._build_step(found is None, self.origin.steps_per_epoch, announce=True)
        check_loss(self.cfg, step.head, self.sampler)
        if teacher is not None:
            step.distillation = distillation(self.cfg, teacher, step.model, step.head, self.labels, self.device)
        if self.settings.compile:
            numerics.compile_encoder(self.train_step.model, self.device)
        self.trainer = self._build_trainer(resumed, found)
        if distributed.is_main():  # the next resume goes by what changed in this one
            run_folder.update_config(self.cfg, self.folder)

    def run(self) -> Outcome:
        """Train to the end, or raise Stopped with everything saved; then score and report."""
        trainer = self.trainer
        try:
            self._announce()
            trainer.fit()
            results, scored = write_results(
                self.cfg, self.folder, trainer, self.scorer, self.sampler.utterances_per_epoch, self.banks,
                lambda: self._build_step(True, self.origin.steps_per_epoch), self.stop,
            )  # fmt: skip
        except Pruned:
            log.info("the search that this run belongs to ends it: others were better at the same step")
            trainer.tracker.close()
            return Outcome(str(self.folder), trainer.position.best.get("value"), pruned=True)
        except BaseException as error:
            if (mistake := _explain_the_end(self.folder, error)) is not None:
                raise mistake from error
            raise
        if distributed.is_main():
            print(results_table(results))
            print(f"run folder: {self.folder}", flush=True)
        trainer.tracker.summarise(results, sorted((self.folder / "plots").glob("*.png")), scored)
        trainer.tracker.close()
        return Outcome(str(self.folder), results["best_value"], pruned=False)

    def _choose_batch_size(self, resumed: bool) -> None:
        """Put a number in the place of "auto" in the config: a run goes on with the batches that it began with."""
        if self.cfg.trainer.batch_size != "auto":
            return
        began_with = checkpoint.load_config(self.folder, self.cfg.trust).trainer.batch_size if resumed else "auto"
        if began_with != "auto":
            self.cfg.trainer.batch_size = self.settings.batch_size = int(began_with)
            return
        rows = 1.0
        if self.augmentation is not None:  # it may give the original beside what became of it
            two = self._crops().__getitems__([(0, 0, 0), (0, 1, 0)])
            keys = two.key.numpy().view(np.uint64)
            signal = Signal(two.waveform, two.lengths, keys, np.arange(len(keys)))
            rows = len(self.augmentation(signal, iter(two.material)).waveform) / max(1, len(keys))
        step = self._build_step(pretrained=False, steps_per_epoch=1)
        train, node = self.data.train, self.cfg.data.sampler
        seconds, classes = self.cfg.data.crop_seconds, len(self.labels)
        # Of an utterance, an epoch may take one of several copies; of a speaker, a batch takes so many utterances once.
        most = train.rows if self.cfg.augment.speed_copies == "one" else len(train)
        together = node.get("utterances_per_speaker", 1)
        if node.get("epoch_hours") is not None and seconds is not None:
            most = round(node.epoch_hours * 3600 / seconds)
        if together > 1:
            most = min(most, together * classes)
        self.settings.batch_size = largest_batch_size(step, seconds, rows, self.settings, classes, most, together)
        self.cfg.trainer.batch_size = self.settings.batch_size

    def _build_step(self, pretrained: bool, steps_per_epoch: int, announce: bool = False) -> TrainStep:
        """Model and head with their initial weights, of which those of others are read only if `pretrained`.

        announce: say what of them was taken.
        """
        cfg, source = self.cfg, None
        torch.manual_seed(cfg.seed)
        model = build.model(cfg.model)
        if pretrained and cfg.init_from is not None:
            source = initial_weights.take(cfg, model, announce)
        elif pretrained:
            distributed.main_first(model.load_pretrained)  # one process downloads
        loss = build.loss(cfg, self.data.train, model.embedding_size, steps_per_epoch)
        if source is not None:
            source.take_classes(loss, self.labels, announce)
        return TrainStep(model, loss, self.augmentation, self.augment_features).to(self.device)

    def _newest(self) -> Path | None:
        found = checkpoint.newest(self.folder)
        if found is not None:
            checkpoint.settle(self.folder, found)
            found = checkpoint.newest(self.folder)
        return found

    def _build_trainer(self, resumed: bool, found: Path | None) -> Trainer:
        cfg, train, settings = self.cfg, self.data.train, self.settings
        named = settings.param_groups or {}
        groups = parameter_groups(self.train_step, named, settings.layer_decay, cfg.trainer.optimizer.get("lr"))
        schedule = build.build(
            cfg.trainer.schedule,
            "trainer.schedule",
            total_steps=self.origin.total_steps,
            steps_per_epoch=self.origin.steps_per_epoch,
        )
        tracking = Tracking.model_validate(OmegaConf.to_container(cfg.tracking))
        at = read_state(found)["position"] if found else {"step": 0, "validated": 0}
        search = Search.model_validate(OmegaConf.to_container(cfg.search)) if cfg.search else None
        optimizer = build.build(cfg.trainer.optimizer, "trainer.optimizer", params=groups)
        check_optimizer(optimizer, named)
        trainer = Trainer(
            train_step=self.train_step,
            optimizer=optimizer,
            schedule=schedule,
            freezing=Freezing(self.train_step, named, self.origin.steps_per_epoch),
            batches=self._batches(),
            validate=self._validate if "val" in self.data.evaluation else None,
            settings=settings,
            seed=cfg.seed,
            meter=Meter(train.id),
            bad_files=BadFiles(cfg.data.on_error, cfg.data.max_bad_fraction, train.rows),
            tracker=Tracker(self.folder, cfg, tracking, (at["step"], at["validated"]) if resumed else None),
            pruning=Pruning(search),
            origin=self.origin,
            folder=self.folder,
            device=self.device,
            stop=self.stop,
        )
        if found:
            trainer.load(found)
            log.info("resumed at step %d of %d", trainer.position.step, self.origin.total_steps)
        elif resumed:
            log.info("resumed: there is no checkpoint yet, so from the start")
        return trainer

    def _crops(self) -> Crops:
        cfg, data = self.cfg.data, self.data
        seconds, longest = cfg.crop_seconds, float(data.train.duration.max())
        if seconds is not None and longest < seconds:
            log.info("crops of %.2f s: no training utterance reaches data.crop_seconds=%g", longest, seconds)
            seconds = longest
        one_copy = self.cfg.augment.speed_copies == "one"
        return Crops(data.train, data.reading, seconds, cfg.short, self.cfg.seed, one_copy, self.augmentation)

    def _batches(self) -> Callable[[int], Iterator[Batch]]:
        crops = self._crops()

        def batches(step: int) -> Iterator[Batch]:
            parts = Parts(
                self.sampler,
                self.cfg.seed,
                range(step, self.origin.total_steps),
                self.settings.accumulate,
                distributed.world_size(),
                distributed.rank(),
            )
            return iter(loader(crops, parts, self.workers, pin=self.device.type == "cuda"))

        return batches

    def _validate(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        only = {"val": self.data.evaluation["val"]}
        return self.scorer.evaluate(self.train_step, only, should_stop, self.trainer.position.step)["val"]

    def _announce(self) -> None:
        parameters = {id(p): p.numel() for p in self.train_step.model.parameters()}
        size, groups = sum(parameters.values()), self.trainer.optimizer.param_groups
        trained = sum(parameters.get(id(p), 0) for group in groups for p in group["params"])
        learning = "" if trained == size else f", of which {trained / size:.1%} learn"
        processes, on_cuda = distributed.world_size(), self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if on_cuda else f"{torch.get_num_threads()} threads"
        log.info(
            "model: %s, %.2f M parameters%s, embedding of %d; %d classes",
            self.cfg.names.model, size / 1e6, learning, self.train_step.model.embedding_size, len(self.labels),
        )  # fmt: skip
        log.info(
            "training: %d steps, %d an epoch, which takes %d of %d utterances, on %s%s",
            self.origin.total_steps, self.origin.steps_per_epoch, self.sampler.utterances_per_epoch,
            len(self.data.train), device, f" × {processes} processes" if processes > 1 else "",
        )  # fmt: skip
        if "val" not in self.data.evaluation:
            log.warning(
                "no validation trials: the best checkpoint is the last; data.split or data.trials.val gives some"
            )


def _explain_the_end(folder: Path, error: BaseException) -> UserError | None:
    """After an interruption or a failure, say what there is to go on from; returns the user's part in it, if any."""
    if distributed.is_main() and isinstance(error, Exception | KeyboardInterrupt | Stopped):
        try:
            saved = checkpoint.newest(folder)
            what = "nothing was saved yet"
            if saved:
                what = f"saved at step {checkpoint.load_state(saved)['position']['step']}"
        except UserError as damaged:  # of all that goes wrong, this is not what ended the run
            what = str(damaged)
        log.info("%s; go on with: python -m spkexp.train resume=%s", what, folder)
    return numerics.explain(error) or durable.not_written(error, folder)
