"""Learning curves of a comparison, as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spkexp.report.comparison.figures import chosen, finish, legend, look, new_figure, title
from spkexp.report.comparison.metrics import metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = (("train", "loss", "training loss"), ("val", "loss", "validation loss"))
# Lists of unknown speakers have no validation loss: what their scores tell, at best, stands in for it.
_STAND_IN = ("val", "min_cllr", "validation minCllr")


def learning_curves(file: Path, content: Mapping[str, Any]) -> bool:
    """Loss in training, and loss (or minCllr) and metric in validation, against the epoch; a line a seed, one colour a
    row.

    Returns whether there was anything to draw.
    """
    metric = metric_of(content["metric"])
    measures = [(content["metric"], title(chosen(content)), metric.scale if metric else 1)]
    # Where a list is measured by more than validation looks at, by what the best checkpoint was chosen.
    measures += [("eer", "EER (%)", 100), ("accuracy", "accuracy (%)", 100)]
    losses = _PANELS if _has(content, "val", "loss") else (_PANELS[0], _STAND_IN)
    panels = [(part, key, name, 1) for part, key, name in losses if _has(content, part, key)]
    rates = [("val", key, f"validation {name}", scale) for key, name, scale in measures if _has(content, "val", key)]
    panels += [panel for panel in rates[:1] if panel not in panels]
    if not panels:
        return False
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.3 * len(panels) + 0.2, 3.6)
    figure.set_layout_engine("constrained", w_pad=0.1)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    drawn: dict[int, str] = {}
    for panel, (part, key, name, scale) in zip(axes, panels, strict=True):
        for place, row in enumerate(content["rows"]):
            if _draw(panel, place, row, part, key, scale):
                drawn[place] = row["name"]
        panel.set(xlabel="epoch")
        panel.set_ylabel(name, parse_math=False)
        panel.margins(x=0.02)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=_epochs(content) > 2))
        finish(panel)
    legend(axes[0], sorted(drawn.items()), loc="best")
    figure.savefig(file)
    return True


def _has(content: Mapping[str, Any], part: str, key: str) -> bool:
    return any(any(curve.get(part, {}).get(key, ())) for row in content["rows"] for curve in row["curves"])


def _epochs(content: Mapping[str, Any]) -> float:
    """The last one that anything was measured at."""
    parts = [part for row in content["rows"] for curve in row["curves"] for part in curve.values()]
    return max((part["epoch"][-1] for part in parts if isinstance(part, dict)), default=0.0)


def _draw(axes: "Axes", place: int, row: Mapping[str, Any], part: str, key: str, scale: float) -> bool:
    found = False
    for curve in row["curves"]:
        own = curve.get(part, {})
        points = [(x, y * scale) for x, y in zip(own.get("epoch", ()), own.get(key, ()), strict=False) if y is not None]
        if points:
            marker = "o" if len(points) < 15 and part == "val" else None
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, **look(place))
            found = True
    return found
