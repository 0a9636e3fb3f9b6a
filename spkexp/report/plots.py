"""Plots of results, as PNG."""

from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np

from spkexp.scoring.metrics import eer, error_rates
from spkexp.scoring.verification import Scored

# Rates that the axes of a DET plot name; outside of the first and last nothing is drawn.
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def det_plot(file: Path, scored: Mapping[str, Scored]) -> None:
    """Detection error trade-off: miss against false alarm on normal-deviate axes (Martin et al. 1997).

    scored: the trial lists by name; those without trials or labels are left out, and no plot is made of none.
    """
    scores = {
        name: (one.scores, one.trials.target)
        for name, one in scored.items()
        if one.trials is not None and one.scores is not None and one.trials.target is not None
    }
    if not scores:
        return
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    probit = np.vectorize(NormalDist().inv_cdf, otypes=[float])
    low, high = probit(_TICKS[0] * 0.7), probit(0.5)
    axes.plot([low, high], [low, high], color="0.75", linewidth=0.8, zorder=0)
    for name, (values, target) in scores.items():
        rates = error_rates(values, target)
        inside = slice(1, -1)
        x = probit(np.clip(rates.false_alarm[inside], 1e-6, 1 - 1e-6))
        y = probit(np.clip(rates.miss[inside], 1e-6, 1 - 1e-6))
        rate = eer(rates)
        (line,) = axes.plot(x, y, linewidth=1.6, label=f"{name}: EER {100 * rate:.2f} %")
        if 0 < rate < 1:
            axes.plot(*[probit(rate)] * 2, marker="o", markersize=5, color=line.get_color())
    ticks, names = probit(np.array(_TICKS)), [f"{100 * tick:g}" for tick in _TICKS]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("false alarms (%)")
    axes.set_ylabel("misses (%)")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_aspect("equal")
    axes.legend(loc="upper right", framealpha=1.0, edgecolor="none")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
