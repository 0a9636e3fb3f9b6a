"""Results as people read them: percent, with intervals, beside the untrained encoder."""

from typing import Any

from rich.console import Console
from rich.table import Table


def results_table(results: dict[str, Any], width: int = 80) -> str:
    """A terminal table of results.json; rates in percent."""
    table = Table(title=f"{results['model']} on {results['data']}, seed {results['seed']}", title_justify="left")
    entries = results["trials"]
    if not entries:
        return "no trials, so no error rates; the split of the data, or data.trials, gives some"
    table.add_column("trials")
    table.add_column("EER %", justify="right")
    table.add_column("95 % interval", justify="right")
    for p_target in next(iter(entries.values()))["min_dcf"]:
        table.add_column(f"minDCF({p_target})", justify="right")
    if any("accuracy" in entry for entry in entries.values()):
        table.add_column("accuracy %", justify="right")
    for name, entry in entries.items():
        interval = entry["eer_ci95"]
        bounds = f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}" if interval else "–"
        table.add_row(f"{name} ({entry['num_trials']:,})", f"{100 * entry['eer']:.2f}", bounds, *_rest(entry))
        if entry.get("untrained"):
            untrained = entry["untrained"]
            table.add_row("  untrained", f"{100 * untrained['eer']:.2f}", "", *_rest(untrained), style="dim")
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
        console.print(
            f"{results['parameters'] / 1e6:.2f} M parameters, trained {results['train_seconds']:.0f} s "
            f"at {results['utterances_per_second']:.0f} utterances/s",
            highlight=False,
        )
    return captured.get().rstrip()


def _rest(entry: dict[str, Any]) -> list[str]:
    cells = [f"{value:.3f}" for value in entry["min_dcf"].values()]
    return cells + ([f"{100 * entry['accuracy']:.1f}"] if "accuracy" in entry else [])
