"""What the plots of a comparison share: how a figure is made, and by what a row is known in all of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from spkexp.report.data_page import COLOURS, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_COLOURED = 8  # rows that a plot tells apart; the others are grey
GREY = "0.78"


def new_figure(width: float, height: float) -> "Figure":
    """inches; at 200 dots an inch it can be printed."""
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def look(place: int) -> dict[str, Any]:
    """Colour, line and marker of the row at a place of the ranking: 12 different pairs of colour and line."""
    if place >= MOST_COLOURED:
        return {"color": GREY, "linestyle": "-", "linewidth": 0.8, "zorder": 1}
    colour, style = COLOURS[place % len(COLOURS)], STYLES[place % len(STYLES)]
    return {"color": colour, "linestyle": style, "linewidth": 1.7, "zorder": 3 + MOST_COLOURED - place}


def legend(axes: "Axes", drawn: Sequence[tuple[int, str]], loc: Literal["best", "below"]) -> None:
    """drawn: (place in the ranking, name) of the rows; the grey ones are one entry. below: under the axes."""
    from matplotlib.lines import Line2D

    shown = [(place, name) for place, name in drawn if place < MOST_COLOURED]
    lines = [Line2D([], [], **look(place)) for place, _ in shown]
    names = [shortened(name, 34) for _, name in shown]
    if len(drawn) > len(shown):
        lines.append(Line2D([], [], color=GREY, linewidth=0.8))
        names.append(f"the {len(drawn) - len(shown)} others")
    if loc == "below":
        found = axes.figure.legend(lines, names, fontsize=8, frameon=False, ncols=2, loc="outside lower center")
    else:
        found = axes.legend(lines, names, fontsize=8, framealpha=0.9, edgecolor="none", loc=loc)
    for text in found.get_texts():
        text.set_parse_math(False)


def finish(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def shortened(text: str, letters: int) -> str:
    """In the middle, for names often end in what tells them apart."""
    return text if len(text) <= letters else f"{text[: letters // 2 - 1]}…{text[len(text) - letters // 2 :]}"


def title(metric: Mapping[str, Any]) -> str:
    """`EER (%)`, `minDCF(0.01)`."""
    return f"{metric['name']} ({metric['unit']})" if metric["unit"] else str(metric["name"])


def chosen(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metric that the rows are sorted by."""
    return next(one for one in content["metrics"] if one["key"] == content["metric"])
