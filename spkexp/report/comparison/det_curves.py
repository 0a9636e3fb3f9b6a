"""DET curves of a comparison, as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spkexp.report.comparison.figures import MOST_COLOURED, legend, look, new_figure
from spkexp.report.plots import det_axes, probit


def det_curves(file: Path, content: Mapping[str, Any]) -> bool:
    """All rows whose scores are kept in one plot, as `plots.det_plot` has them. Returns whether there were any."""
    rows = [(place, row) for place, row in enumerate(content["rows"]) if row["det"] is not None]
    if not rows:
        return False
    figure = new_figure(5.4, 5.3 + 0.1 * min(len(rows), MOST_COLOURED + 1))
    axes = det_axes(figure)
    for place, row in rows:
        axes.plot(probit(row["det"]["false_alarm"]), probit(row["det"]["miss"]), **look(place))
    legend(axes, [(place, row["name"]) for place, row in rows], loc="below")
    figure.savefig(file)
    return True
