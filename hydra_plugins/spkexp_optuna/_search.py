"""The search itself: draw trials, hand them to the launcher, tell what became of them."""

import importlib.util
import logging
import math
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from optuna import samplers
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.spkexp_optuna._space import MAX_GRID, Point, Space
from hydra_plugins.spkexp_optuna._study import DONE, ERROR, RUN_DIR, Trials, first_number, name_of, opened
from hydra_plugins.spkexp_optuna._summary import outcome_line, summary
from hydra_plugins.spkexp_optuna.sweeper import Settings
from spkexp import exit_codes
from spkexp.cli import set_up_logging
from spkexp.config import check
from spkexp.errors import ConfigError, UserError
from spkexp.pruning import RETRY_OF, PrunerSettings
from spkexp.records import Ticket

log = logging.getLogger("spkexp.search")

# A sampler that draws the same point so often in a row is done with a space of few points.
MAX_DUPLICATES = 10
# What optuna imports only when such a sampler draws.
NEEDS = {"gp": "scipy", "qmc": "scipy", "cmaes": "cmaes"}


@dataclass(frozen=True)
class Hydra:
    """What Hydra lends to a sweeper: who composes configs, the config without a trial's overrides, who runs jobs."""

    loader: ConfigLoader
    config: DictConfig
    launcher: Launcher

    def stopped_with(self) -> int:
        """The exit code of a search whose jobs were stopped: the one that the sweep knows, else as after SIGTERM."""
        folder = Path(self.config.hydra.sweep.dir)
        stopped = Ticket.read(folder).stopped if (folder / "sweep.json").is_file() else None
        return exit_codes.of_signal(signal.SIGTERM) if stopped is None else stopped

    def mistakes(self, overrides: list[str]) -> list[str]:
        """What is wrong with the config of a job."""
        former = HydraConfig.instance().cfg
        try:
            cfg = self.loader.load_sweep_config(self.config, overrides)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
            OmegaConf.resolve(cfg)
            check(cfg)
        except ConfigError as error:
            return error.mistakes
        except (HydraException, OmegaConfBaseException) as error:
            return [" ".join(str(error).split())]
        finally:
            HydraConfig.instance().cfg = former
        return []


def search(settings: Settings, space: Space, hydra: Hydra) -> None:
    """Run trials until n_trials are there and print the best. Exits with 1 if some of this start failed.

    Raises UserError for settings, a space or a database that cannot be used.
    """
    warnings.simplefilter("ignore", ExperimentalWarning)  # what is used of optuna is covered by tests
    sampler_for(settings, space, 0)
    if settings.params:  # what stands on the command line has been checked before
        mistakes = [mistake for point in space.corners() for mistake in hydra.mistakes(space.overrides(point))]
        if mistakes:
            raise ConfigError(list(dict.fromkeys(mistakes)))
    pruner = PrunerSettings(settings.pruner, settings.pruner_startup, settings.pruner_warmup, settings.pruner_reduction)
    with opened(settings.study_name or name_of(space), settings.storage, space, pruner) as trials:
        failed = Search(settings, space, hydra, trials).run()
    if failed:
        sys.exit(1)


