"""What a comparison found, in a sentence or three; and its numbers as people read them."""

from collections.abc import Sequence
from typing import Any

NAMED = 3  # rows that a sentence names before it counts them


def figure(value: float, metric: dict[str, Any]) -> str:
    """0.0097 as `0.97`, by the scale and digits of the metric; minus is U+2212."""
    return f"{value * metric['scale']:.{metric['digits']}f}".replace("-", "−")


def interval(ends: Sequence[float] | None, metric: dict[str, Any]) -> str:
    """`0.67–1.24`; `−0.03 to 0.31` where a dash would be taken for a minus; nothing where there is none."""
    if not ends or None in ends:
        return ""
    return (" to " if ends[0] < 0 else "–").join(figure(end, metric) for end in ends)


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def finding(content: dict[str, Any]) -> str:
    """Which row is best, with its interval, and from which it can be told by the tests there are.

    content: a comparison, as comparison.json holds it; its first row is the best of those with the chosen metric.
    """
    metric = next((one for one in content["metrics"] if one["key"] == content["metric"]), None)
    rows = [row for row in content["rows"] if row["missing"] is None]
    if metric is None or not rows:
        return "None of these runs has results to compare."
    best = rows[0]
    entry = best["metrics"][metric["key"]]
    unit = f" {metric['unit']}" if metric["unit"] else ""
    value = f"{figure(entry['value'], metric)}{unit}"
    if entry.get("ci95"):
        value += f" ({interval(entry['ci95'], metric)})"
    if len(rows) == 1:
        return f"{best['name']} has {_article(metric['name'])} {metric['name']} of {value}."
    superlative = "lowest" if metric["better"] == "lower" else "highest"
    equal = [row for row in rows[1:] if _value(row, metric) == entry["value"]]
    if equal:
        return f"{_listed([best, *equal])} share the {superlative} {metric['name']}, {value}."
    return f"{best['name']} has the {superlative} {metric['name']}, {value}; {_tested(content, metric, rows)}."


def _tested(content: dict[str, Any], metric: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    best, others = rows[0], rows[1:]
    reference = content["rows"][content["reference"]] if content["reference"] is not None else None
    if reference is not best:  # then the others are held against another row, and of these the best alone matters
        others = [row for row in others if row is reference]
        differences = [(row, best["metrics"][metric["key"]].get("difference")) for row in others]
    else:
        differences = [(row, row["metrics"][metric["key"]].get("difference")) for row in others]
    tested = [(row, one) for row, one in differences if one is not None]
    if not tested:
        return "whether that is chance was not tested"
    close = [row for row, one in tested if not one["significant"]]
    beaten = [row for row, one in tested if one["significant"]]
    untested = len(rows) - 1 - len(tested) if reference is best else 0
    note = f"; {counted(untested, 'other')} could not be tested" if untested else ""
    if len(tested) == 1:
        row, one = tested[0]
        verdict = "significantly" if beaten else "not significantly"
        return f"it is {verdict} better than {row['name']} ({p_text(one['p_holm'])}){note}"
    if not close:
        return f"it is significantly better than {'both' if len(beaten) == 2 else f'all {len(beaten)}'} others{note}"
    if not beaten:
        return f"it is not significantly better than {'either' if len(close) == 2 else 'any'} of the others{note}"
    return f"it is significantly better than {len(beaten)} of the others, but not than {_listed(close)}{note}"


def _value(row: dict[str, Any], metric: dict[str, Any]) -> float | None:
    value: float | None = row["metrics"].get(metric["key"], {}).get("value")
    return value


def _listed(rows: list[dict[str, Any]]) -> str:
    names = [row["name"] for row in rows]
    if len(names) > NAMED + 1:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _article(name: str) -> str:
    return "an" if name[:1].upper() in "AEIO" else "a"
