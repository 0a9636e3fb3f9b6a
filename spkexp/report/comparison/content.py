"""All that a comparison says, as one dictionary: what every format, the plots and the page are made of.

    spkexp, made: version and time;  trials: the list;  lists: all lists that the runs have
    metric: key of the one that the rows are sorted by;  metrics: [{key, name, scale, unit, digits, better}, ...]
    reference: index of the row that the others are held against;  replicates: of the bootstrap
    differing: config keys in which the rows differ, the most telling first
    rows: [{name, model, data, status, runs: [{folder, seed, status}], parameters, macs (of 2 s), train_seconds,
            utterances_per_second, config: {key: value},
            metrics: {key: {value, ci95, of_seeds, difference: {value, ci95, p, p_holm, significant} or None}},
            lists: {other list: {key: value}}, conditions: as results.json has them, of the first seed,
            curves: [{seed, train: {epoch: [...], ...}, val: {...}}], det: {false_alarm, miss, seed} or None,
            untested: why there is no difference, or None;  missing: why the row has no place in the ranking, or None}]
    effects: of the differing keys on the metric (effects.py);  notes: what a reader must know

Rates are fractions and costs are not percent; `scale` says how a metric is shown. Nothing is NaN or infinite.
"""

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from spkexp.code_state import package_version
from spkexp.errors import UserError
from spkexp.report.comparison.curves import read_curves
from spkexp.report.comparison.effects import main_effects
from spkexp.report.comparison.evidence import Evidence, gather
from spkexp.report.comparison.metrics import Metric, metrics_of
from spkexp.report.comparison.ranking import Comparison, Row
from spkexp.report.comparison.runs import Run

LEVEL = 0.05


def content_of(compared: Comparison, reference: Run | None = None, replicates: int = 1000) -> dict[str, Any]:
    """reference: the run whose row the others are held against; None: the best. Raises UserError where it has no value.

    replicates: of the bootstrap over speakers that intervals and p-values come from; 0: none, and the intervals are
    those of results.json.
    """
    trials, metrics = compared.trials, compared.metrics
    ranked = [row for row in compared.rows if row.value(trials, compared.metric) is not None]
    against = _reference(compared, ranked, reference)
    found = gather(ranked, against, trials, metrics, replicates) if trials is not None and against is not None else []
    unranked = [None] * (len(compared.rows) - len(ranked))
    rows = [_row(compared, row, evidence) for row, evidence in zip(compared.rows, [*found, *unranked], strict=True)]
    _correct(rows, metrics)
    entry = against.measured(trials, compared.metric)[0][0].entry(trials) or {} if against is not None else {}
    observations = [
        (compared.differences(row), value) for row in ranked for _, value in row.measured(trials, compared.metric)
    ]
    return {
        "spkexp": package_version(),
        "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "trials": trials,
        "num_trials": entry.get("num_trials"),
        "num_targets": entry.get("num_targets"),
        "lists": list(dict.fromkeys(name for run in compared.runs for name in (run.results or {}).get("trials") or {})),
        "metric": compared.metric.key,
        "metrics": [metric.described() for metric in metrics],
        "reference": None if against is None else compared.rows.index(against),
        "replicates": replicates,
        "differing": compared.differing,
        "rows": rows,
        "effects": main_effects(observations, compared.differing),
        "notes": _notes(compared, ranked, found),
    }


def _reference(compared: Comparison, ranked: Sequence[Row], reference: Run | None) -> Row | None:
    if reference is None:
        return ranked[0] if ranked else None
    row = next(row for row in compared.rows if any(run is reference for run in row.runs))
    if row not in ranked:
        raise UserError(
            f"reference={reference.folder}: it has no {compared.metric.name} for {compared.trials}; choose another "
            "run, or leave reference out, which takes the best"
        )
    return row


def _row(compared: Comparison, row: Row, evidence: Evidence | None) -> dict[str, Any]:
    trials, first = compared.trials, row.runs[0]
    names = first.config.get("names") or {}
    results = [run.results for run in row.runs if run.results is not None]
    statuses = list(dict.fromkeys(run.status for run in row.runs))
    entries = [(run, entry) for run in row.runs if (entry := run.entry(trials)) is not None]
    return {
        "name": compared.name(row),
        "model": names.get("model"),
        "data": names.get("data"),
        "status": statuses[0] if len(statuses) == 1 else ", ".join(statuses),
        "runs": [
            {
                "folder": None if run.folder is None else str(run.folder),
                "seed": run.config.get("seed"),
                "status": run.status,
            }
            for run in row.runs
        ],
        "parameters": _mean(results, "parameters"),
        "macs": _mean(results, "macs"),
        "train_seconds": _mean(results, "train_seconds"),
        "utterances_per_second": _mean(results, "utterances_per_second"),
        "config": compared.differences(row),
        "metrics": {
            metric.key: measured
            for metric in compared.metrics
            if (measured := _measured(row, trials, metric, evidence)) is not None
        },
        "lists": _other_lists(row, trials),
        "conditions": next((dict(entry["conditions"]) for _, entry in entries if entry.get("conditions")), {}),
        "curves": [
            {"seed": run.config.get("seed"), **curves}
            for run in row.runs
            if run.folder is not None and (curves := read_curves(run.folder))
        ],
        "det": None if evidence is None else evidence.det,
        "untested": None if evidence is None else evidence.untested,
        "missing": _missing(compared, row),
    }


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [found[key] for found in results if isinstance(found.get(key), int | float)]
    return (values[0] if len(set(values)) == 1 else fmean(values)) if values else None


