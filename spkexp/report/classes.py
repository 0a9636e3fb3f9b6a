"""Results of a classifier as people read them: percent, with intervals, beside always answering the largest class."""

from typing import Any

from rich import box
from rich.table import Table


def classes_table(title: str, entries: dict[str, Any]) -> Table:
    """entries: of results.json, those with a macro F1, by the name of their set."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("utterances", overflow="fold")
    for column in ("accuracy %", "95 % interval", "macro F1 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, entry in entries.items():
        interval = entry.get("accuracy_ci95")
        bounds = f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}" if interval else ""
        table.add_row(f"{name} ({entry['num_utterances']:,})", *_percents(entry, bounds))
        if "majority" in entry:
            table.add_row(f"  always {entry['majority']['class']}", *_percents(entry["majority"], ""))
    return table


def _percents(entry: dict[str, Any], bounds: str) -> tuple[str, str, str]:
    return f"{100 * entry['accuracy']:.2f}", bounds, f"{100 * entry['macro_f1']:.2f}"
