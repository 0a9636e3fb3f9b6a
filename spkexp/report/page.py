"""A comparison as one HTML page: it opens from disk, without network, and needs no other file.

The table is in the HTML; the charts are drawn by the page's own scripts from the content, which is in it as JSON.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spkexp.report.finding import counted, figure, finding, interval, p_text
from spkexp.whole_file import write_text

_PARTS = Path(__file__).with_name("page")
# In the order in which they are read; they share one scope.
_CHARTS = ("intervals.js", "det.js", "cost.js", "curves.js", "effects.js", "parallel.js")
_SCRIPTS = ("kit.js", "pointer.js", "files.js", *_CHARTS, "table.js", "main.js")
SPARE_METRICS, SPARE_KEYS = 2, 6  # metrics and config keys beyond these are shown on demand
DRAWN = 12  # more rows than that do not fit into charts with lines; the first BEST are then ticked
BEST = 10
REACH = 3.0  # how far beyond all values, as a factor, an interval takes the axis; WITHIN in kit.js is the same
SKEWED = 6.0  # highest over lowest value from which the bars of a column are logarithmic


@dataclass(frozen=True)
class Cell:
    """One cell of the table; sort: what it is sorted by, None (always last) where there is nothing."""

    text: str
    sort: float | str | None
    below: str = ""  # smaller, on a second line
    bar: tuple[float, float, float] | None = None  # low, value, high: their places from 0 to 1
    mark: str = ""  # of significance
    title: str = ""


@dataclass(frozen=True)
class Column:
    """spare: shown on demand; falling: the highest value first, where one sorts by it."""

    key: str
    heading: str
    unit: str
    cells: list[Cell]
    title: str = ""
    numeric: bool = True
    spare: bool = False
    falling: bool = False


def write_page(file: Path, content: dict[str, Any]) -> None:
    """content: a comparison, as comparison.json holds it. Makes the folder of `file`. Raises OSError."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "counted": counted, "figure": figure, "value": value_text}
    style = (_PARTS / "page.css").read_text(encoding="utf-8")
    theme = (_PARTS / "theme.js").read_text(encoding="utf-8")
    script = "".join((_PARTS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    content = _finite(content)
    rows = content["rows"]
    ranked = [row for row in rows if row["missing"] is None]
    metric = next((one for one in content["metrics"] if one["key"] == content["metric"]), None)
    ticked = {index for index, row in enumerate(rows) if row["missing"] is None or row["curves"]}
    if len(ranked) > DRAWN:
        ticked = set(sorted(ticked)[:BEST])
    text = environment.get_template("template.html").render(
        content=content,
        finding=finding(content),
        metric=metric,
        ranked=[(index, row) for index, row in enumerate(rows) if row["missing"] is None],
        missing=[(index, row) for index, row in enumerate(rows) if row["missing"] is not None],
        columns=columns(content) if metric and ranked else [],
        ticked=ticked,
        charts=_charts(content),
        data=sorted({row["data"] for row in rows if row["data"]}),
        style=style,
        theme=theme,
        script=script,
        json=embedded(content),
        # Only these texts may act, whatever the names of runs contain; and nothing may be fetched.
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(theme)} {_hash(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'",
    )
    # A folder's name may hold bytes that are no text (surrogates): a question mark stands for each.
    write_text(file, text.encode("utf-8", "replace").decode("utf-8"))


def embedded(content: dict[str, Any]) -> str:
    """JSON that may stand in a <script> element: no `<` that could end it, no line ends but those of JSON."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    """What JSON cannot say (NaN, ∞: losses of a run that went astray) is None: the charts leave a gap there."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(text: str) -> str:
    """A source of a Content Security Policy: the one inline text that it admits (CSP level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _charts(content: dict[str, Any]) -> set[str]:
    """The charts for which there is something to draw."""
    rows = content["rows"]
    ranked = [row for row in rows if row["missing"] is None and content["metric"] is not None]
    settings = [key for key in content["differing"] if any(key in row["config"] for row in ranked)]
    costs = ("parameters", "macs", "train_seconds")
    has = {
        "errors": bool(ranked),
        "det": any(row["det"] for row in ranked),
        "cost": any(row[key] is not None for row in ranked for key in costs),
        "curves": any(row["curves"] for row in rows),
        "effects": bool(ranked and content["effects"]),
        "parallel": len(ranked) > 1 and len(settings) > 1,  # of a single one, `effects` says all
        "conditions": any(row["conditions"] for row in ranked),
    }
    return {name for name, there in has.items() if there}


def columns(content: dict[str, Any]) -> list[Column]:
    """The table beside the names of the rows: metrics, the chosen one first; cost; what differs; other lists."""
    rows = [row for row in content["rows"] if row["missing"] is None]
    metrics = sorted(content["metrics"], key=lambda one: one["key"] != content["metric"])
    found = []
    for number, metric in enumerate(metrics):
        found.append(_metric_column(rows, metric, spare=number >= SPARE_METRICS))
        if number == 0:
            found += _difference_column(content, rows, metric)
    found += _cost_columns(rows)
    found += _setting_columns(content, rows)
    return found + _list_columns(content, rows)


def _metric_column(rows: Sequence[dict[str, Any]], metric: dict[str, Any], spare: bool) -> Column:
    entries = [row["metrics"].get(metric["key"]) for row in rows]
    place = _places(entries)
    cells = []
    for entry in entries:
        if entry is None or entry["value"] is None:
            cells.append(Cell("–", None))
            continue
        seeds = [one for one in entry.get("of_seeds") or () if one is not None]
        title = f"seeds: {', '.join(figure(one, metric) for one in seeds)}" if len(seeds) > 1 else ""
        below = interval(entry.get("ci95"), metric)
        cells.append(Cell(figure(entry["value"], metric), entry["value"], below, _bar(entry, place), title=title))
    better = f"{metric['better']} is better; below: 95 % interval"
    falling = metric["better"] == "higher"
    return Column(metric["key"], metric["name"], metric["unit"], cells, better, spare=spare, falling=falling)


def _places(entries: Sequence[dict[str, Any] | None]) -> Any:
    """A function from a value to its place, 0 to 1, on the axis that all bars of a column have.

    An interval that goes on far beyond all values is cut off: a minDCF between 0 and 1 would leave the others no room.
    """
    measured = [entry for entry in entries if entry is not None and entry["value"] is not None]
    values = [float(entry["value"]) for entry in measured]
    ends = [float(end) for entry in measured for end in entry.get("ci95") or () if end is not None]
    if values and min(values) > 0:
        ends = [min(max(end, min(values) / REACH), max(values) * REACH) for end in ends]
    every = [*values, *ends]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    if low > 0 and high / low > SKEWED:
        return lambda value: math.log(min(max(value, low), high) / low) / math.log(high / low)
    return lambda value: (min(max(value, low), high) - low) / (high - low) if high > low else 0.5


def _bar(entry: dict[str, Any], place: Any) -> tuple[float, float, float] | None:
    if not entry.get("ci95") or None in entry["ci95"]:
        return None
    low, high = entry["ci95"]
    return place(low), place(entry["value"]), place(high)


def _difference_column(content: dict[str, Any], rows: Sequence[dict[str, Any]], metric: dict[str, Any]) -> list[Column]:
    """How much a row is off the reference, and whether that may be chance; none without a single difference."""
    differences = [(row["metrics"].get(metric["key"]) or {}).get("difference") for row in rows]
    if not any(differences) or content["reference"] is None:
        return []
    reference = content["rows"][content["reference"]]
    cells = []
    for row, one in zip(rows, differences, strict=True):
        if row is reference:
            cells.append(Cell("reference", 0.0))
        elif one is None:
            cells.append(Cell("–", None, title=row.get("untested") or "not tested"))
        else:
            below = f"{interval(one['ci95'], metric)}; {p_text(one['p_holm'])}"
            title = f"before Holm's correction: {p_text(one['p'])}"
            value = f"{'+' if one['value'] > 0 else ''}{figure(one['value'], metric)}"
            cells.append(Cell(value, one["value"], below, mark="†" if one["significant"] else "n.s.", title=title))
    title = f"{metric['name']} minus that of {reference['name']}; below: 95 % interval and p after Holm's correction"
    return [Column("difference", "Δ", metric["unit"], cells, title)]


def _cost_columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    longest = max((row["train_seconds"] for row in rows if row["train_seconds"] is not None), default=0)
    time = ("s", 1.0) if longest < 120 else ("min", 60.0) if longest < 7200 else ("h", 3600.0)
    units = (
        ("parameters", "Parameters", "M", 1e6, "", False),
        ("macs", "MACs", "G", 1e9, "multiply-accumulates of an utterance of 2 s", False),
        ("train_seconds", "Training", *time, "time of training", False),
        ("utterances_per_second", "Speed", "utt/s", 1.0, "utterances a second in training", True),
    )
    found = []
    for key, heading, unit, size, title, rare in units:
        values = [None if row[key] is None else row[key] / size for row in rows]
        known = [one for one in values if one is not None]
        if known:
            # As many digits for all as show three of the least.
            least = min((one for one in known if one > 0), default=1.0)
            digits = min(4, max(0, 2 - math.floor(math.log10(least))))
            cells = [Cell("–", None) if one is None else Cell(f"{one:,.{digits}f}", one) for one in values]
            found.append(Column(key, heading, unit, cells, title, spare=rare, falling=rare))
    return found


def _list_columns(content: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The chosen metric on the other trial lists."""
    found = []
    metric = next(one for one in content["metrics"] if one["key"] == content["metric"])
    for name in content["lists"]:
        values = [row["lists"].get(name, {}).get(metric["key"]) for row in rows]
        if name != content["trials"] and any(one is not None for one in values):
            cells = [Cell("–", None) if one is None else Cell(figure(one, metric), one) for one in values]
            heading = f"{metric['name']}, {name}"
            title, falling = f"{metric['name']} on the trial list {name}", metric["better"] == "higher"
            found.append(Column(f"lists.{name}", heading, metric["unit"], cells, title, falling=falling))
    return found


def _setting_columns(content: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """A column a config key in which rows differ, under the last part of its name if that tells it from the others."""
    ends = [key.rpartition(".")[2] for key in content["differing"]]
    found = []
    for number, (key, end) in enumerate(zip(content["differing"], ends, strict=True)):
        values = [row["config"].get(key) for row in rows]
        numeric = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values if one is not None)
        cells = [
            Cell("–", None) if key not in row["config"] else Cell(value_text(one), one if numeric else value_text(one))
            for row, one in zip(rows, values, strict=True)
        ]
        heading = end if ends.count(end) == 1 else key
        told = all(row["name"].startswith(str(one)) for row, one in zip(rows, values, strict=True))  # by the name
        found.append(Column(key, heading, "", cells, key, numeric=numeric, spare=told or number >= SPARE_KEYS))
    return found


def _breakable(name: str) -> Any:
    """HTML of a name that a line may end within, after _ and -, rather than in the middle of a word."""
    from markupsafe import Markup, escape

    return Markup(re.sub("[_-]", lambda sign: f"{sign[0]}<wbr>", str(escape(name))))


def value_text(value: Any) -> str:
    """A config value as one types it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
