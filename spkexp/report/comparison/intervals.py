"""The rows of a comparison below each other: a metric, its interval, and the seeds that it is the mean of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spkexp.report.comparison.figures import chosen, finish, new_figure, shortened, title


def intervals_plot(file: Path, content: Mapping[str, Any]) -> bool:
    """The best row is at the top; grey are those that differ from the reference significantly.

    Returns whether there was anything to compare: two rows.
    """
    metric = chosen(content)
    rows = [row for row in content["rows"] if metric["key"] in row["metrics"]]
    if len(rows) < 2:
        return False
    figure = new_figure(6.4, 1.0 + 0.27 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        entry = row["metrics"][metric["key"]]
        difference = entry["difference"]
        colour = "0.6" if difference is not None and difference["significant"] else "C0"
        if entry["ci95"]:
            low, high = (bound * metric["scale"] for bound in entry["ci95"])
            axes.hlines(place, low, high, color=colour, linewidth=2.2, alpha=0.45)
        seeds = [value * metric["scale"] for value in entry["of_seeds"]]
        if len(seeds) > 1:
            axes.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=8, markeredgewidth=1.2)
        axes.plot(entry["value"] * metric["scale"], place, "o", color=colour, markersize=6)
    axes.set_yticks(range(len(rows)), [shortened(row["name"], 34) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(title(metric), parse_math=False)
    finish(axes)
    axes.grid(visible=False, axis="y")
    figure.savefig(file)
    return True
