"""Histograms of the scores of trials, as PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spkexp.report.data_page import COLOURS, STYLES
from spkexp.scoring.metrics import Ranking, eer, eer_threshold
from spkexp.scoring.trial_scores import TrialScores
from spkexp.whole_file import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 80
_TAIL = 1e-4  # share of the trials at either end that may lie beyond the axis: one of them would set its scale


def similarity_plot(file: Path, scores: Mapping[str, TrialScores], unit: str = "score") -> bool:
    """How target and non-target scores are distributed, one panel a list: the less they overlap, the better.

    Either kind is drawn as shares of its own trials, for the two differ in number by orders of magnitude. What both
    have in common (Swain and Ballard 1991, histogram intersection) is hatched, and the line is the threshold at the
    equal error rate. scores: by the list's name; lists without labels are left out, and no picture is made of none:
    returns whether there is one. unit: of the scores.
    """
    lists = {name: one for name, one in scores.items() if one.target is not None}
    if not lists:
        return False
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.6 + 3.2 * len(lists)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.1)
    every = np.concatenate([one.score for one in lists.values()])
    low, high = np.quantile(every, [_TAIL, 1 - _TAIL])
    margin = max(0.03 * (high - low), 1e-3)
    panels = figure.subplots(len(lists), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, one) in zip(panels, lists.items(), strict=True):
        _panel(axes, name, one, (low - margin, high + margin))
    panels[-1].set_xlabel(unit, parse_math=False)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png")
    return True


def _shares(
    scores: NDArray[np.float32], target: NDArray[np.bool_], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of targets and of non-targets the share in each bin; what lies beyond the outermost counts as in these."""
    inside = np.clip(scores, edges[0], edges[-1])
    counts = (np.histogram(inside[kind], edges)[0] for kind in (target, ~target))
    first, second = (count / max(1, count.sum()) for count in counts)
    return first, second


def _panel(axes: "Axes", name: str, one: TrialScores, span: tuple[float, float]) -> None:
    assert one.target is not None
    counts = int(one.target.sum()), int((~one.target).sum())
    edges = np.linspace(*span, int(np.clip(2 * np.sqrt(min(counts)), 10, BINS)) + 1)
    shares = _shares(one.score, one.target, edges)
    for number, (share, kind, count) in enumerate(
        zip(shares, ("same speaker", "different speakers"), counts, strict=True)
    ):
        axes.stairs(100 * share, edges, fill=True, color=COLOURS[number], alpha=0.15)
        axes.stairs(100 * share, edges, color=COLOURS[number], linestyle=STYLES[number], linewidth=1.6)
        axes.plot([], [], color=COLOURS[number], linestyle=STYLES[number], linewidth=1.6, label=f"{kind} ({count:,})")
    common = np.minimum(*shares)
    axes.stairs(100 * common, edges, fill=True, facecolor="none", edgecolor="0.45", hatch="////", linewidth=0)
    title = f"{name}: overlap {100 * common.sum():.1f} %"
    if all(counts):
        ranking = Ranking(one.score, one.target)
        threshold = eer_threshold(ranking)
        axes.axvline(threshold, color="0.2", linewidth=1.1, linestyle=(0, (1, 1)))
        axes.plot(
            [], [], color="0.2", linewidth=1.1, linestyle=(0, (1, 1)), label=f"threshold at the EER: {threshold:.3f}"
        )
        title = f"{name}: EER {100 * eer(ranking.error_rates()):.2f} %, overlap {100 * common.sum():.1f} %"
    axes.set_title(title, fontsize=10.5, loc="left", parse_math=False)
    axes.set_ylabel("% of the trials of its kind")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 135 * max(share.max() for share in shares))  # room for the legend
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", ncols=3, fontsize=8.5, framealpha=1.0, edgecolor="none", columnspacing=1.4)
