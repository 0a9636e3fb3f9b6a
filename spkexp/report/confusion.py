"""What a classifier takes for what: a picture and a table of the confusions, and every single answer."""

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spkexp.scoring.classification import Classified
from spkexp.whole_file import replacing, write_text

_NUMBERED = 12  # up to so many classes the cells have room for numbers
_NAMED = 80  # up to so many the axes have room for every name
_LONGEST = 20  # letters of a name on an axis


def write_classified(folder: Path, classified: Classified, answers: bool) -> None:
    """Into the run folder: plots/confusion-NAME.png, scores/confusion-NAME.csv, and with `answers` scores/NAME.csv.

    The last has a line for each utterance: its id, its class, and the class it was taken for.
    """
    name, counts = classified.set.name, classified.confusions()
    confusion_plot(
        folder / "plots" / f"confusion-{name}.png", counts, classified.classes, f"{classified.label}, {name}"
    )
    rows = [[true, *row] for true, row in zip(classified.classes, counts.tolist(), strict=True)]
    _write(folder / "scores" / f"confusion-{name}.csv", [["true \\ predicted", *classified.classes], *rows])
    if answers:
        ids, classes = classified.set.utterances.id, classified.classes
        pairs = enumerate(zip(classified.expected.tolist(), classified.predicted.tolist(), strict=True))
        answered = [[ids[item], classes[true], classes[found]] for item, (true, found) in pairs if found >= 0]
        _write(folder / "scores" / f"{name}.csv", [["id", classified.label, "predicted"], *answered])


def _write(file: Path, rows: list[list[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(file, text.getvalue())


def confusion_plot(file: Path, counts: NDArray[np.int64], classes: list[str], title: str) -> None:
    """Each row is a class, the shades are the shares of its utterances that were taken for each column's class.

    counts: (K, K) utterances of the row's class taken for the column's. A class without utterances is grey.
    """
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    totals = counts.sum(axis=1, keepdims=True)
    share = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    num_classes = len(classes)
    numbered = num_classes <= _NUMBERED
    shown = np.arange(0, num_classes, -(-num_classes // _NAMED))
    names = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n in (classes[index] for index in shown)]
    letters = 9.0 if numbered else 6.5
    square, longest = (
        float(np.clip(0.16 * num_classes, 3.6, 11.0)),
        max(map(len, names)) * 0.62 * letters / 72,
    )  # inches
    upright = longest * num_classes < square
    figure = Figure(
        figsize=(square + longest + 1.6, square + (0.2 if upright else longest) + 0.8), dpi=150, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    # Where no numbers fit, the shades tell a share of 5 % from none: they go by the square root.
    norm = PowerNorm(1.0 if numbered else 0.5, vmin=0, vmax=100)
    image = axes.imshow(100 * share, cmap="Blues", norm=norm, interpolation="nearest")
    axes.set_xticks(shown, names, rotation=0 if upright else 90, fontsize=letters)
    axes.set_yticks(shown, names, fontsize=letters)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a class may be called $5$
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    if num_classes <= _NAMED:
        axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if numbered:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                value = share[row, column]
                percent = f"{100 * value:.0f}" if value >= 0.01 else "<1"
                axes.text(column, row, percent, ha="center", va="center", color="white" if value > 0.5 else "0.1")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}: {counts.sum():,} utterances", fontsize=10, parse_math=False)
    ticks = (0, 20, 40, 60, 80, 100) if numbered else (0, 2, 5, 10, 20, 40, 60, 80, 100)
    figure.colorbar(image, ax=axes, label="% of the true class", ticks=ticks, fraction=0.045, pad=0.02)
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.1)
