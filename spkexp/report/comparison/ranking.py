"""Runs put into rows, one for each configuration, and the rows in order."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from spkexp.changes import changes, flat, override
from spkexp.errors import UserError
from spkexp.report.comparison.metrics import Metric, metric_of, metrics_of
from spkexp.report.comparison.runs import Run
from spkexp.resume import IMMATERIAL

Seeds = Literal["combined", "apart"]
_GROUPS = ("model", "data")  # whose keys say nothing beside the choice of another model, or other data
_LONGEST_KEY = 24  # letters of `key=value` in a name
_SHORTEST_NAME = 3  # letters that the folders of the seeds of one configuration must share to be called by them


@dataclass(frozen=True)
class Row:
    """A configuration: its runs, which differ in their seeds alone."""

    runs: tuple[Run, ...]

    @cached_property
    def changes(self) -> dict[str, Any]:
        """What the config says beside the defaults of conf/."""
        return changes(self.config) if self.config else {}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.runs[0].config

    @property
    def name(self) -> str:
        """That of its run; of several what the names of their folders have in common, else the first one's."""
        first = self.runs[0]
        if len(self.runs) == 1 or first.folder is None or first.when is not None:
            return first.name
        columns = zip(*(run.name for run in self.runs), strict=False)
        alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, columns)
        common = "".join(letters[0] for letters in alike).rstrip("0123456789")
        common = re.sub(r"[-_. ]+(seed|s)?[-_. =]*$", "", common)
        return common if len(common) >= _SHORTEST_NAME else first.name

    def measured(self, trials: str | None, metric: Metric) -> list[tuple[Run, float]]:
        """The runs that have a value, and these."""
        found = ((run, metric.of(run.entry(trials))) for run in self.runs)
        return [(run, value) for run, value in found if value is not None]

    def value(self, trials: str | None, metric: Metric) -> float | None:
        """Mean over the seeds."""
        values = [value for _, value in self.measured(trials, metric)]
        return fmean(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """rows: those with a value of `metric` for `trials` first, the best first; then the others as they were given."""

    rows: list[Row]
    trials: str | None  # the list that they are compared on; None: no run has any
    metric: Metric
    differing: list[str]  # dotted config keys in which the rows differ, the most telling first

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @cached_property
    def metrics(self) -> list[Metric]:
        """All that any run has for `trials`, the one that sorts first."""
        entries = [entry for run in self.runs if (entry := run.entry(self.trials)) is not None]
        return [self.metric, *(metric for metric in metrics_of(entries) if metric.key != self.metric.key)]

    @cached_property
    def _settings(self) -> dict[int, dict[str, Any]]:
        """`differences` of the rows, by their identity."""
        return {id(row): self.differences(row) for row in self.rows}

    def name(self, row: Row) -> str:
        """The row's, or of several seeds what tells it from the other rows; with day and time where another one has the
        same, for one config may be trained twice."""
        first = row.runs[0]
        if len(row.runs) > 1 and first.when is not None and (told := self._told_apart(row)) is not None:
            return told
        if first.folder is None or sum(other.name == row.name for other in self.rows) == 1:
            return row.name
        return f"{row.name} {first.when}" if first.when else str(first.folder)

    def _told_apart(self, row: Row) -> str | None:
        """The model where no other row has it, else with the first differing key whose value tells; None: none does.

        The id that ends a folder's name is that of one seed, and would pass for that of all.
        """
        model = (row.config.get("names") or {}).get("model")
        rivals = [one for one in self.rows if one is not row and (one.config.get("names") or {}).get("model") == model]
        if not model or not rivals:
            return model
        own, others = self._settings[id(row)], [self._settings[id(one)] for one in rivals]
        for key in (key for key in own if key != "model"):
            text = override(key.rpartition(".")[2], own[key])
            if len(text) <= _LONGEST_KEY and all(other.get(key) != own[key] for other in others):
                return f"{model} {text}"
        return None

    def differences(self, row: Row) -> dict[str, Any]:
        """The values of the differing keys that the row's config has; those below another model, or other data, only
        where the config itself set them."""
        own = _told(row, [key for key in _GROUPS if key in self.differing])
        return {key: own[key] for key in self.differing if key in own}


def comparison(
    runs: Sequence[Run], trials: str | None = None, metric: str | None = None, seeds: Seeds = "combined"
) -> Comparison:
    """Rank `runs` by `metric` (default: eer, or of classifiers accuracy) for a trial list: `trials`; or test, or else
    the list that most of them have.

    Raises UserError where no run has the list or the metric that is asked for.
    """
    if metric is not None and metric_of(metric) is None:
        raise UserError(f"metric={metric}: no such metric; there are eer, min_dcf.P, auc, rocch_eer, min_cllr, cllr, "
                        "act_dcf.P, accuracy and macro_f1, where P is one of scoring.p_targets")  # fmt: skip
    asked = [found for key in ([metric] if metric else ["eer", "accuracy"]) if (found := metric_of(key))]
    lists = Counter(
        name
        for run in runs
        for name in (run.results or {}).get("trials") or {}
        if any(one.of(run.entry(name)) is not None for one in asked)
    )
    if (trials is not None and trials not in lists) or (metric is not None and not lists):
        raise UserError(_nothing(runs, trials, metric, lists))
    chosen = trials or ("test" if "test" in lists else max(lists, key=lists.__getitem__, default=None))
    rows = _rows(runs, seeds)
    by = next((one for one in asked if any(row.value(chosen, one) is not None for row in rows)), asked[0])

    def rank(row: Row) -> tuple[bool, float]:
        value = row.value(chosen, by)
        return value is None, 0.0 if value is None else by.order(value)

    return Comparison(sorted(rows, key=rank), chosen, by, _differing(rows, seeds))


def _nothing(runs: Sequence[Run], trials: str | None, metric: str | None, lists: Counter[str]) -> str:
    if trials is not None and lists:
        having = "" if metric is None else f" with {metric}"
        return f"trials={trials}: no run has such a list{having}; there are {', '.join(lists)}"
    entries = [entry for run in runs for entry in ((run.results or {}).get("trials") or {}).values()]
    known = ", ".join(one.key for one in metrics_of(entry for entry in entries if isinstance(entry, Mapping)))
    if metric is not None and known:
        return f"metric={metric}: no run has it; there are {known}"
    return f"{f'trials={trials}' if trials else f'metric={metric}'}: none of the runs has results yet"


def _rows(runs: Sequence[Run], seeds: Seeds) -> list[Row]:
    """A seed that a configuration was trained with twice begins another row: it is no new seed.

    The runs that have results come first, so that an attempt that did not finish does not take a seed's place.
    """
    rows: dict[Any, list[Run]] = {}
    for index in sorted(range(len(runs)), key=lambda index: runs[index].results is None):
        run = runs[index]
        if seeds == "apart" or not run.config:
            rows[index] = [run]
            continue
        key, again = _configuration(run), 0
        while any(_seed(run) == _seed(other) for other in rows.get((key, again), [])):
            again += 1
        rows.setdefault((key, again), []).append(run)
    place = {id(run): index for index, run in enumerate(runs)}
    ordered = sorted(rows.values(), key=lambda row: min(place[id(run)] for run in row))
    return [Row(tuple(sorted(row, key=lambda run: (_seed(run) is None, _seed(run) or 0)))) for row in ordered]


def _seed(run: Run) -> int | None:
    seed = run.config.get("seed")
    return seed if isinstance(seed, int) else None


def _configuration(run: Run) -> tuple[tuple[str, str], ...]:
    """What the seeds of a configuration share: all but the seed and what has no part in the outcome."""
    left_out = ("seed", *IMMATERIAL)
    return tuple(sorted((k, repr(v)) for k, v in flat(run.config).items() if not _is_below(k, left_out)))


def _told(row: Row, apart: Sequence[str]) -> dict[str, Any]:
    """What the row's config says by dotted key, and model and data by name. apart: those of these two in which the rows
    differ, below which a key says something only where the config itself has set it."""
    config = row.config
    found = flat(config) | dict(config.get("names") or {}) | row.changes if config else {}
    return {k: v for k, v in found.items() if k in row.changes or k in apart or not _is_below(k, apart)}


def _differing(rows: Sequence[Row], seeds: Seeds) -> list[str]:
    """Model and data first, then the keys with the most values; those of equally many as the configs have them. Last is
    what has no part in the outcome."""
    rows = [row for row in rows if row.config]
    keys = dict.fromkeys(key for row in rows for key in row.changes)
    if seeds == "combined":
        keys.pop("seed", None)
    apart = [group for group in _GROUPS if len({repr(_told(row, ()).get(group)) for row in rows}) > 1]
    told = [_told(row, apart) for row in rows]
    values = {key: len({repr(own.get(key)) for own in told}) for key in keys}

    def rank(key: str) -> tuple[bool, bool, int]:
        return _is_below(key, IMMATERIAL), key not in _GROUPS, -values[key]

    return sorted((key for key in keys if values[key] > 1), key=rank)


def _is_below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
