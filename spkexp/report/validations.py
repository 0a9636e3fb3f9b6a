"""What a watch has measured of the checkpoints of a run, as people read it."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_RATES = {"eer": "EER %", "macro_f1": "macro F1 %", "accuracy": "accuracy %"}


def validations_table(entries: list[dict[str, Any]], best_step: int | None) -> str:
    """A terminal table of metrics.jsonl's lines; rates in percent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rates = [key for key in _RATES if any(key in entry for entry in entries)]
    p_targets = list(dict.fromkeys(p for entry in entries for p in entry.get("min_dcf", {})))
    for column in ("epoch", "step", *(_RATES[key] for key in rates), *(f"minDCF({p})" for p in p_targets)):
        table.add_column(column, justify="right")
    table.add_column("")
    for entry in entries:
        costs = entry.get("min_dcf", {})
        table.add_row(
            f"{entry['epoch']:g}",
            f"{entry['step']:,}",
            *(f"{100 * entry[key]:.2f}" if key in entry else "" for key in rates),
            *(f"{costs[p]:.3f}" if p in costs else "" for p in p_targets),
            "best" if entry["step"] == best_step else "",
        )
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
