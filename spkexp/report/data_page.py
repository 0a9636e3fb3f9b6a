"""A page of charts of a dataset, as PNG."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from spkexp.data.description import Description, Group
from spkexp.data.levels import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart with any colour vision; lines differ in style too, for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
BINS = 40
SKEWED = 30.0  # highest over lowest value from which an axis is logarithmic
NAMES = 6  # splits that have room; where there are more, all are drawn as one


def data_page(file: Path, description: Description, sample: Sample | None) -> None:
    """By split: durations, utterances and seconds per class; of the sample, if any: levels, SNR, mel ranges."""
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 1 if sample is None or not sample.levels else 2
    figure = Figure(figsize=(12, 0.6 + 3.4 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(rows, 3, squeeze=False)
    splits = description.splits if len(description.splits) <= NAMES else {"all": description.all}
    label = description.label
    _histograms(panels[0][0], {name: group.seconds for name, group in splits.items()}, "utterances")
    panels[0][0].set(xlabel="duration of an utterance (s)")
    if description.crop_seconds is not None:
        panels[0][0].axvline(description.crop_seconds, color="0.35", linewidth=1.0, linestyle=(0, (1, 1)))
        _note(panels[0][0], f"dotted: training crop, {description.crop_seconds:g} s")
    _histograms(panels[0][1], {name: group.utterances_per_class for name, group in splits.items()}, f"{label}s")
    panels[0][1].set_xlabel(f"utterances per {label}", parse_math=False)
    seconds, unit = _in_units(splits)
    _histograms(panels[0][2], seconds, f"{label}s")
    panels[0][2].set_xlabel(f"{unit} of audio per {label}", parse_math=False)
    if rows == 2 and sample is not None:
        _levels(panels[1][0], sample)
        _signal_to_noise(panels[1][1], sample)
        _mel(panels[1][2], sample)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    if len(splits) > 1:
        _split_legend(figure, _title(description), splits, label)
    else:
        figure.suptitle(_title(description), fontsize=13, parse_math=False)
    figure.savefig(file)


def _title(description: Description) -> str:
    group, label = description.all, description.label
    counts = [] if group.speakers is None else [_counted(group.speakers, "speaker")]
    counts += [_counted(len(group.utterances_per_class), label)] * (label != "speaker")
    hours = (
        f"{group.hours:,.0f} h"
        if group.hours >= 100
        else f"{group.hours:.2g} h"
        if group.hours < 1
        else f"{group.hours:.1f} h"
    )
    return f"{description.data}: {', '.join([*counts, _counted(len(group.seconds), 'utterance'), hours])}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _in_units(splits: dict[str, Group]) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Audio per class by split, in seconds, minutes or hours: whichever gives numbers of a handy size."""
    typical = float(np.median(np.concatenate([group.seconds_per_class for group in splits.values()])))
    size, unit = (1.0, "seconds") if typical < 120 else (60.0, "minutes") if typical < 7200 else (3600.0, "hours")
    return {name: group.seconds_per_class / size for name, group in splits.items()}, unit


def _histograms(axes: "Axes", values: dict[str, NDArray[Any]], what: str) -> None:
    """One outline a split, each as shares of its own `what`, for splits differ in size by orders of magnitude."""
    from matplotlib.ticker import LogLocator, NullFormatter

    every = np.concatenate(list(values.values()))
    edges, logarithmic = _edges(every)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if every.max() < 300 * every.min() else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for number, one in enumerate(values.values()):
        counts, _ = np.histogram(one, edges)
        _outline(axes, 100 * counts / len(one), edges, number)
    axes.set_ylabel(f"% of the split's {what}" if len(values) > 1 else f"% of the {what}", parse_math=False)
    _finish(axes)


