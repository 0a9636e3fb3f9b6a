"""A run that came to its end before, for a command that would have gone on with it."""

import json
import logging
from pathlib import Path

from spkexp.outcome import Outcome
from spkexp.report.table import results_table
from spkexp.resume import RESULTS

log = logging.getLogger(__name__)


def as_it_ended(folder: Path, *, shown: bool) -> Outcome:
    """What became of the run in `folder`; shown: print its results as training did."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    if shown:
        log.info("this run has come to its end before; resume=never trains it anew")
        print(results_table(results))
        print(f"run folder: {folder}", flush=True)
    return Outcome(str(folder), results.get("best_value"), pruned=False)