def _measured(row: Row, trials: str | None, metric: Metric, evidence: Evidence | None) -> dict[str, Any] | None:
    value, of_seeds = row.value(trials, metric), row.measured(trials, metric)
    if value is None:
        return None
    interval = evidence.intervals.get(metric.key) if evidence is not None else None
    if interval is None and len(of_seeds) == 1:
        interval = metric.interval(of_seeds[0][0].entry(trials))
    found = evidence.differences.get(metric.key) if evidence is not None else None
    difference = None
    if found is not None:
        difference = {"value": found.value, "ci95": _bounds((found.low, found.high)), "p": found.p_value}
    return {
        "value": value,
        "ci95": _bounds(interval),
        "of_seeds": [one for _, one in of_seeds],
        "difference": difference,
    }


def _bounds(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _correct(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> None:
    """Add `p_holm` and `significant` to the differences: of each metric, all are one family of tests."""
    for metric in metrics:
        family = [found["difference"] for row in rows if (found := row["metrics"].get(metric.key))]
        family = [difference for difference in family if difference is not None]
        for difference, p in zip(family, holm([difference["p"] for difference in family]), strict=True):
            difference |= {"p_holm": p, "significant": p < LEVEL}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for as many tests as there are (Holm 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def _other_lists(row: Row, trials: str | None) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    names = dict.fromkeys(name for run in row.runs for name in (run.results or {}).get("trials") or {})
    for name in names:
        entries = [entry for run in row.runs if (entry := run.entry(name)) is not None]
        values = ((metric.key, row.value(name, metric)) for metric in metrics_of(entries))
        if name != trials:
            found[name] = {key: value for key, value in values if value is not None}
    return {name: values for name, values in found.items() if values}


def _missing(compared: Comparison, row: Row) -> str | None:
    if row.value(compared.trials, compared.metric) is not None:
        return None
    done = [run for run in row.runs if run.results is not None]
    if not done:
        return f"{row.runs[0].status}, no results"
    lists = ", ".join(dict.fromkeys(name for run in done for name in (run.results or {}).get("trials") or {}))
    measure = "error rate" if compared.metric.key in ("eer", "accuracy") else compared.metric.name
    return f"no {measure} for {compared.trials}; it has {lists or 'no list'}"


def _notes(compared: Comparison, ranked: Sequence[Row], found: Sequence[Evidence]) -> list[str]:
    notes = []
    for row in ranked:
        for run in row.runs:
            if compared.metric.of(run.entry(compared.trials)) is None:
                why = _missing(compared, Row((run,)))
                notes.append(f"{compared.name(row)}: without seed {run.config.get('seed')}, {run.folder}: {why}.")
    untested: dict[str, list[str]] = defaultdict(list)
    for row, evidence in zip(ranked, found, strict=True):
        name = compared.name(row)
        notes += [f"{name}: {note}" for note in evidence.notes]
        if evidence.untested is not None:
            untested[evidence.untested].append(name)
    notes += [f"Not tested: {_listed(names)}: {reason}." for reason, names in untested.items()]
    trials: dict[int, list[str]] = defaultdict(list)
    codes: dict[str, list[str]] = defaultdict(list)
    for row in ranked:
        for run in row.runs:
            entry = run.entry(compared.trials) or {}
            if isinstance(entry.get("num_trials"), int) and compared.name(row) not in trials[entry["num_trials"]]:
                trials[entry["num_trials"]].append(compared.name(row))
            if run.code is not None and compared.name(row) not in codes[run.code]:
                codes[run.code].append(compared.name(row))
    if len(trials) > 1:
        text = "; ".join(f"{number:,} of {_listed(names)}" for number, names in trials.items() if names)
        notes.append(f"The rows have other numbers of trials: {text}.")
    if len(codes) > 1:
        text = "; ".join(f"{code}: {_listed(names)}" for code, names in codes.items() if names)
        notes.append(f"The runs were trained by other versions of the code: {text}.")
    return notes


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
