"""A comparison for papers and pages: Markdown, and LaTeX with booktabs."""

import re
from collections.abc import Mapping
from typing import Any

from spkexp.report.comparison import words
from spkexp.report.comparison.words import DIFFERS, UNTESTED, Content

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "…": r"\ldots{}",
    DIFFERS: r"$^{\dagger}$",
    UNTESTED: r"$^{\circ}$",
}
_BOLD = "Bold: the best of each column."


def markdown(content: Content) -> str:
    """A table of the rows that have results, what the marks mean, and a list of what else there is to know."""
    metrics, seeds = words.shown_metrics(content), words.several_seeds(content)
    costs = _known_costs(content)
    heads = ["run", *["seeds"] * seeds, *(_head(metric) for metric in metrics), *(words.COSTS[i] for i in costs)]
    heads += ["config"] * bool(content["differing"])
    lines = [f"**{_markdown(words.title(content))}**", ""]
    if any(row["missing"] is None for row in content["rows"]):
        numbers = seeds + len(metrics) + len(costs)
        lines += [_cells(heads), _cells(["---", *["---:"] * numbers, *["---"] * bool(content["differing"])])]
    for index, row in enumerate(content["rows"]):
        if row["missing"] is not None:
            continue
        cells = [_markdown(row["name"]), *[str(words.seeds(row, metrics[0]))] * seeds]
        for metric in metrics:
            text = f"{words.value(row, metric)}{words.mark(content, index, metric)}"
            text = f"**{text}**" if words.is_best(content, index, metric) else text
            interval = words.bounds(row, metric)
            cells.append(f"{text} ({interval})" if interval else text)
        cells += [words.costs(row)[i] for i in costs]
        if content["differing"]:
            shown, more = words.settings(row, content["differing"])
            cells.append(", ".join(map(_code, shown)) + (f" and {more} more" if more else ""))
        lines.append(_cells(cells))
    notes = [*words.explanation(content), *([_BOLD] if metrics else []), *content["notes"], *words.absent(content)]
    return "\n".join([*lines, "", *(f"- {_markdown(note)}" for note in notes)]) + "\n"


def _head(metric: Mapping[str, Any]) -> str:
    return f"{metric['name']} {metric['unit']}".strip()


def _known_costs(content: Content) -> list[int]:
    known = [words.costs(row) for row in content["rows"] if row["missing"] is None]
    return [i for i in range(len(words.COSTS)) if any(costs[i] != words.NONE for costs in known)]


def _cells(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text.replace("\n", " "))


def _code(text: str) -> str:
    """A bar ends a cell even within code."""
    text = text.replace("\n", " ").replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def latex(content: Content) -> str:
    """A table environment that needs the package booktabs; what else there is to know are comments before it."""
    metrics, seeds = words.shown_metrics(content), words.several_seeds(content)
    costs = [i for i in _known_costs(content) if i < 2]  # what a reader can hold against other work
    heads = ["System", *["Seeds"] * seeds]
    heads += [rf"{escaped(_head(metric))}{_interval_head(content, metric)}" for metric in metrics]
    heads += [escaped(words.COSTS[i]) for i in costs]
    rows = []
    for index, row in enumerate(content["rows"]):
        if row["missing"] is not None:
            continue
        cells = [escaped(row["name"]), *[str(words.seeds(row, metrics[0]))] * seeds]
        cells += [_latex_value(content, index, metric) for metric in metrics]
        rows.append(" & ".join([*cells, *(escaped(words.costs(row)[i]) for i in costs)]) + r" \\")
    caption = [f"Results on {escaped(str(content['trials']))}{_trials(content)}."]
    caption += [escaped(line) for line in [*words.explanation(content), *([_BOLD] if metrics else [])]]
    remarks = [*content["notes"], *words.absent(content)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            *(f"% {' '.join(remark.split())}" for remark in remarks),
            r"\begin{table}[t]",
            r"  \centering",
            f"  \\caption{{{' '.join(caption)}}}",
            f"  \\label{{tab:{re.sub(r'[^a-z0-9]+', '-', str(content['trials']).lower()).strip('-') or 'comparison'}}}",
            f"  \\begin{{tabular}}{{@{{}}l{'r' * seeds}{'l' * len(metrics)}{'r' * len(costs)}@{{}}}}",
            r"    \toprule",
            f"    {' & '.join(heads)} \\\\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _trials(content: Content) -> str:
    return "" if content["num_trials"] is None else f" ({content['num_trials']:,} trials)"


def _interval_head(content: Content, metric: Mapping[str, Any]) -> str:
    return r" [95\,\%]" if any(words.bounds(row, metric) for row in content["rows"]) else ""


def _latex_value(content: Content, index: int, metric: Mapping[str, Any]) -> str:
    row = content["rows"][index]
    text = escaped(words.value(row, metric))
    text = rf"\textbf{{{text}}}" if words.is_best(content, index, metric) else text
    text += escaped(words.mark(content, index, metric))
    interval = words.bounds(row, metric)
    return rf"{text} {{\footnotesize [{escaped(interval)}]}}" if interval else text


def escaped(text: str) -> str:
    """As LaTeX prints it. Letters of other scripts stay: LaTeX has read UTF-8 since 2018."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
