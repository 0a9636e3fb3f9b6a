"""Runs side by side: what they scored, what they cost, and in what they differ."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError

from spkexp.changes import changes, flat, override
from spkexp.errors import UserError
from spkexp.records import FINISHED, records

UNFINISHED = "unfinished"
_OWN_NAME = re.compile(r"(?P<time>\d{6})-.+-(?P<id>[0-9a-f]{8})")  # as spkexp.run_folder makes them


@dataclass(frozen=True)
class Run:
    """A run folder as it is found; results is None where the run did not come to its end."""

    folder: Path | None  # None: a job of a sweep that never got one
    config: Mapping[str, Any]
    results: Mapping[str, Any] | None
    status: str  # what the sweep's record says; else finished or unfinished
    overrides: tuple[str, ...]  # of a sweep's job

    @property
    def name(self) -> str:
        """The folder's, without what only tells when the run began, and with so much of the id as mostly will do."""
        if self.folder is None:
            return " ".join(self.overrides) or "a job"
        made = _OWN_NAME.fullmatch(self.folder.name)
        model = (self.config.get("names") or {}).get("model")
        return f"{model} {made['id'][:4]}" if made and model else self.folder.name


@dataclass(frozen=True)
class Comparison:
    """runs: those with an entry for `trials` first, the best first; then the others as they were given."""

    runs: list[Run]
    trials: str | None  # the list that they are compared on; None: no run has any
    differing: list[str]  # dotted config keys in which they differ

    def name(self, run: Run) -> str:
        """The run's; with day and time where another run has the same, for one config may be trained twice."""
        if run.folder is None or sum(other.name == run.name for other in self.runs) == 1:
            return run.name
        made = _OWN_NAME.fullmatch(run.folder.name)
        return f"{run.name} {run.folder.parent.name}/{made['time']}" if made else str(run.folder)

    def entry(self, run: Run) -> Mapping[str, Any] | None:
        """What results.json says of `trials`."""
        found = ((run.results or {}).get("trials") or {}).get(self.trials)
        return found if found is not None and error_of(found) is not None else None

    def differences(self, run: Run) -> dict[str, Any]:
        """The values of the differing keys that the run's config has."""
        own = flat(run.config) | changes(run.config) | dict(run.config.get("names") or {}) if run.config else {}
        return {key: own[key] for key in self.differing if key in own}


def error_of(entry: Mapping[str, Any]) -> float | None:
    """What a trial list is ranked by, the lower the better: EER, of a classifier 1 - accuracy; None: no labels."""
    if entry.get("eer") is not None:
        return float(entry["eer"])
    return 1 - float(entry["accuracy"]) if entry.get("accuracy") is not None else None


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
            raise UserError(f"{place}: neither a run folder (no config.yaml) nor the folder of a sweep (no sweep.json)")
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
    for job in jobs:
        place, overrides = _place(folder, job.run_dir) if job.run_dir else None, tuple(job.overrides)
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


def _read_run(folder: Path, status: str | None, overrides: tuple[str, ...]) -> Run:
    try:
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True))
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{folder / 'config.yaml'}: cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.yaml'}: no config of a run")
    file = folder / "results.json"
    results = _json(file) if file.is_file() else None
    if results is not None and not (isinstance(results, dict) and isinstance(results.get("trials"), dict)):
        raise UserError(f"{file}: no results of a run: it has no trials")
    if results is None:
        status = UNFINISHED if status in (None, FINISHED) else status
    return Run(folder, config, results, status or FINISHED, overrides)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def comparison(runs: Sequence[Run], trials: str | None = None) -> Comparison:
    """Rank `runs` by a trial list: `trials`; or test, or else the list that most of them have.

    Raises UserError where no run has the list that is asked for.
    """
    lists = Counter(
        name
        for run in runs
        for name, entry in ((run.results or {}).get("trials") or {}).items()
        if error_of(entry) is not None
    )
    if trials is not None and trials not in lists:
        there = f"there are {', '.join(lists)}" if lists else "none of the runs has results yet"
        raise UserError(f"trials={trials}: no run has such a list; {there}")
    chosen = trials or ("test" if "test" in lists else max(lists, key=lists.__getitem__, default=None))
    ranked = Comparison(list(runs), chosen, _differing(runs))

    def rank(run: Run) -> tuple[bool, float]:
        entry = ranked.entry(run)
        return entry is None, (error_of(entry) or 0.0) if entry is not None else 0.0

    return Comparison(sorted(runs, key=rank), chosen, ranked.differing)


