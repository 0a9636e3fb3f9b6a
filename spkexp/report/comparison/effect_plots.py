"""What hyper-parameters do, as pictures: main effects, and each run as a line through its settings."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spkexp.report.comparison.effects import LEAST_RUNS
from spkexp.report.comparison.figures import chosen, finish, new_figure, shortened, title
from spkexp.report.data_page import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_KEYS = 8  # that a picture has room for, the most telling ones
_MOST_TICKS = 6  # numbers that an axis names one by one
_RUN: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "0.55", "markersize": 3, "zorder": 3}
_BEYOND = 0.5  # how far intervals take an axis beyond the runs, of what these span
_SKEWED = 30.0  # highest over lowest value from which an axis is logarithmic


def main_effects_plot(file: Path, content: Mapping[str, Any]) -> bool:
    """A panel a key: at each of its values the runs and their mean, of enough runs with its interval (`main_effects`).

    Returns whether there was a key.
    """
    effects = dict(list(content["effects"].items())[:MOST_KEYS])
    if not effects:
        return False
    metric = chosen(content)
    columns = min(4, len(effects))
    rows = -(-len(effects) // columns)
    figure = new_figure(2.9 * columns + 0.6, 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel in panels.flat[len(effects) :]:
        panel.set_axis_off()
    for panel, (key, effect) in zip(panels.flat, effects.items(), strict=False):
        _panel(panel, effect, metric["scale"])
        panel.set_xlabel(shortened(key, 34), parse_math=False, fontsize=9)
        finish(panel)
    levels = [level for effect in effects.values() for level in effect["levels"]]
    measured = [value * metric["scale"] for level in levels for value in level["values"]]
    if reach := (max(measured) - min(measured)) * _BEYOND:  # few runs may have an interval far wider than all of them
        low, high = panels[0, 0].get_ylim()
        least = max(0.0, min(measured) - reach) if min(measured) >= 0 else min(measured) - reach
        panels[0, 0].set_ylim(max(low, least), min(high, max(measured) + reach))
    for panel in panels[:, 0]:
        panel.set_ylabel(title(metric), parse_math=False)
    lines = ["small: runs; large: their mean"]
    if any(level["low"] is not None for level in levels):
        lines.append(f"bar: 95 % interval over {LEAST_RUNS} or more runs (Student's t), as far as it fits")
    figure.suptitle("\n".join(lines), fontsize=8, color="0.3", x=0.99, ha="right")
    figure.savefig(file)
    return True


def _panel(axes: "Axes", effect: Mapping[str, Any], scale: float) -> None:
    levels = effect["levels"]
    x = list(range(len(levels)))
    for place, level in zip(x, levels, strict=True):
        axes.plot([place] * len(level["values"]), [value * scale for value in level["values"]], **_RUN)
        if level["low"] is not None:
            axes.vlines(place, level["low"] * scale, level["high"] * scale, color=COLOURS[0], linewidth=1.4)
    line = "-" if effect["numeric"] else ""
    means = [level["mean"] * scale for level in levels]
    axes.plot(x, means, marker="o", linestyle=line, color=COLOURS[0], markersize=5, linewidth=1.0, zorder=2.5)
    names = [shortened(level["name"], 18) for level in levels]
    if len(names) > 10:
        axes.set_xticks(x, names, fontsize=6, rotation=90)
    elif sum(map(len, names)) > 26:
        axes.set_xticks(x, names, fontsize=7.5, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(x, names, fontsize=7.5)
    axes.margins(x=0.12)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)


def parallel_coordinates(file: Path, content: Mapping[str, Any]) -> bool:
    """A line a row through its value of each differing key to its metric, coloured by that. Returns whether there are
    two rows and a key to draw."""
    from matplotlib import colormaps
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    metric = chosen(content)
    rows = [row for row in content["rows"] if metric["key"] in row["metrics"]]
    keys = [key for key in content["differing"] if any(key in row["config"] for row in rows)][: MOST_KEYS - 1]
    if len(rows) < 2 or not keys:
        return False
    figure = new_figure(1.9 * (len(keys) + 1) + 1.2, 4.4)
    axes = figure.add_subplot()
    scales = [_Scale([row["config"].get(key) for row in rows]) for key in keys]
    measured = [row["metrics"][metric["key"]]["value"] * metric["scale"] for row in rows]
    scales.append(_Scale(measured))
    places = scales[-1].places
    for index in reversed(range(len(rows))):  # the best on top
        heights = [scale.places[index] for scale in scales]
        vertices, codes = [(0.0, heights[0])], [Line.MOVETO]
        for column, (before, after) in enumerate(pairwise(heights)):
            # A curve that leaves and meets the axes level: lines through one point can be followed.
            vertices += [(column + 0.4, before), (column + 0.6, after), (column + 1.0, after)]
            codes += [Line.CURVE4] * 3
        shade = places[index] if metric["better"] == "lower" else 1 - places[index]
        colour = colormaps["cividis"](0.92 * shade)
        width = 2.4 if index == 0 else 1.0 if len(rows) > 20 else 1.3
        line = Line(vertices, codes)
        axes.add_patch(PathPatch(line, facecolor="none", edgecolor=colour, linewidth=width, alpha=0.85))
    for column, scale in enumerate(scales):
        axes.axvline(column, color="0.35", linewidth=0.8, zorder=5)
        for height, name in scale.ticks:
            last = column == len(scales) - 1
            offset = (5, 0) if last else (-5, 0)
            text = axes.annotate(
                shortened(name, 20), (column, height), offset, textcoords="offset points", fontsize=7.5, zorder=6,
                va="center", ha="left" if last else "right",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            )  # fmt: skip
            text.set_parse_math(False)
    names = [*(shortened(key.rpartition(".")[2] if len(key) > 20 else key, 22) for key in keys), title(metric)]
    axes.set_xticks(range(len(scales)), names, fontsize=8.5)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis="x", length=0, pad=8)
    axes.set(xlim=(-0.75, len(scales) - 0.6), ylim=(-0.04, 1.04), yticks=[])
    axes.spines[:].set_visible(False)
    # The colours are those of the last axis, and say nothing that it does not: they let the eye follow a line there.
    key = f"a line a run; the darker, the better its {metric['name']}\nbold: {shortened(rows[0]['name'], 40)}"
    axes.set_title(key, fontsize=9, color="0.3", loc="right", parse_math=False)
    figure.savefig(file)
    return True


class _Scale:
    """An axis for the values of a key, whatever they are. places: height of each row, 0 to 1; ticks: (height, name)."""

    def __init__(self, values: list[Any]) -> None:
        import numpy as np
        from matplotlib.ticker import MaxNLocator

        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values) and len(set(numbers)) > 1:
            low, high = min(numbers), max(numbers)
            logarithmic = low > 0 and high > _SKEWED * low
            where = np.array(np.log(numbers) if logarithmic else numbers, dtype=float)
            first, span = where.min(), np.ptp(where)
            self.places = [float(place) for place in (where - first) / span]
            ticks = sorted(set(numbers))
            if len(ticks) > _MOST_TICKS:
                wanted = 10.0 ** np.arange(-12, 13) if logarithmic else MaxNLocator(5).tick_values(low, high)
                ticks = [float(tick) for tick in wanted if low <= tick <= high] or [low, high]
            at = np.array(np.log(ticks) if logarithmic else ticks, dtype=float)
            self.ticks = [(float(p), f"{tick:.4g}") for p, tick in zip((at - first) / span, ticks, strict=True)]
            return
        names = ["–" if value is None else str(value) for value in values]
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        last = max(1, len(order) - 1)
        self.places = [1 - order[name] / last for name in names]
        self.ticks = [(1 - place / last, name) for name, place in order.items()]
