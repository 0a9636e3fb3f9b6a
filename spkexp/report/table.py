"""Results as people read them: percent, with intervals, beside the encoder that training began with."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from spkexp.report.classes import classes_table
from spkexp.report.conditions import conditions_table
from spkexp.report.ratios import calibration_table

# What an entry has of the weights that training began with: fresh ones, or those of init_from.
UNTRAINED, BEFORE = BEGINNINGS = ("untrained", "before")


def results_table(results: dict[str, Any], width: int = 80) -> str:
    """A terminal table of results.json; rates in percent."""
    title = f"{results['model']} on {results['data']}, seed {results['seed']}"
    # Without borders all columns fit into 80.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    labelled = {name: entry for name, entry in results["trials"].items() if "macro_f1" in entry}
    entries = {name: entry for name, entry in results["trials"].items() if name not in labelled}
    if not results["trials"]:
        return "no trials, so no error rates; the split of the data, or data.trials, gives some"
    p_targets = next((list(entry["min_dcf"]) for entry in entries.values() if "min_dcf" in entry), [])
    accuracies = any("accuracy" in entry for entry in entries.values())
    table.add_column("trials")
    for column in ("EER %", "95 % interval", *(f"minDCF({p})" for p in p_targets), *["accuracy %"] * accuracies):
        table.add_column(column, justify="right")
    for name, entry in entries.items():
        label = f"{name} ({entry['num_trials']:,})" if "num_trials" in entry else name
        table.add_row(label, *_cells(entry, p_targets, accuracies))
        for beginning in BEGINNINGS:
            if entry.get(beginning):
                table.add_row(f"  {beginning}", *_cells(entry[beginning], p_targets, accuracies))
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        if labelled:
            console.print(classes_table(title, labelled))
        if entries:
            console.print(table)
        if ratios := {name: entry for name, entry in entries.items() if "cllr" in entry}:
            console.print(calibration_table("log-likelihood ratios", "trials", ratios))
            if any("calibration" not in entry for entry in ratios.values()):
                console.print("Not calibrated; scoring.calibration=val takes away most of Cllr − min.\n")
        for name, entry in entries.items():
            for column, groups in entry.get("conditions", {}).items():
                if any("eer" in group for group in groups.values()):
                    console.print(conditions_table(f"{name} by {column}", groups))
                else:
                    console.print(f"{name} by {column}: {len(groups)} groups, each too small for an error rate\n")
        line = f"{results['parameters'] / 1e6:.2f} M parameters"
        if "train_seconds" in results:  # not where a model is evaluated away from its run
            line += f", trained {results['train_seconds']:.0f} s at {results['utterances_per_second']:.0f} utterances/s"
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _cells(entry: dict[str, Any], p_targets: list[str], accuracies: bool) -> list[str]:
    interval, costs = entry.get("eer_ci95"), entry.get("min_dcf", {})
    blind = "num_trials" in entry and "eer" not in entry
    cells = [
        "no labels" if blind else _percent(entry.get("eer")),
        f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}" if interval else "",
        *(f"{costs[p]:.3f}" if p in costs else "" for p in p_targets),
    ]
    return [*cells, _percent(entry.get("accuracy"))] if accuracies else cells


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}"