def _differing(runs: Sequence[Run]) -> list[str]:
    configs = [run.config for run in runs if run.config]
    changed = [changes(config) for config in configs]
    known = [flat(c) | dict(c.get("names") or {}) | own for c, own in zip(configs, changed, strict=True)]
    keys = dict.fromkeys(key for own in changed for key in own)
    return [key for key in keys if len({repr(own.get(key)) for own in known}) > 1]


def comparison_table(compared: Comparison, width: int = 80) -> str:
    """For a terminal: rates in percent, a run that has none named with the reason. 80 columns or `width`."""
    entries = [compared.entry(run) for run in compared.runs]
    measured = [entry for entry in entries if entry is not None]
    classes = bool(measured) and all("macro_f1" in entry for entry in measured)
    p_targets = list(dict.fromkeys(p for entry in measured for p in entry.get("min_dcf") or {}))
    title = (
        "no run has results yet"
        if compared.trials is None
        else f"{compared.trials}: {len(compared.runs)} run{'s' * (len(compared.runs) != 1)}"
    )
    table = _table(title)
    rates = ("acc %", "95 % interval", "F1 %") if classes else ("EER %", "95 % interval")
    for column in (*rates, *(f"minDCF\n{p}" for p in p_targets), "params\nM", "utt/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for run, entry in zip(compared.runs, entries, strict=True):
        results = run.results or {}
        costs = (entry or {}).get("min_dcf") or {}
        table.add_row(
            escape(compared.name(run)),
            *_rates(entry, classes),
            *(f"{costs[p]:.3f}" if p in costs else "" for p in p_targets),
            f"{results['parameters'] / 1e6:.2f}" if "parameters" in results else "",
            f"{results['utterances_per_second']:.0f}" if "utterances_per_second" in results else "",
        )
    parts = [table]
    if compared.differing:  # beside the figures, 80 columns have no room for them
        parts.append(_differences(compared))
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    lines = [line.rstrip() for line in captured.get().rstrip().splitlines()]
    return "\n".join([*lines, *_missing(compared)])


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold", min_width=12)
    return table


def _differences(compared: Comparison) -> Table:
    table = _table("What they differ in")
    table.add_column("config", overflow="fold")
    for run in compared.runs:
        text = ", ".join(override(key, value) for key, value in compared.differences(run).items())
        table.add_row(escape(compared.name(run)), escape(text) or run.status)
    return table


def _rates(entry: Mapping[str, Any] | None, classes: bool) -> list[str]:
    if entry is None:
        return ["–", "", *[""] * classes]
    if classes:
        return [
            f"{100 * entry['accuracy']:.2f}",
            _interval(entry.get("accuracy_ci95")),
            f"{100 * entry['macro_f1']:.2f}",
        ]
    return [f"{100 * entry['eer']:.2f}" if entry.get("eer") is not None else "–", _interval(entry.get("eer_ci95"))]


def _interval(bounds: Sequence[float] | None) -> str:
    return f"{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}" if bounds else ""


def _missing(compared: Comparison) -> list[str]:
    """A line for each run without a place in the ranking."""
    lines = []
    for run in compared.runs:
        if compared.entry(run) is not None:
            continue
        place = run.folder if run.folder is not None else run.name
        if run.results is None:
            lines.append(f"{place}: {run.status}, no results")
        else:
            lines.append(
                f"{place}: no error rate for {compared.trials}; it has {', '.join(run.results['trials']) or 'no list'}"
            )
    return ["", *lines] if lines else []
