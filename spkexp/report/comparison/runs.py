"""Runs as they are found on disk: their configs, their results, and what became of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from spkexp import saved_config
from spkexp.errors import UserError
from spkexp.foreign import LABELS_BYTES, read_json
from spkexp.records import FINISHED, differences, records
from spkexp.resume import environment_of

UNFINISHED = "unfinished"
_OWN_NAME = re.compile(r"(?P<time>\d{6})-.+-(?P<id>[0-9a-f]{8})")  # as spkexp.run_folder makes them


@dataclass(frozen=True)
class Run:
    """A run folder as it is found; results is None where the run did not come to its end."""

    folder: Path | None  # None: a job of a sweep that never got one
    config: Mapping[str, Any]
    results: Mapping[str, Any] | None
    status: str  # what the sweep's record says; else finished or unfinished; or what is wrong with the folder
    overrides: tuple[str, ...]  # of a sweep's job, those that not all jobs have

    @property
    def name(self) -> str:
        """The folder's, without what only tells when the run began, and with so much of the id as mostly will do."""
        if self.folder is None:
            return " ".join(self.overrides) or "a job"
        made = _OWN_NAME.fullmatch(self.folder.name)
        model = (self.config.get("names") or {}).get("model")
        return f"{model} {made['id'][:4]}" if made and model else self.folder.name

    @property
    def when(self) -> str | None:
        """Day and time of the beginning, of a folder that has a name of its own making."""
        made = _OWN_NAME.fullmatch(self.folder.name) if self.folder is not None else None
        return f"{self.folder.parent.name}/{made['time']}" if self.folder is not None and made else None

    @property
    def code(self) -> str | None:
        """The commit that trained it last; None where nothing tells."""
        if self.folder is None:
            return None
        found = environment_of(self.folder)
        commit = ([found, *found.get("resumed", [])][-1].get("git") or {}).get("commit")
        return commit[:7] if commit else None

    def entry(self, trials: str | None) -> Mapping[str, Any] | None:
        """What results.json says of a trial list."""
        found = ((self.results or {}).get("trials") or {}).get(trials)
        return found if isinstance(found, Mapping) else None


def read_runs(places: Sequence[Path]) -> list[Run]:
    """The runs at `places`: run folders, or folders of sweeps, whose records name runs. Raises UserError."""
    found: list[Run] = []
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; RUN is a run folder, or the folder of a sweep")
        if (place / "config.yaml").is_file():
            found.append(_read_run(place, None, ()))
        elif (place / "sweep.json").is_file():
            found += _read_sweep(place)
        else:
            within = sum(1 for _ in place.glob("*/config.yaml"))
            hint = f"; it holds {within} run folder{'s' * (within != 1)}: name {place}/*" if within else ""
            raise UserError(
                f"{place}: neither a run folder (no config.yaml) nor the folder of a sweep (no sweep.json){hint}"
            )
    unique: dict[Any, Run] = {}
    for index, run in enumerate(found):
        unique.setdefault(index if run.folder is None else run.folder.resolve(), run)
    return list(unique.values())


def all_runs(root: Path) -> list[Run]:
    """The runs in the places that runs get by default, below `root`."""
    return [_read_run(file.parent, None, ()) for file in sorted(root.glob("*/*/config.yaml"))]


def _read_sweep(folder: Path) -> list[Run]:
    try:
        jobs = records(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: a record of a job in it cannot be read: {error}") from error
    found = []
    for job, own in zip(jobs, differences(jobs), strict=True):
        place, overrides = _place(folder, job.run_dir) if job.run_dir else None, tuple(own)
        if place is not None and (place / "config.yaml").is_file():
            found.append(_read_run(place, job.status, overrides))
        else:  # it never got a folder, or that is gone, or named as seen from elsewhere
            status = f"no folder {place} here" if place else job.status
            found.append(Run(None, {}, None, status, overrides))
    return found


def _place(sweep: Path, run_dir: str) -> Path:
    """Where a run of the sweep is: a relative `run_dir` is below the folder that the sweep was started in, one of its
    parents."""
    for parent in sweep.resolve().parents:
        if (parent / run_dir / "config.yaml").is_file():
            return parent / run_dir
    return Path(run_dir)


def _said_of(folder: Path, error: UserError) -> str:
    """Without the folder, which is known, and without the remedy."""
    text = str(error).removeprefix(f"{folder}/")
    return text.rpartition("; ")[0] or text


def _read_run(folder: Path, status: str | None, overrides: tuple[str, ...]) -> Run:
    """A damaged folder is a run without results, so that it does not keep the others from being compared."""
    try:
        config = cast(dict[str, Any], OmegaConf.to_container(saved_config.read(folder / "config.yaml")))
    except UserError as error:
        return Run(folder, {}, None, _said_of(folder, error), overrides)
    file = folder / "results.json"
    if not file.is_file():
        return Run(folder, config, None, UNFINISHED if status in (None, FINISHED) else status, overrides)
    try:
        results = read_json(file, LABELS_BYTES)
    except UserError as error:
        return Run(folder, config, None, _said_of(folder, error), overrides)
    if not (isinstance(results, dict) and isinstance(results.get("trials"), dict)):
        return Run(folder, config, None, "results.json has no trials", overrides)
    return Run(folder, config, results, status or FINISHED, overrides)
