"""The folder that a run leaves behind."""

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from spkexp import distributed
from spkexp.code_state import code_state
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.pruning import masked
from spkexp.resume import (
    AUTO,
    ENVIRONMENT,
    RESULTS,
    config_of,
    environment_of,
    fingerprint,
    fingerprints,
    is_finished,
    last_run,
)
from spkexp.whole_file import replacing, write_json

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a run is to be: whether there is one already to go on with, and whether that one is at its end."""

    folder: Path
    resumed: bool
    finished: bool


@contextmanager
def opened(cfg: DictConfig, resumed: bool) -> Iterator[Place]:
    """The run's folder, the same in every process, which nobody else writes to meanwhile. Raises UserError in all.

    resumed: cfg.run_dir is the folder of a run to go on with. Otherwise it is that of an earlier attempt of the same
    launch, or with resume=auto the last run of this config, if there is one, else a new folder.
    """
    with ExitStack() as held:

        def find() -> Place:
            place = _find(cfg, resumed)
            busy = f"{place.folder} is being trained by {{holder}}; wait for it, or stop it"
            held.enter_context(
                hold(place.folder / ".lock", busy, "training needs the right to write in its run folder")
            )
            return place

        place = distributed.decided_by_main(find)
        distributed.remember(distributed.RUN_FOLDER, str(place.folder))
        yield place


def _find(cfg: DictConfig, resumed: bool) -> Place:
    own = Path(cfg.run_dir) if resumed else None
    if (before := distributed.recall(distributed.RUN_FOLDER)) and Path(before, "config.yaml").is_file():
        own = Path(before)
    elif cfg.resume == AUTO:
        own = last_run(cfg)
        if own is None:
            where = f"below runs/ (id {fingerprint(cfg)})" if cfg.run_dir is None else f"in {cfg.run_dir}"
            log.info("resume=auto: no earlier run of this config %s: a new one", where)
    if own is None:
        return Place(create(cfg), False, False)
    return Place(own, True, not resumed and is_finished(own))


def create(cfg: DictConfig) -> Path:
    """Make the run folder: cfg.run_dir, or runs/<date>/<time>-<model>-<data>-<id> below the current folder.

    id is the fingerprint of the config, by which resume=auto finds the run. Raises UserError where the folder exists
    with something in it, or cannot be made.
    """
    if cfg.run_dir is not None:
        return _create(Path(cfg.run_dir).expanduser(), cfg)
    while True:
        now = datetime.now()
        name = f"{now:%H%M%S}-{cfg.names.model}-{cfg.names.data}-{fingerprint(cfg)}"
        try:
            return _create(Path("runs", f"{now:%Y-%m-%d}", name), cfg)
        except Taken:  # the same config was started twice in a second
            time.sleep(1.0 - datetime.now().microsecond / 1e6)


class Taken(UserError):
    """A run folder has something in it already."""


def _create(folder: Path, cfg: DictConfig) -> Path:
    taken = Taken(
        f"run_dir: {folder} exists and is not empty; resume={folder} goes on with a run that is there, "
        "else choose another run_dir"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise taken
        # Of two runs that come here at once, one makes the file.
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            OmegaConf.save(cfg, file, resolve=True)
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            raise taken from None
        raise UserError(f"run_dir: {folder} cannot be written: {error.strerror}; set run_dir=DIR") from error
    return folder


def update_config(cfg: DictConfig, folder: Path) -> None:
    """Make `cfg` the config that the next resume of the run goes by, and that resume=auto knows it by.

    The results of a run that was at its end and goes on are removed: they are not those of its next end.
    """
    if is_finished(folder):
        (folder / RESULTS).unlink()
        log.info("%s had come to its end before: its %s is removed, and written anew at the end", folder, RESULTS)
    known, (own, auto) = environment_of(folder), fingerprints(cfg)
    if known and known.get("config") not in (own, auto):
        asked_auto = known.get("config") == _fingerprint_of_auto(folder)
        write_json(folder / ENVIRONMENT, known | {"config": auto if asked_auto else own})
    with replacing(folder / "config.yaml") as temporary:
        OmegaConf.save(cfg, temporary, resolve=True)


def _fingerprint_of_auto(folder: Path) -> str | None:
    """What the config of the run in `folder` was known by if its trainer.batch_size was asked for as auto."""
    try:
        return fingerprints(config_of(folder))[1]
    except UserError:
        return None  # nothing tells


def environment() -> dict[str, Any]:
    """What a reader needs to know to repeat the run: command, code, packages, hardware."""
    return {
        "command": [sys.executable, *map(masked, sys.orig_argv[1:])],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "git": code_state(),
        "packages": {d.name: d.version for d in sorted(distributions(), key=lambda d: d.name.lower())},
    }


def record_environment(folder: Path, cfg: DictConfig) -> None:
    """Write environment.json; each later start of the same run is appended to its "resumed"."""
    now, first = environment(), environment_of(folder)
    # Without one this is the first start, or the one before was killed in it.
    again = first | {"resumed": [*first.get("resumed", []), now]}
    write_json(folder / ENVIRONMENT, again if first else {"config": fingerprint(cfg), **now})
