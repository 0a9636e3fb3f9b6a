"""A metric against what a model costs, with intervals and the rows' names."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spkexp.report.comparison.figures import MOST_COLOURED, chosen, finish, look, new_figure, shortened, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {
    "parameters": (1e-6, "parameters (millions)"),
    "macs": (1e-9, "multiply-accumulates of 2 s (billions)"),
    "train_seconds": (1 / 3600, "training time (hours)"),
}
NAMED = 12  # rows whose names have room at their points; where there are more, points have numbers


def against_cost(file: Path, content: Mapping[str, Any], cost: str) -> bool:
    """cost: one of COSTS. Returns whether there was anything to draw: two rows, of different costs."""
    metric, (scale, name) = chosen(content), COSTS[cost]
    rows = [
        (place, row["name"], row[cost] * scale, row["metrics"][metric["key"]])
        for place, row in enumerate(content["rows"])
        if row[cost] and metric["key"] in row["metrics"]
    ]
    if len({row[2] for row in rows}) < 2:
        return False
    numbered = len(rows) > NAMED
    figure = new_figure(8.6 if numbered else 6.4, 4.6 if not numbered else max(4.6, 0.6 + 0.135 * len(rows)))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for place, _, x, entry in rows:
        y = entry["value"] * metric["scale"]
        colour = look(place)["color"] if place < MOST_COLOURED else "0.55"
        if entry["ci95"]:
            low, high = (bound * metric["scale"] for bound in entry["ci95"])
            axes.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.7, zorder=2)
        axes.plot(x, y, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6, zorder=4)
    axes.set_xlabel(name)
    axes.set_ylabel(title(metric), parse_math=False)
    axes.margins(x=0.12, y=0.1)
    _ticks(axes, [row[2] for row in rows])
    finish(axes)
    points = [(x, entry["value"] * metric["scale"]) for _, _, x, entry in rows]
    texts = [str(place + 1) if numbered else shortened(name, 26) for place, name, _, _ in rows]
    bars = [[bound * metric["scale"] for bound in entry["ci95"] or ()] for *_, entry in rows]
    if numbered:
        key = "\n".join(f"{place + 1}  {shortened(name, 34)}" for place, name, _, _ in rows)
        size = 6.5 if len(rows) > 30 else 7.5
        shown = axes.annotate(key, (1.02, 1.0), xycoords="axes fraction", va="top", fontsize=size, linespacing=1.25)
        shown.set_parse_math(False)
    label_points(axes, points, texts, bars, 6.5 if numbered else 8)
    figure.savefig(file)
    return True


def _ticks(axes: "Axes", values: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    narrow = max(values) < 300 * min(values)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=20))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def label_points(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    bars: Sequence[Sequence[float]],
    size: float,
) -> None:
    """A text near each point that covers no other text, no point, no bar and no edge of the axes.

    Tried are places in growing circles around the point; from the second circle on a line leads to it. points: in data
    units; bars: (low, high) of each point's interval, or nothing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout, without which nobody knows where a point is
    renderer = canvas.get_renderer()
    frame, dots = axes.get_window_extent(renderer), figure.dpi / 72
    at = [axes.transData.transform(point) for point in points]
    taken = [Bbox.from_bounds(x - 3 * dots, y - 3 * dots, 6 * dots, 6 * dots) for x, y in at]
    for (x, _), bar in zip(points, bars, strict=True):
        if len(bar) == 2:
            (left, low), (_, high) = axes.transData.transform([(x, bar[0]), (x, bar[1])])
            taken.append(Bbox([[left - dots, low], [left + dots, high]]))
    inverse = axes.transData.inverted()
    for (x, y), text in zip(at, texts, strict=True):
        label = axes.text(0, 0, text, fontsize=size, parse_math=False, zorder=5, va="bottom")
        extent = label.get_window_extent(renderer)
        width, height = extent.width, extent.height
        for radius, angle in _circles():
            middle_x = x + math.cos(angle) * (radius * dots + width / 2)
            middle_y = y + math.sin(angle) * (radius * dots + height / 2)
            box = Bbox.from_bounds(middle_x - width / 2, middle_y - height / 2, width, height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        left, bottom = inverse.transform((box.x0, box.y0))
        label.set_position((float(left), float(bottom)))
        if radius > 10:
            end = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
            line = [inverse.transform(end), inverse.transform((x, y))]
            axes.plot(*zip(*line, strict=True), color="0.6", linewidth=0.5, zorder=1)


def _circles() -> list[tuple[float, float]]:
    """(distance in points, angle): right, left, above and below first."""
    first = [0, math.pi, math.pi / 2, -math.pi / 2, *(math.pi / 4 * k for k in (1, 3, 5, 7))]
    more = [math.pi / 8 * k for k in range(16)]
    return [(6.0, a) for a in first] + [(radius, a) for radius in range(14, 150, 8) for a in more]