class Search:
    def __init__(self, settings: Settings, space: Space, hydra: Hydra, trials: Trials) -> None:
        self.settings, self.space, self.hydra, self.trials = settings, space, hydra, trials
        self.failed = 0  # of this start
        self.jobs = 0  # launched in this start

    def run(self) -> int:
        """How many trials failed. What ends the search before its time goes through, with the trials left resumable."""
        trials, wanted = self.trials, self.settings.n_trials
        self._clean_up()
        interrupted = trials.having(TrialState.RUNNING)
        done = len(trials.having(*DONE))
        if done >= wanted:
            log.info("search %s: hydra.sweeper.n_trials=%d reached before, nothing to run", trials.name, wanted)
        elif trials.all():
            again = len(trials.having(TrialState.WAITING))
            counts = f"{done} of {wanted} trials done, {len(interrupted)} to resume, {again} failed ones to run again"
            log.info("search %s goes on: %s", trials.name, counts)
        else:
            log.info("search %s begins: %d trials; %s", trials.name, wanted, trials.where)
        try:
            while (left := wanted - len(trials.having(*DONE))) > 0:
                batch = self._next_batch(interrupted, min(left, self.settings.n_jobs))
                if not batch:
                    log.info("search %s: every combination has been tried", trials.name)
                    break
                self._launch(batch)
                if self.settings.max_failures is not None and self.failed >= self.settings.max_failures:
                    log.error("search %s: stopped after hydra.sweeper.max_failures=%d", trials.name, self.failed)
                    break
        except (KeyboardInterrupt, SystemExit):
            set_up_logging()  # the run's own log file ends here
            log.info("search %s: interrupted; the same command goes on with it", trials.name)
            raise
        print(summary(trials, self.space, wanted, self.settings.retry_failed), flush=True)
        return self.failed

    def _clean_up(self) -> None:
        """Leftovers of a start that was killed, and failures that are to be run again."""
        keys = set(self.space.distributions)
        for trial in self.trials.having(TrialState.RUNNING):
            if set(trial.params) != keys:  # killed while it was drawn: there is nothing to resume
                self.trials.drop(trial.number, "interrupted while it was drawn")
        if self.settings.retry_failed:
            for trial in self.trials.having(TrialState.FAIL):
                self.trials.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: first_number(trial)})

    def _next_batch(self, interrupted: list[FrozenTrial], size: int) -> list[FrozenTrial]:
        """Trials to run, at most `size`: interrupted ones first, under their own numbers. Empty: none are left."""
        batch = [interrupted.pop(0) for _ in range(min(size, len(interrupted)))]
        while len(batch) < size and (trial := self._draw()) is not None:
            batch.append(trial)
        return batch

    def _draw(self) -> FrozenTrial | None:
        """A trial that repeats no other; None once every point of a finite space has been tried."""
        study, distributions = self.trials.study, dict(self.space.distributions)
        for attempt in range(MAX_DUPLICATES + 1):
            seen = self._seen()
            waiting = bool(self.trials.having(TrialState.WAITING))
            if not waiting and (self.settings.sampler == "grid" or attempt == MAX_DUPLICATES):
                point = self._untried(seen)
                if point is None:
                    return None
                study.enqueue_trial(dict(point))
                waiting = True
            study.sampler = sampler_for(self.settings, self.space, len(study.get_trials(deepcopy=False)))
            number = study.ask(fixed_distributions=distributions).number
            trial = study.get_trials(deepcopy=False)[number]
            same = seen.get(self._key(trial.params))
            if waiting or same is None:
                return trial
            self.trials.drop(number, f"drawn before, as trial {same}")
        return None

    def _seen(self) -> dict[tuple[str, ...], int]:
        keys = set(self.space.distributions)
        found = [trial for trial in self.trials.all() if set(trial.params) == keys]
        return {self._key(trial.params): trial.number for trial in found}

    def _key(self, point: Point) -> tuple[str, ...]:
        return tuple(self.space.overrides(point))

    def _untried(self, seen: dict[tuple[str, ...], int]) -> Point | None:
        size = self.space.size()
        if size is None or size > MAX_GRID:
            return None
        return next((p for p in self.space.points(self.settings.seed) if self._key(p) not in seen), None)

    def _launch(self, batch: Sequence[FrozenTrial]) -> None:
        legal: list[FrozenTrial] = []
        for trial in batch:
            mistakes = self.hydra.mistakes(self._overrides(trial))
            if mistakes:
                self._tell(trial, {"status": "failed", "value": None, "error": "; ".join(mistakes), "run_dir": None})
            else:
                legal.append(trial)
        if not legal:
            return
        for trial in legal:
            drawn = self.space.overrides(trial.params)[len(self.space.fixed) :]
            log.info("trial %d: %s", first_number(trial), " ".join(drawn))
        returns = self.hydra.launcher.launch([self._overrides(trial) for trial in legal], initial_job_idx=self.jobs)
        self.jobs += len(legal)
        set_up_logging()  # the run's own log file ends here
        results = [result_of(returned) for returned in returns]
        for trial, result in zip(legal, results, strict=True):
            if result["status"] != "stopped":  # by a signal: it stays open, to be resumed
                self._tell(trial, result)
        if any(result["status"] == "stopped" for result in results):
            sys.exit(self.hydra.stopped_with())

    def _overrides(self, trial: FrozenTrial) -> list[str]:
        storage, study = (
            QuotedString(text, Quote.single).with_quotes() for text in (self.trials.where, self.trials.name)
        )
        # The number of its first try, so that a trial that is run again has the config of the run that it resumes.
        where = f"search={{storage: {storage}, study: {study}, trial: {first_number(trial)}}}"
        return [*self.space.overrides(trial.params), where]

    def _tell(self, trial: FrozenTrial, result: dict[str, Any]) -> None:
        """Record what became of `trial`."""
        status, value, error = result["status"], result["value"], result["error"]
        if status == "finished" and (value is None or not math.isfinite(value)):
            status, error = "failed", (
                "it has no validation trials, so no value to search by; data.split or data.trials.val gives some"
                if value is None
                else f"its value is {value}"
            )  # fmt: skip
        if result["run_dir"] is not None:
            self.trials.note(trial.number, RUN_DIR, str(result["run_dir"]))
        study = self.trials.study
        if status == "finished":
            study.tell(trial.number, value)
        elif status == "pruned":
            study.tell(trial.number, state=TrialState.PRUNED)
        else:
            self.failed += 1
            self.trials.note(trial.number, ERROR, error or "no reason given")
            study.tell(trial.number, state=TrialState.FAIL)
        log.info(outcome_line(self.trials, trial.number))


