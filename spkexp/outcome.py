"""What became of a run, as the command that started it learns it, from whichever process the run was in."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """run_dir: the run folder; value: what chose the best checkpoint, the lower the better; None without validation.

    pruned: a hyper-parameter search ended the run early, for it was worse than others at the same step.
    """

    run_dir: str
    value: float | None
    pruned: bool

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(file: Path) -> "Outcome | None":
        """What `write` left there; None where it never came to that."""
        return Outcome(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
