"""Plots of results, as PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spkexp.scoring.metrics import ErrorRates, eer, error_rates
from spkexp.scoring.trial_scores import TrialScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Rates that the axes of a DET plot name; outside of the first and last nothing is drawn.
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_LEAST = 1e-6  # nearer to 0 or 1 a rate has no place on normal-deviate axes


def det_plot(file: Path, scored: Mapping[str, TrialScores]) -> None:
    """Detection error trade-off: miss against false alarm on normal-deviate axes (Martin et al. 1997).

    scored: the trial lists by name; those without labels are left out, and no plot is made of none.
    """
    scores = {name: (one.score, one.target) for name, one in scored.items() if one.target is not None}
    if not scores:
        return
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = det_axes(figure)
    for name, (values, target) in scores.items():
        rates = error_rates(values, target)
        rate, shown = eer(rates), thinned(rates)
        label = f"{name}: EER {100 * rate:.2f} %"
        (line,) = axes.plot(probit(shown.false_alarm), probit(shown.miss), linewidth=1.6, label=label)
        if 0 < rate < 1:
            axes.plot(*[probit(rate)] * 2, marker="o", markersize=5, color=line.get_color())
    axes.legend(loc="upper right", framealpha=1.0, edgecolor="none")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def probit(rate: ArrayLike) -> NDArray[np.float64]:
    """Normal deviates of rates, those of 0 and 1 far outside of a plot."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(rate, _LEAST, 1 - _LEAST)))


def thinned(rates: ErrorRates, most: int = 300) -> ErrorRates:
    """At most so many of the thresholds, at even distances along the curve on normal-deviate axes; both ends stay out,
    where one of the rates is 0 or 1 by definition."""
    inside = ErrorRates(rates.miss[1:-1], rates.false_alarm[1:-1])
    if len(inside.miss) <= most:
        return inside
    steps = np.abs(np.diff(probit(inside.miss))) + np.abs(np.diff(probit(inside.false_alarm)))
    along = np.concatenate([[0.0], np.cumsum(steps)])
    chosen = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], most)))
    return ErrorRates(inside.miss[chosen], inside.false_alarm[chosen])


def det_axes(figure: "Figure") -> "Axes":
    """Axes for `probit` of false alarms (x) and misses (y)."""
    axes = figure.add_subplot()
    low, high = float(probit(_TICKS[0] * 0.7)), float(probit(0.5))
    axes.plot([low, high], [low, high], color="0.75", linewidth=0.8, zorder=0)
    ticks, names = probit(_TICKS), [f"{100 * tick:g}" for tick in _TICKS]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("false alarms (%)")
    axes.set_ylabel("misses (%)")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_aspect("equal")
    return axes
