"""Pictures of embeddings in two dimensions, as PNG."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.counter import generator, torch_seed
from spkexp.errors import UserError
from spkexp.report.data_page import COLOURS
from spkexp.whole_file import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["pca", "tsne", "umap"]
NAMES: dict[Method, str] = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
GROUPS = 18  # that colours and markers can tell apart
POINTS = 4_000  # that are shown at most: more hide one another, and t-SNE takes minutes
LEAST = 4  # points that make a picture
PERPLEXITY = 30.0  # of t-SNE (van der Maaten and Hinton 2008, sec. 2: 5 to 50), less where points are few
MARKERS = ("o", "s", "^")  # with each of the colours, for print and for any colour vision
_LONGEST = 22  # letters of a name in the legend


class _Chosen(NamedTuple):
    rows: NDArray[np.int64]  # those that are shown
    what: str  # they are, in words


def embedding_plot(
    file: Path, embeddings: NDArray[np.float32], column: pl.Series, title: str, method: Method = "pca", seed: int = 0
) -> bool:
    """Each embedding, of length one first, as a point; near points are similar voices. Returns whether there are
    enough points for a picture.

    embeddings: (N, D), rows with NaN are left out; column: (N,) what the points are coloured by, called as it is: text,
    or numbers, which make a scale of colours where there are more than GROUPS different ones. Of more groups so many
    are shown as can be told apart, and of more points so many as leave one another visible: chosen by `seed`, on which
    the picture depends alone. Projections are fitted to the points that are shown.
    """
    if len(column) != len(embeddings):
        raise ValueError(f"{len(column)} values of {column.name!r} for {len(embeddings)} embeddings")
    scale = column.dtype.is_numeric() and column.n_unique() > GROUPS
    chosen = _choose(embeddings, column, scale, seed)
    if len(chosen.rows) < LEAST:
        return False
    rows = embeddings[chosen.rows].astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    points, names = project(rows, method, seed)
    # The object interface: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = column.gather(chosen.rows)
    if scale:
        _draw_scale(figure, axes, points, values)
    else:
        _draw_groups(figure, axes, points, values)
    axes.set_title(f"{title}: {NAMES[method]} of {chosen.what}", fontsize=10.5, parse_math=False)
    axes.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.7")
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png")
    return True


def _choose(embeddings: NDArray[np.float32], column: pl.Series, scale: bool, seed: int) -> _Chosen:
    """Which rows are shown: of at most GROUPS groups, unless `column` is a scale, and at most POINTS."""
    rng = generator(seed)
    known = column.is_not_null().to_numpy() & np.isfinite(embeddings).all(axis=1)
    if column.dtype == pl.String:
        known &= (column != "").fill_null(False).to_numpy()
    groups = ""
    if not scale:
        # Of one utterance nothing can be seen: where it lies among its own.
        counts = column.filter(pl.Series(known)).value_counts(name="count").sort(column.name)
        several = counts.filter(pl.col("count") > 1)
        names = (several if len(several) >= 2 else counts)[column.name]
        shown = names
        if len(names) > GROUPS:
            shown = names.gather(np.sort(rng.choice(len(names), GROUPS, replace=False)))
        known &= column.is_in(shown.implode()).fill_null(False).to_numpy()
        some = f"{len(shown)} of {len(counts):,}" if len(shown) < len(counts) else f"{len(shown)}"
        groups = f" of {some} {column.name}{'s' * (len(counts) != 1)}"
    rows = np.flatnonzero(known)
    number = f"{len(rows):,}"
    if len(rows) > POINTS:
        number = f"{POINTS:,} of {len(rows):,}"
        rows = np.sort(rng.choice(rows, POINTS, replace=False))
    return _Chosen(rows, f"{number} embeddings{groups}")


def check_method(method: Method) -> None:
    """Raise UserError where the library of `method` is not installed; before the work of which it is the last step."""
    if method == "umap" and find_spec("umap") is None:  # importing it takes seconds
        raise UserError("scoring.projection=umap needs umap-learn; pip install 'spkexp[umap]'")


def project(rows: NDArray[np.float64], method: Method, seed: int) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """(N, 2) places of `rows` (N, D), and what the axes are called. Raises UserError where umap-learn is missing."""
    if method == "pca":
        return _pca(rows)
    number = torch_seed(seed) % 2**32
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        found = TSNE(perplexity=perplexity, init="pca", random_state=number).fit_transform(rows)
        return found, ("t-SNE 1", "t-SNE 2")
    check_method(method)
    from umap import UMAP

    neighbours = min(15, len(rows) - 1)
    # One thread: several would not come to the same picture every time.
    umap = UMAP(n_neighbors=neighbours, metric="cosine", random_state=number, n_jobs=1, init="pca")
    return umap.fit_transform(rows), ("UMAP 1", "UMAP 2")


def _pca(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """The two directions of most variance (Pearson 1901), each so turned that its greatest weight is positive."""
    centred = rows - rows.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2] * np.sign(
        np.take_along_axis(directions[:2], np.abs(directions[:2]).argmax(1)[:, None], 1)
    )
    points = np.zeros((len(rows), 2))
    points[:, : len(directions)] = centred @ directions.T
    share = np.zeros(2)
    share[: len(directions)] = singular[:2] ** 2 / max(float((singular**2).sum()), 1e-300)
    first, second = (f"component {number}: {100 * part:.0f} % of the variance" for number, part in enumerate(share, 1))
    return points, (first, second)


def _draw_groups(figure: "Figure", axes: "Axes", points: NDArray[np.float64], values: pl.Series) -> None:
    """One colour and marker a group, and a legend beside the picture, in which it would cover points."""
    size = float(np.clip(14_000 / len(points), 9, 42))
    groups = values.unique().sort()
    for number, name in enumerate(groups):
        of_group = points[(values == name).to_numpy()]
        shown = str(name) if len(str(name)) <= _LONGEST else f"{str(name)[: _LONGEST - 1]}…"
        axes.scatter(
            of_group[:, 0],
            of_group[:, 1],
            s=size,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            alpha=0.75,
            linewidths=0.015 * size,
            edgecolors="white",
            label=f"\u200b{shown}",  # a label that begins with _ would be left out
        )
    legend = figure.legend(
        loc="outside right upper", title=values.name, fontsize=8.5, frameon=False, markerscale=(36 / size) ** 0.5
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)  # a speaker may be called $5$


def _draw_scale(figure: "Figure", axes: "Axes", points: NDArray[np.float64], values: pl.Series) -> None:
    size = float(np.clip(14_000 / len(points), 9, 42))
    numbers = values.to_numpy().astype(np.float64)
    low, high = np.quantile(numbers, [0.02, 0.98])  # one long recording would take all the colours
    drawn: Any = axes.scatter(
        points[:, 0], points[:, 1], s=size, c=numbers, cmap="viridis", vmin=low, vmax=high, linewidths=0
    )
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = figure.colorbar(drawn, ax=axes, extend=extend[bool(numbers.min() < low), bool(numbers.max() > high)])
    bar.set_label(values.name, parse_math=False)
