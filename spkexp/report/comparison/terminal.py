"""A comparison in a terminal, 80 columns wide or wider."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spkexp.report.comparison import words
from spkexp.report.comparison.words import Content


def terminal_text(content: Content, width: int = 80, file: Path | None = None) -> str:
    """Three tables: what the rows scored, what they cost, in what they differ; then the notes, and who has no place.

    file: where all settings are listed; None: nowhere yet.
    """
    parts = [_scores(content)]
    if any(cost != words.NONE for row in content["rows"] for cost in words.costs(row)):
        parts.append(_costs(content))
    if content["differing"]:
        parts.append(_differences(content, file))
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    lines = [line.rstrip() for line in captured.get().rstrip().splitlines()]
    notes = [
        textwrap.fill(note, width, break_long_words=False, break_on_hyphens=False)
        for note in [*words.explanation(content), *content["notes"]]
    ]
    return "\n".join([*lines, *[""] * bool(notes), *notes, *[""] * bool(words.absent(content)), *words.absent(content)])


def _table(heading: str) -> Table:
    table = Table(title=heading, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold", min_width=12)
    return table


def _scores(content: Content) -> Table:
    table = _table(escape(words.title(content)))
    metrics, tested, seeds = words.shown_metrics(content), bool(words.tests(content)), words.several_seeds(content)
    bounded = any(words.bounds(row, metric) for row in content["rows"] for metric in metrics[:1])
    heads = [_head(metric) for metric in metrics]
    for column in (*["seeds"] * seeds, *heads[:1], *["95 % interval"] * bounded, *["p"] * tested, *heads[1:]):
        table.add_column(column, justify="right", no_wrap=True)
    for index, row in enumerate(content["rows"]):
        cells = [_marked(content, index, metric) for metric in metrics]
        table.add_row(
            escape(row["name"]),
            *[str(words.seeds(row, metrics[0]) or "")] * seeds,
            *cells[:1],
            *[words.bounds(row, metrics[0])] * bounded if metrics else (),
            *[words.probability(row, metrics[0])] * tested,
            *cells[1:],
        )
    return table


def _head(metric: Mapping[str, Any]) -> str:
    """`EER %`, and minDCF(0.01) in two lines."""
    name, _, detail = metric["name"].partition("(")
    return f"{name} {metric['unit']}".strip() + (f"\n{detail[:-1]}" if detail else "")


def _marked(content: Content, index: int, metric: Mapping[str, Any]) -> str:
    """With the mark's place left free where there is none, so that digits stand below digits."""
    room = any(words.mark(content, other, metric) for other in range(len(content["rows"])))
    return words.value(content["rows"][index], metric) + (words.mark(content, index, metric) or " " * room)


def _costs(content: Content) -> Table:
    table = _table("What they cost")
    known = [words.costs(row) for row in content["rows"]]
    columns = [i for i in range(len(words.COSTS)) if any(costs[i] != words.NONE for costs in known)]
    for i in columns:
        table.add_column(words.COSTS[i], justify="right", no_wrap=True)
    for row, costs in zip(content["rows"], known, strict=True):
        table.add_row(escape(row["name"]), *(costs[i] for i in columns))
    return table


def _differences(content: Content, file: Path | None) -> Table:
    table = _table("What they differ in")
    table.add_column("config", overflow="fold")
    where = "output=DIR lists them all" if file is None else f"see {file}"
    for row in content["rows"]:
        shown, more = words.settings(row, content["differing"])
        text = ", ".join(shown) + (f" and {more} more: {where}" if more else "")
        table.add_row(escape(row["name"]), escape(text or row["status"]))
    return table
