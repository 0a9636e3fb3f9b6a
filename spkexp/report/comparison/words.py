"""How the formats of a comparison put its numbers and its settings: the same words in a terminal and in a paper."""

from collections.abc import Mapping
from typing import Any

from spkexp.changes import override
from spkexp.report.finding import counted, figure, interval

Content = Mapping[str, Any]
DIFFERS, UNTESTED = "†", "°"
NONE = "–"  # what is not known
HANDFUL = 5  # settings of a row that a table has room for
SHOWN = 3  # metrics, for the same reason; JSON and CSV have all
_LONGEST = 40  # letters of a setting's value


def shown_metrics(content: Content) -> list[Mapping[str, Any]]:
    """The one that the rows are sorted by, and the next ones."""
    found: list[Mapping[str, Any]] = [one for one in content["metrics"] if one["key"] == content["metric"]]
    rest = [one for one in content["metrics"] if one["key"] != content["metric"]]
    return [*found, *rest][:SHOWN]


def title(content: Content) -> str:
    """`test: 3 runs`, or of rows that stand for several seeds `test: 2 configurations, 6 runs`."""
    rows = content["rows"]
    runs = sum(len(row["runs"]) for row in rows)
    if content["trials"] is None:
        return "no run has results yet"
    counts = counted(runs, "run") if runs == len(rows) else f"{counted(len(rows), 'configuration')}, {runs} runs"
    return f"{content['trials']}: {counts}"


def value(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    entry = row["metrics"].get(metric["key"])
    return NONE if entry is None else figure(entry["value"], dict(metric))


def bounds(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Nothing where there is no interval."""
    entry = row["metrics"].get(metric["key"]) or {}
    return interval(entry.get("ci95"), dict(metric))


def mark(content: Content, index: int, metric: Mapping[str, Any]) -> str:
    """What stands behind the value of a row: whether it differs from the reference, or why nobody knows."""
    entry = content["rows"][index]["metrics"].get(metric["key"])
    if entry is None or content["reference"] in (None, index) or not tests(content):
        return ""
    difference = entry["difference"]
    return UNTESTED if difference is None else DIFFERS if difference["significant"] else ""


def tests(content: Content) -> int:
    """How many rows are held against the reference."""
    return sum((row["metrics"].get(content["metric"]) or {}).get("difference") is not None for row in content["rows"])


def probability(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """The corrected p-value of the difference to the reference."""
    difference = (row["metrics"].get(metric["key"]) or {}).get("difference")
    if difference is None:
        return ""
    p = difference["p_holm"]
    return "<.001" if p < 0.001 else f"{p:.3f}"[1:] if p < 0.9995 else "1"


def is_best(content: Content, index: int, metric: Mapping[str, Any]) -> bool:
    values = [(row["metrics"].get(metric["key"]) or {}).get("value") for row in content["rows"]]
    known = [one for one in values if one is not None]
    return len(known) > 1 and values[index] == (min(known) if metric["better"] == "lower" else max(known))


def explanation(content: Content) -> list[str]:
    """What the marks mean and where the intervals come from, in sentences."""
    rows, metrics = content["rows"], shown_metrics(content)
    number, lines = tests(content), []
    if content["replicates"] and any(bounds(row, metric) for row in rows for metric in metrics):
        seeded = ", and over seeds where a value is the mean of several" if several_seeds(content) else ""
        lines.append(f"Intervals: 95 %, over speakers{seeded}.")
    if number:
        name = rows[content["reference"]]["name"]
        marks = {mark(content, index, metric) for index in range(len(rows)) for metric in metrics}
        what = f"{DIFFERS} differs from {name}" if DIFFERS in marks else f"No row differs significantly from {name}"
        many = f", p after Holm's correction for {number} comparisons" if number > 1 else ""
        by = f"joint bootstrap over speakers, {content['replicates']:,} replicates{many}"
        lines.append(f"{what} ({'p < .05, ' if DIFFERS in marks else ''}{by}).")
        lines += [f"{UNTESTED} not tested."] * (UNTESTED in marks)
    return lines


def costs(row: Mapping[str, Any]) -> list[str]:
    """Parameters in millions, MACs of 2 s in billions, training time, utterances/s."""
    ways = {
        "parameters": lambda number: f"{number / 1e6:.2f}",
        "macs": lambda number: f"{number / 1e9:#.3g}".rstrip(".") if number < 1e12 else f"{number / 1e9:,.0f}",
        "train_seconds": duration,
        "utterances_per_second": lambda number: f"{number:,.0f}",
    }
    return [NONE if row[key] is None else show(row[key]) for key, show in ways.items()]


COSTS = ("params M", "GMAC of 2 s", "trained", "utt/s")


def duration(seconds: float) -> str:
    """12 s, 3 min, 4.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def settings(row: Mapping[str, Any], differing: list[str]) -> tuple[list[str], int]:
    """(`key=value` of the first differing keys that the row has, how many more there are)."""
    own = [key for key in differing if key in row["config"]]
    return [_short(override(key, row["config"][key])) for key in own[:HANDFUL]], max(0, len(own) - HANDFUL)


def _short(text: str) -> str:
    key, equals, written = text.partition("=")
    return text if len(written) <= _LONGEST else f"{key}{equals}{written[: _LONGEST - 1]}…"


def seeds(row: Mapping[str, Any], metric: Mapping[str, Any]) -> int:
    """How many a value is the mean of."""
    return len((row["metrics"].get(metric["key"]) or {}).get("of_seeds") or ())


def several_seeds(content: Content) -> bool:
    return any(len(row["runs"]) > 1 for row in content["rows"])


def absent(content: Content) -> list[str]:
    """A line for each run without a place in the ranking."""
    return [
        f"{run['folder'] or row['name']}: {row['missing']}"
        for row in content["rows"]
        if row["missing"] is not None
        for run in row["runs"]
    ]
