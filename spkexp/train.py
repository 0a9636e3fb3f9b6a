"""`python -m spkexp.train`: train an encoder, choose the best checkpoint on the validation trials, report."""

import os
import pkgutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spkexp import sources, sweep
from spkexp.cli import hydra_command, set_up_logging
from spkexp.errors import ConfigError
from spkexp.model_choice import with_model_of_source
from spkexp.outcome import Outcome
from spkexp.report.finished import as_it_ended
from spkexp.resume import AUTO, NEVER, config_to_resume, is_finished, last_run

# A run is evaluated and resumed from wherever its user stands then.
PATHS = (
    *(
        f"data.{key}"
        for key in ("manifest", "root", "cache_dir", "stage_dir", "trials.val", "trials.test", "trials.models")
    ),
    "augment.musan",
    "augment.rirs",
    "run_dir",
)
SOURCES = ("init_from", "distill.teacher")  # paths, unless they are of the hub or the web


def with_absolute_paths(cfg: DictConfig) -> DictConfig:
    """`cfg` with its paths made absolute from the current folder."""
    corpus = cfg.data.corpus
    own = () if corpus is None else getattr(pkgutil.resolve_name(corpus._target_), "PATHS", ())
    for key in (*PATHS, *(f"data.corpus.{key}" for key in own)):
        if (path := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(cfg, key, str(Path(path).expanduser().absolute()))
    for key in SOURCES:
        if (source := OmegaConf.select(cfg, key)) is not None and not sources.is_remote(source):
            OmegaConf.update(cfg, key, str(Path(source).expanduser().absolute()))
    _with_absolute_roots(cfg.augment.waveform)
    return cfg


def _with_absolute_roots(node: Any) -> None:
    """Every `root` below `node`: banks of recordings that are not below augment.musan or augment.rirs."""
    if isinstance(node, DictConfig):
        for key in node:
            if key == "root" and isinstance(node[key], str):
                node[key] = str(Path(node[key]).expanduser().absolute())
            else:
                _with_absolute_roots(node[key])


def train(cfg: DictConfig, overrides: list[str]) -> Outcome | None:
    """One run, from config to results.json: in this process, under torchrun this process's part of it, or in
    trainer.nproc processes that are started here."""
    resumed = cfg.resume not in (None, AUTO, NEVER)
    launched = "RANK" in os.environ
    if launched and cfg.trainer.nproc is not None:
        raise ConfigError(["trainer.nproc: torchrun starts the processes already; leave one of the two out"])
    if resumed:
        cfg = with_absolute_paths(config_to_resume(cfg.resume, overrides))
    else:
        cfg = with_model_of_source(with_absolute_paths(cfg), overrides)
    if cfg.resume == AUTO and not launched and (found := last_run(cfg)) and is_finished(found):
        set_up_logging()
        return as_it_ended(found, shown=True)
    if cfg.trainer.nproc is None or launched:
        return run(cfg, resumed)
    from spkexp import launch

    return launch.run(cfg, resumed)


def run(cfg: DictConfig, resumed: bool) -> Outcome:
    """This process's part of a run. resumed: cfg.run_dir is the folder of a run to go on with."""
    # torch takes seconds to import: only now that the config is known to be right.
    from spkexp import distributed

    set_up_logging()
    with distributed.processes(cfg.trainer.device, cfg.trainer.timeout_minutes) as device:
        from spkexp.interrupt import Stopped, StopRequest

        try:
            with StopRequest() as stop, stop.at_once():
                from spkexp.experiment import run_experiment

                return run_experiment(cfg, device, resumed, stop)
        except Stopped:
            stopped = stop.ending()  # a warning may have followed
    return stopped.leave()


main = hydra_command(train, sweep)

if __name__ == "__main__":
    main()
