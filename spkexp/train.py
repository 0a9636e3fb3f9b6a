"""`python -m spkexp.train`: train an encoder, choose the best checkpoint on the validation trials, report."""

import pkgutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spkexp.cli import hydra_command, set_up_logging
from spkexp.resume import config_to_resume

# A run is evaluated and resumed from wherever its user stands then.
PATHS = (
    *(
        f"data.{key}"
        for key in ("manifest", "root", "cache_dir", "stage_dir", "trials.val", "trials.test", "trials.models")
    ),
    "augment.musan",
    "augment.rirs",
    "init_from",
    "run_dir",
)


def with_absolute_paths(cfg: DictConfig) -> DictConfig:
    """`cfg` with its paths made absolute from the current folder."""
    corpus = cfg.data.corpus
    own = () if corpus is None else getattr(pkgutil.resolve_name(corpus._target_), "PATHS", ())
    for key in (*PATHS, *(f"data.corpus.{key}" for key in own)):
        if (path := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(cfg, key, str(Path(path).expanduser().absolute()))
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


def train(cfg: DictConfig, overrides: list[str]) -> None:
    """One run, from config to results.json; under torchrun, this process's part of it."""
    resumed = cfg.resume is not None
    if resumed:
        cfg = config_to_resume(cfg.resume, overrides)
    cfg = with_absolute_paths(cfg)
    # torch takes seconds to import: only now that the config is known to be right.
    from spkexp import distributed

    set_up_logging()
    with distributed.processes(cfg.trainer.device) as device:
        from spkexp.experiment import Experiment
        from spkexp.interrupt import Stopped

        try:
            Experiment(cfg, device, resumed).run()
        except Stopped as stopped:
            sys.exit(128 + stopped.signal)


main = hydra_command(train)

if __name__ == "__main__":
    main()
