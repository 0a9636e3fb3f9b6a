"""What became of the jobs of a sweep, as a table for a terminal."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from spkexp.records import FAILED, Record


def sweep_report(found: Sequence[Record], differences: Sequence[Sequence[str]], width: int = 80) -> str:
    """The jobs with their differing overrides, status, result and run folder, then what failed and why.

    The result is that of the trial list test of a job's results.json, else the first: the equal error rate or the
    accuracy, in percent, with its interval; where there is none, what chose the best checkpoint.
    """
    results = [_result(record) for record in found]
    intervals = any(interval for _, _, interval in results)
    names = list(dict.fromkeys(name for name, _, _ in results if name))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="sweep", title_justify="left")
    table.add_column("job", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("status")
    if names:
        table.add_column(" or ".join(names), justify="right")
    if intervals:
        table.add_column("95 % interval", justify="right")
    table.add_column("seconds", justify="right")
    for record, lines, (_, value, interval) in zip(found, differences, results, strict=True):
        shown = [*([value] if names else []), *([interval] if intervals else [])]
        table.add_row(str(record.number), "\n".join(lines), _status(record), *shown, f"{record.seconds:.0f}")
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    parts = ["\n".join(line.rstrip() for line in captured.get().splitlines()).rstrip()]
    folders = [f"  {record.number:>3}  {_from_here(record.run_dir)}" for record in found if record.run_dir is not None]
    if folders:
        parts.append("\n".join(["run folders:", *folders]))
    failed = [(record, lines) for record, lines in zip(found, differences, strict=True) if record.status == FAILED]
    if failed:
        parts.append("\n".join([f"{len(failed)} of {len(found)} jobs failed:", *(_failure(*f, width) for f in failed)]))
    before = [f"  {record.number:>3}  trained by {record.code}" for record in found if record.code is not None]
    if before:
        parts.append("\n".join(["finished before by other code; resume=never trains them anew:", *before]))
    return "\n\n".join(parts)


def _status(record: Record) -> str:
    return record.status if record.code is None else f"{record.status} before"


def _failure(record: Record, lines: Sequence[str], width: int) -> str:
    why = f"{' '.join(lines)}: {record.error}" if lines else str(record.error)
    text = textwrap.fill(
        why,
        width,
        initial_indent=f"  {record.number:>3}  ",
        subsequent_indent=" " * 7,
        break_long_words=False,
        break_on_hyphens=False,
    )
    log = None if record.run_dir is None else _from_here(record.run_dir) / "train.log"
    return f"{text}\n       more in {log}" if log is not None and log.is_file() else text


def _from_here(folder: str) -> Path:
    path, here = Path(folder), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _result(record: Record) -> tuple[str, str, str]:
    """(what is measured, value, interval)."""
    for entry in _trials(record):
        for key, name in (("eer", "EER %"), ("accuracy", "accuracy %")):
            if isinstance(entry.get(key), float | int):
                interval = entry.get(f"{key}_ci95")
                shown = f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}" if interval else ""
                return name, f"{100 * entry[key]:.2f}", shown
    return ("", "", "") if record.value is None else ("value", f"{record.value:.4g}", "")


def _trials(record: Record) -> list[dict[str, Any]]:
    file = None if record.run_dir is None else Path(record.run_dir) / "results.json"
    if file is None or not file.is_file():
        return []
    trials = json.loads(file.read_text(encoding="utf-8"))["trials"]
    return [trials["test"]] if "test" in trials else list(trials.values())[:1]
