"""Log-likelihood ratios as people read them."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table


def calibration_table(title: str, what: str, entries: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each of `entries`, those of results.json of log-likelihood ratios; `what` they are, for the head."""
    p_targets = next((list(entry["min_dcf"]) for entry in entries.values()), [])
    table = Table(title=title, title_justify="left", title_style="none", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)  # beside nine columns of numbers, 80 have little room for names
    table.add_column(what, overflow="fold", min_width=8)
    costs = [f"{name}\n{p}" for name in ("minDCF", "actDCF") for p in p_targets]
    for column in ("EER %", *costs, "Cllr", "min\nCllr", "Cllr −\nmin"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, entry in entries.items():
        numbers = [
            *(entry[key][p] for key in ("min_dcf", "act_dcf") for p in p_targets),
            *(entry["cllr"], entry["min_cllr"], entry["cllr"] - entry["min_cllr"]),
        ]
        table.add_row(escape(name), f"{100 * entry['eer']:.2f}", *(f"{number:.3f}" for number in numbers))
    return table
