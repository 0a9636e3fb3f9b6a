"""Error rates by condition as people read them."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table


def conditions_table(title: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """groups: of one column of an entry of results.json's `conditions`. Percent, with intervals."""
    p_targets = next((list(entry["min_dcf"]) for entry in groups.values() if "min_dcf" in entry), [])
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold", min_width=12)
    columns = ("trials", "EER %", "95 % interval", *(f"minDCF({p})" for p in p_targets))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, entry in groups.items():
        table.add_row(escape(name), f"{entry['num_trials']:,}", *_rates(entry))
    return table


def _rates(entry: Mapping[str, Any]) -> list[str]:
    if "eer" not in entry:
        return ["too few"]
    bounds = entry.get("eer_ci95")
    interval = f"{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}" if bounds else ""
    return [f"{100 * entry['eer']:.2f}", interval, *(f"{cost:.3f}" for cost in entry["min_dcf"].values())]
