"""What calibration did: log-likelihood ratios held against what came true, as a table and a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table

from spkexp.scoring.calibrate import Calibration
from spkexp.scoring.metrics import bayes_error_curve, calibration_curve

# Of the right panel: a system that always says the same costs 1, one that misleads more, how much more is no matter.
_CEILING = 1.3


def weights_table(calibration: Calibration) -> Table:
    """The weights, in the units of the features and in those of their deviation, which can be compared."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("log-likelihood ratio =", overflow="fold")
    table.add_column("weight", justify="right")
    table.add_column("weight ×\ndeviation", justify="right")
    for name, weight, deviation in zip(
        calibration.names, calibration.weights.tolist(), calibration.deviation.tolist(), strict=True
    ):
        table.add_row(escape(name), f"{weight:.4g}", f"{weight * deviation:.3f}")
    table.add_row("offset", f"{calibration.offset:.4g}", "")
    return table


def calibration_plot(file: Path, systems: Mapping[str, tuple[NDArray[np.floating], NDArray[np.bool_]]]) -> None:
    """Left how often it was the same speaker where the ratios promised it with some probability, were every second
    trial a target; right the normalised Bayes error-rate plot (Brümmer and de Villiers 2011, "The BOSARIS toolkit"):
    what decisions cost at every prior, and dashed what they would cost with the best threshold.

    systems: (T,) natural-log likelihood ratios and (T,) whether the speaker is the same, by name. Raises ValueError
    where one has no error rates.
    """
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10.4, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    reliability, costs = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color="0.75", linewidth=0.8, zorder=0)
    costs.axhline(1.0, color="0.75", linewidth=0.8, zorder=0)
    handles = []
    for number, (name, (ratios, target)) in enumerate(systems.items()):
        color, marker = f"C{number}", "osD^v"[number % 5]
        curve = calibration_curve(ratios, target)
        reliability.plot(curve.predicted, curve.observed, color=color, marker=marker, markersize=4, linewidth=1.4)
        errors = bayes_error_curve(ratios, target)
        costs.plot(errors.log_odds, errors.actual, color=color, linewidth=1.6)
        costs.plot(errors.log_odds, errors.minimum, color=color, linewidth=1.0, linestyle=(0, (4, 3)))
        handles.append(Line2D([], [], color=color, marker=marker, markersize=4, linewidth=1.6, label=name))
    reliability.set_xlim(-0.02, 1.02)
    reliability.set_ylim(-0.02, 1.02)
    reliability.set_aspect("equal")
    reliability.set_xlabel("probability of the same speaker, as the ratios have it")
    reliability.set_ylabel("share that was the same speaker")
    reliability.set_title("Reliability at even odds", fontsize="medium")
    reliability.legend(handles=handles, loc="upper left", framealpha=1.0, edgecolor="none")
    costs.set_xlim(errors.log_odds[0], errors.log_odds[-1])
    costs.set_ylim(0, _CEILING)
    costs.set_xlabel("prior log odds, ln(p / (1 − p))")
    costs.set_ylabel("normalised detection cost")
    costs.set_title("Cost of decisions at every prior", fontsize="medium")
    kinds = [
        Line2D([], [], color="0.3", linewidth=1.6, label="decided by the ratios"),
        Line2D([], [], color="0.3", linewidth=1.0, linestyle=(0, (4, 3)), label="with the best threshold"),
    ]
    costs.legend(handles=kinds, loc="upper center", ncols=2, framealpha=1.0, edgecolor="none", fontsize="small")
    for axes in (reliability, costs):
        axes.grid(color="0.9", linewidth=0.6)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
