"""A run that came to its end before, for a command that would have gone on with it."""

import json
import logging
from pathlib import Path
from typing import Any

from spkexp.code_state import code_state, package_version
from spkexp.outcome import Outcome
from spkexp.report.table import results_table
from spkexp.resume import RESULTS, environment_of

log = logging.getLogger(__name__)


def as_it_ended(folder: Path, *, shown: bool) -> Outcome:
    """What became of the run in `folder`; shown: print its results as training did."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    if shown:
        other = other_code(folder)
        by = "" if other is None else f", trained by {other}"
        log.info("this run has come to its end before%s; resume=never trains it anew", by)
        print(results_table(results))
        print(f"run folder: {folder}", flush=True)
    return Outcome(str(folder), results.get("best_value"), pruned=False)


def other_code(folder: Path) -> str | None:
    """'commit abc1234, this is def5678', where the last start of the run in `folder` had another version of the code.

    None where it had the same, or nothing tells which.
    """
    found = environment_of(folder)
    last = [found, *found.get("resumed", [])][-1]
    before, now = last.get("git") or {}, code_state()
    if before.get("commit") is None or now["commit"] is None:
        old, new = (last.get("packages") or {}).get("spkexp"), package_version()
        return None if old == new or old is None else f"spkexp {old}, this is {new}"
    keys = ("commit", "modified", "diff") if "diff" in before else ("commit", "modified")
    if all(before[key] == now[key] for key in keys):
        return None
    names = _name(before), _name(now)
    return f"commit {names[0]}, this is {names[1] if names[0] != names[1] else 'the same with others'}"


def _name(state: dict[str, Any]) -> str:
    return f"{state['commit'][:7]}{' with changes' if state['modified'] else ''}"
