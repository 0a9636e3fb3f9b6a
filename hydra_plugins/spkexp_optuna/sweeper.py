"""The sweeper that Hydra makes of conf/hydra/sweeper/optuna.yaml."""

import sys
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from pydantic import ValidationError

from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.config import describe_error
from spkexp.errors import ConfigError
from spkexp.pruning import import_optuna, masked
from spkexp.sections import Section, Text
from spkexp.types import NonNegativeInt, PositiveInt


class Settings(Section):
    params: dict[str, Any] | None
    n_trials: PositiveInt
    n_jobs: PositiveInt
    sampler: Literal["tpe", "random", "grid", "qmc", "gp", "cmaes"]
    sampler_startup: NonNegativeInt
    seed: NonNegativeInt
    pruner: Literal["none", "median", "halving", "hyperband"]
    pruner_startup: NonNegativeInt
    pruner_warmup: NonNegativeInt
    pruner_reduction: PositiveInt
    max_failures: PositiveInt | None
    retry_failed: bool
    study_name: Text | None
    storage: Text | None


class OptunaSweeper(Sweeper):
    """Draws the overrides of each job from what earlier jobs came to, instead of trying every combination."""

    def __init__(
        self,
        params: Any,
        n_trials: Any,
        n_jobs: Any,
        sampler: Any,
        sampler_startup: Any,
        seed: Any,
        pruner: Any,
        pruner_startup: Any,
        pruner_warmup: Any,
        pruner_reduction: Any,
        max_failures: Any,
        retry_failed: Any,
        study_name: Any,
        storage: Any,
    ) -> None:
        """conf/hydra/sweeper/optuna.yaml says what they are; `sweep` holds them against `Settings`.

        Hydra wraps what a constructor raises, so that a message for the user would drown.
        """
        self._stated = {
            "params": OmegaConf.to_container(params) if isinstance(params, DictConfig) else params,
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "sampler": sampler,
            "sampler_startup": sampler_startup,
            "seed": seed,
            "pruner": pruner,
            "pruner_startup": pruner_startup,
            "pruner_warmup": pruner_warmup,
            "pruner_reduction": pruner_reduction,
            "max_failures": max_failures,
            "retry_failed": retry_failed,
            "study_name": study_name,
            "storage": storage,
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        _forget_passwords(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search until n_trials are there; print the best. A mistake exits with 2, failed trials with 1."""
        with errors_to_exit_codes():
            set_up_logging()
            settings = self._settings()
            import_optuna()
            from hydra_plugins.spkexp_optuna._search import Hydra, search
            from hydra_plugins.spkexp_optuna._space import read

            assert self.hydra_context is not None
            assert self.config is not None
            assert self.launcher is not None
            loader = self.hydra_context.config_loader
            given = [f"{key}={'null' if value is None else value}" for key, value in (settings.params or {}).items()]
            space = read([*given, *arguments], loader)
            search(settings, space, Hydra(loader, self.config, self.launcher))

    def _settings(self) -> Settings:
        try:
            return Settings.model_validate(self._stated)
        except ValidationError as error:
            mistakes = [
                describe_error(f"hydra.sweeper.{'.'.join(map(str, e['loc']))}", e, Settings) for e in error.errors()
            ]
            raise ConfigError(mistakes) from None


def _forget_passwords(config: DictConfig) -> None:
    """Without those of hydra.sweeper.storage: Hydra's part of `config` goes to the jobs, by way of files, and what runs
    are stored with, their own and wandb's, says by which command they were started."""
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = map(masked, arguments)
    known: Any = HydraConfig.instance().cfg
    for hydra in [config.hydra, *([known.hydra] if known is not None else [])]:
        with read_write(hydra):
            given = OmegaConf.to_container(hydra.sweeper, resolve=False)
            if isinstance(given, dict) and isinstance(given.get("storage"), str):
                hydra.sweeper.storage = masked(given["storage"])
            hydra.overrides.hydra = [masked(override) for override in hydra.overrides.hydra]
