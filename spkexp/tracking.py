"""What is measured goes to metrics.jsonl always, and to wandb where the config says so.

Tracking never stops or blocks a run: without a network or a key, wandb goes on offline and the log says so.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig

from spkexp import distributed
from spkexp.scoring.verification import Scored
from spkexp.sections import Tracking
from spkexp.wandb_run import WandbRun
from spkexp.whole_file import write_text

_NOTHING: Mapping[str, Scored] = MappingProxyType({})


class Tracker:
    """Writes a run's metrics; only the main process's tracker writes anything."""

    def __init__(self, folder: Path, config: DictConfig, settings: Tracking, resume: tuple[int, int] | None) -> None:
        """resume: the step that the run goes on from, and the one that was validated last; what was logged after them
        is dropped, it comes again."""
        self._file = None
        self._wandb: WandbRun | None = None
        if not distributed.is_main():
            return
        path = folder / "metrics.jsonl"
        logged = [] if resume is None else _drop_after(path, *resume)
        self._file = path.open("a", encoding="utf-8")
        if settings.wandb != "off":
            self._wandb = WandbRun.start(folder, config, settings, logged)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One line: {"step": step, **metrics}."""
        if self._file is None:
            return
        line = {"step": step, **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(line)

    def summarise(self, results: dict[str, Any], plots: list[Path], scored: Mapping[str, Scored] = _NOTHING) -> None:
        """What the run ends with, for wandb: results.json's content, pictures, and embeddings of the trial lists.

        The tables of confusions come from the run folder.
        """
        if self._wandb is not None:
            self._wandb.summarise(results, plots, scored)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.close()


def _drop_after(path: Path, step: int, validated: int) -> list[dict[str, Any]]:
    """Leave the lines up to `step`, those of a validation up to `validated`, and return them.

    A line cut short by a kill goes too.
    """
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            if entry["step"] <= (validated if "val" in entry else step):
                kept.append(entry)
        except (json.JSONDecodeError, KeyError):
            continue
    write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in kept))
    return kept
