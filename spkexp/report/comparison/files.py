"""A comparison as text, in every format, and as a folder of tables, plots and a page."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from spkexp.errors import UserError
from spkexp.report.comparison.det_curves import det_curves
from spkexp.report.comparison.documents import latex, markdown
from spkexp.report.comparison.effect_plots import main_effects_plot, parallel_coordinates
from spkexp.report.comparison.intervals import intervals_plot
from spkexp.report.comparison.learning import learning_curves
from spkexp.report.comparison.scatter import COSTS, against_cost
from spkexp.report.comparison.spreadsheet import csv_text
from spkexp.report.comparison.terminal import terminal_text
from spkexp.report.page import write_page
from spkexp.whole_file import write_json, write_text

Content = dict[str, Any]
_FILES: dict[str, str] = {"markdown": "md", "latex": "tex", "csv": "csv", "json": "json"}


def text_of(content: Content, form: str, width: int = 80, folder: Path | None = None) -> str:
    """form: terminal, markdown, latex, csv or json. width: columns of the terminal. folder: where `write_files` has put
    all of it; None: nowhere."""
    if form == "terminal":
        return terminal_text(content, width, None if folder is None else folder / "comparison.json")
    makers: dict[str, Callable[[Content], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text, "json": _json}
    return makers[form](content)


def _json(content: Content) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def write_files(folder: Path, content: Content) -> Path:
    """comparison.md, .tex, .csv, .json and .html, and plots/. Returns the page. Raises UserError."""
    page = folder / "comparison.html"
    try:
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        for form, ending in _FILES.items():
            write_text(folder / f"comparison.{ending}", text_of(content, form))
        write_plots(folder / "plots", content)
        write_page(page, json.loads(_json(content)))  # what the page gets is what comparison.json has
    except OSError as error:
        raise UserError(f"output={folder}: cannot be written: {error.strerror or error}") from error
    return page


def write_plots(folder: Path, content: Mapping[str, Any]) -> None:
    """Those that there is something to draw for; a picture that an earlier comparison left is removed where not."""
    write_json(
        folder / "curves.json",
        [{"name": row["name"], "curves": row["curves"]} for row in content["rows"] if row["curves"]],
    )
    plots: dict[str, Callable[[Path], bool]] = {
        "curves": lambda file: learning_curves(file, content),
        "intervals": lambda file: intervals_plot(file, content),
        "det": lambda file: det_curves(file, content),
        "main-effects": lambda file: main_effects_plot(file, content),
        "parallel-coordinates": lambda file: parallel_coordinates(file, content),
    }
    for cost in COSTS:
        plots[f"against-{cost.replace('_', '-')}"] = partial(against_cost, content=content, cost=cost)
    for name, draw in plots.items():
        file = folder / f"{name}.png"
        if not draw(file):
            file.unlink(missing_ok=True)