def result_of(returned: JobReturn) -> dict[str, Any]:
    """What the job says of itself; that it failed, where it ended with an exception or says nothing."""
    try:
        result = returned.return_value
    # Whatever a job raised, Hydra hands it on here.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"status": "failed", "value": None, "error": reason, "run_dir": None}
    if not isinstance(result, dict) or result.get("status") not in ("finished", "pruned", "failed", "stopped"):
        return {"status": "failed", "value": None, "error": f"the job returned {result!r}", "run_dir": None}
    return {"value": None, "error": None, "run_dir": None, **result}


def sampler_for(settings: Settings, space: Space, number: int) -> samplers.BaseSampler:
    """The sampler that draws trial `number`: a function of the seed, the number and the trials before it.

    One sampler for all would draw the first trials once more whenever the search is started again. Raises UserError.
    """
    size = space.size()
    if settings.sampler == "grid" and (size is None or size > MAX_GRID):
        reason = "an interval has no grid; give range(…, step=…) or choice(…)" if size is None else f"{size:,} points"
        raise UserError(f"hydra.sweeper.sampler: grid tries every combination of at most {MAX_GRID:,}: {reason}")
    needed = NEEDS.get(settings.sampler)
    if needed is not None and importlib.util.find_spec(needed) is None:
        raise UserError(f"hydra.sweeper.sampler: {settings.sampler} needs {needed}; pip install {needed}, or take tpe")
    seed, startup = (settings.seed * 1_000_003 + number) % 2**32, settings.sampler_startup
    if settings.sampler == "tpe":
        return samplers.TPESampler(n_startup_trials=startup, seed=seed, multivariate=True, constant_liar=True)
    if settings.sampler == "gp":
        return samplers.GPSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
    if settings.sampler == "cmaes":
        return samplers.CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
    if settings.sampler == "qmc":  # one sequence, in which the trials of all starts have their places
        return samplers.QMCSampler(
            scramble=True, seed=settings.seed, warn_asynchronous_seeding=False, warn_independent_sampling=False
        )
    return samplers.RandomSampler(seed)