def _edges(values: NDArray[Any]) -> tuple[NDArray[np.float64], bool]:
    """(edges of bins, whether they are logarithmic) that hold all values."""
    low, high = float(values.min()), float(values.max())
    bins = int(np.clip(2 * np.sqrt(len(values)), 10, BINS))
    whole = np.issubdtype(values.dtype, np.integer)
    if whole and high - low < BINS:  # one bin for each number, and two empty ones beside a single number
        spare = 2 if high - low < 4 else 0
        return np.arange(low - spare, high + spare + 2) - 0.5, False
    if low > 0 and high / low > SKEWED:
        edges = np.geomspace(low, high, bins + 1)
        if whole:  # a bin between two whole numbers would always be empty
            edges = np.unique(np.ceil(edges)) - 0.5
            edges[-1] = high + 0.5
        else:
            edges[0], edges[-1] = low, high  # rounding must not lose the outermost
        return edges, True
    margin = 0.0 if high - low > 1e-3 * abs(high) else max(0.05 * abs(high), 0.5)
    if whole:
        step = -(-(high - low + 1) // BINS)
        return np.arange(low, high + step + 1, step) - 0.5, False
    return np.linspace(low - margin, high + margin, bins + 1), False


def _outline(
    axes: "Axes", heights: NDArray[Any], edges: NDArray[np.float64], number: int, name: str | None = None
) -> None:
    """A histogram in colour and line style `number`; `name` puts it into the panel's own legend."""
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.15)
    axes.stairs(heights, edges, color=colour, linestyle=style, linewidth=1.6)
    if name is not None:
        axes.plot([], [], color=colour, linestyle=style, linewidth=1.6, label=name)


def _split_legend(figure: "Figure", title: str, splits: dict[str, Group], label: str) -> None:
    """One for all panels of the first row, in each of which it would cover bars; below the title of the page."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=COLOURS[number % len(COLOURS)], linestyle=STYLES[number % len(STYLES)], linewidth=1.6)
        for number in range(len(splits))
    ]
    names = [
        f"{name}: {_counted(len(group.seconds), 'utterance')} of {_counted(len(group.utterances_per_class), label)}"
        for name, group in splits.items()
    ]
    legend = figure.legend(lines, names, loc="outside upper center", ncols=3, fontsize=9.5, frameon=False)
    legend.set_title(title)
    legend.get_title().set_fontsize(13)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def _finish(axes: "Axes") -> None:
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.08)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8.5, framealpha=0.85, edgecolor="none")


def _note(axes: "Axes", text: str) -> None:
    axes.set_title(text, fontsize=9, color="0.3", loc="left")


def _levels(axes: "Axes", sample: Sample) -> None:
    columns = {"RMS": sample.column("rms_db"), "peak": sample.column("peak_db")}
    edges, _ = _edges(np.concatenate(list(columns.values())))
    for number, (name, values) in enumerate(columns.items()):
        counts, _ = np.histogram(values, edges)
        _outline(axes, 100 * counts / len(values), edges, number, f"{name}, median {np.median(values):.1f} dB")
    facts = sample.facts()
    _note(axes, f"{_of(sample)}: {facts['clipped_utterances']:,} clipped, {facts['silent_utterances']:,} silent")
    axes.set(xlabel="level (dB re full scale)", ylabel="% of the utterances")
    _finish(axes)


def _signal_to_noise(axes: "Axes", sample: Sample) -> None:
    values = sample.column("snr_db")
    if len(values):
        edges, _ = _edges(values)
        counts, _ = np.histogram(values, edges)
        _outline(axes, 100 * counts / len(values), edges, 0, f"median {np.median(values):.1f} dB")
        _finish(axes)
    _note(axes, f"{_of(sample)}: 95th minus 5th percentile of 25-ms frames")
    axes.set(xlabel="estimated signal-to-noise ratio (dB)", ylabel="% of the utterances")


def _mel(axes: "Axes", sample: Sample) -> None:
    for number, (name, mel) in enumerate(sample.mel.items()):
        bins, colour = np.arange(1, len(mel.mean) + 1), COLOURS[number]
        axes.fill_between(bins, mel.lowest, mel.highest, color=colour, alpha=0.15, linewidth=0)
        for edge in (mel.lowest, mel.highest):
            axes.plot(bins, edge, color=colour, linewidth=0.8, linestyle=STYLES[number])
        text = "as computed" if name == "none" else f"normalise={name}"
        text += f": {mel.lowest.min():.1f} to {mel.highest.max():.1f}"
        axes.plot(bins, mel.mean, color=colour, linewidth=1.8, linestyle=STYLES[number], label=text)
    if sample.mel:
        axes.set(xlabel="mel bin", ylabel="natural logarithm of mel energy")
        _note(axes, f"{_of(sample)}: lowest, mean, highest of each bin")
        _finish_mel(axes)
        return
    axes.text(0.5, 0.5, "this model hears the waveform:\nit has no mel features", ha="center", va="center")
    axes.set_axis_off()


def _finish_mel(axes: "Axes") -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes.grid(color="0.92", linewidth=0.6)
    axes.legend(loc="upper center", fontsize=8.5, framealpha=0.85, edgecolor="none")


def _of(sample: Sample) -> str:
    return f"sample of {len(sample.levels):,}"
