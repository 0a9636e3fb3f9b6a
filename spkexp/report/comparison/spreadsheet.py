"""A comparison as CSV: a line for each row, with all metrics as fractions."""

import csv
import io
import json
from typing import Any

from spkexp.report.comparison.words import Content

_PARTS = ("", "_low", "_high")
_DIFFERENCE = ("_difference", "_difference_low", "_difference_high", "_p", "_p_holm")


def csv_text(content: Content) -> str:
    """Columns: name, model, data, status, seeds, folders; rank, trials; costs; of each metric the value, its interval,
    and the difference to the reference with interval and p-values; then the config keys that differ. Empty: unknown."""
    keys = [metric["key"] for metric in content["metrics"]]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    costs = ("parameters", "macs", "train_seconds", "utterances_per_second")
    writer.writerow(
        [
            *("rank", "name", "model", "data", "status", "seeds", "folders", "trials", "reference"),
            *costs,
            *(f"{key}{part}" for key in keys for part in (*_PARTS, *_DIFFERENCE)),
            *(f"config.{key}" for key in content["differing"]),
            "missing",
        ]
    )
    for index, row in enumerate(content["rows"]):
        measured = row["missing"] is None
        writer.writerow(
            [
                index + 1 if measured else "",
                *(row[key] for key in ("name", "model", "data", "status")),
                " ".join(str(run["seed"]) for run in row["runs"] if run["seed"] is not None),
                ";".join(run["folder"] for run in row["runs"] if run["folder"]),
                content["trials"] if measured else "",
                int(index == content["reference"]),
                *(row[key] for key in costs),
                *(number for key in keys for number in _numbers(row["metrics"].get(key))),
                *(_cell(row["config"].get(key)) for key in content["differing"]),
                row["missing"],
            ]
        )
    return stream.getvalue()


def _numbers(entry: Any) -> list[Any]:
    """Value, interval, difference, its interval, p and corrected p; None where unknown."""
    unknown = (None, None)
    entry = entry or {}
    difference = entry.get("difference") or {}
    found = [entry.get("value"), *(entry.get("ci95") or unknown)]
    found += [difference.get("value"), *(difference.get("ci95") or unknown)]
    return [*found, difference.get("p"), difference.get("p_holm")]


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | bool) else value
