"""What a run ends with, as tables for wandb: columns and rows, without wandb itself."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkexp.scoring.verification import Scored

EMBEDDINGS = 1_000  # utterances of a trial list whose embeddings are shown: as many as a projection stays quick with
PER_SPEAKER = 20  # of a list with many speakers, so many utterances each: fewer show no cluster
CONFUSIONS = 10_000  # cells of a confusion table, the largest


_BY_PRIOR = ("min_dcf", "act_dcf")  # a cost for each prior


@dataclass(frozen=True)
class Content:
    """A table: every row has an entry for each column; None where there is nothing."""

    columns: list[str]
    rows: list[list[Any]]


def results_content(results: Mapping[str, Any]) -> Content:
    """results.json's trial lists, a row each; rates are fractions. What a list has of classes one by one stays out."""
    rows = []
    for name, entry in results["trials"].items():
        row: dict[str, Any] = {"trials": name}
        for key, value in entry.items():
            if key in _BY_PRIOR:
                row |= {f"{key}({p})": cost for p, cost in value.items()}
            elif key.endswith("_ci95") and not isinstance(value, Mapping):
                low, high = value or (None, None)
                row |= {f"{key} low": low, f"{key} high": high}
            elif key == "identification":
                row |= {name: share for name, share in (value or {}).items() if name.startswith("top")}
            elif key in ("untrained", "before", "majority"):
                row |= {f"{key} {k}": v for k, v in value.items() if isinstance(v, float)}
            elif not isinstance(value, Mapping):
                row[key] = value
        rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Content(columns, [[row.get(column) for column in columns] for row in rows])


def embeddings_content(scored: Scored, label: str) -> Content:
    """Up to EMBEDDINGS utterances: id, duration in seconds, the column that was learnt, and a column a dimension.

    One number a column is what wandb's projection of embeddings takes. Of a list with more utterances than that there
    are whole speakers, PER_SPEAKER utterances of each or as many as fill the table.
    """
    utterances, known = scored.set.utterances, _labels_known(scored)
    items = _shown(utterances.label.astype(np.int64), np.asarray(np.isfinite(scored.embeddings).all(axis=1)))
    size = scored.embeddings.shape[1]
    rows = [
        [
            utterances.id[item],
            *([utterances.label_names[utterances.label[item]]] if known else []),
            round(float(utterances.duration[item]), 3),
            *(float(f"{value:.5g}") for value in scored.embeddings[item].tolist()),
        ]
        for item in items.tolist()
    ]
    return Content(["id", *([label] if known else []), "duration", *(f"e{i}" for i in range(size))], rows)


def _labels_known(scored: Scored) -> bool:
    # A labelled set, whose classes are asked for, has no trials; its labels are always known.
    return scored.set.speakers_known or scored.set.trials is None


def _shown(label: NDArray[np.int64], usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows to show, in their order. label: (N,) class of each; usable: (N,) those that may be taken."""
    rows = np.flatnonzero(usable)
    if len(rows) <= EMBEDDINGS:
        return rows
    classes = np.unique(label[rows])
    each = max(PER_SPEAKER, EMBEDDINGS // len(classes))
    chosen = classes[np.linspace(0, len(classes) - 1, min(len(classes), EMBEDDINGS // each)).round().astype(np.int64)]
    taken = [rows[label[rows] == one][:each] for one in chosen]
    return np.sort(np.concatenate(taken))


def confusion_content(file: Path) -> Content:
    """The cells above 0 of a confusion matrix as `spkexp.report.confusion` writes it, the largest CONFUSIONS."""
    with file.open(encoding="utf-8", newline="") as stream:
        (_, *predicted), *lines = csv.reader(stream)
    pairs = ((line[0], name, int(count)) for line in lines for name, count in zip(predicted, line[1:], strict=True))
    cells = sorted((pair for pair in pairs if pair[2]), key=lambda pair: -pair[2])
    return Content(["true", "predicted", "utterances"], [list(cell) for cell in cells[:CONFUSIONS]])
