"""`python -m spkexp.verify`: do two recordings hold the same speaker?"""

import json
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes
from spkexp.errors import ConfigError
from spkexp.sections import Text

HELP = """
NAME
  spkexp.verify - do two recordings hold the same speaker?

SYNOPSIS
  python -m spkexp.verify model=RUN A.wav B.wav [device=auto|cpu|cuda] [trust=PACKAGE]

DESCRIPTION
  Prints the cosine of the two embeddings, from -1 to 1, and the decision at
  the threshold where the run's validation trials had their equal error rate.
  Other sample rates are resampled and channels averaged. trust names a
  package of yours whose classes the run's model may name.
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Text
    recordings: Annotated[list[Text], Len(0)] = []
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust: Text | None = None


def main() -> None:
    """Print the score and the decision."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, positional="recordings")
        if len(arguments.recordings) != 2:
            raise ConfigError(
                [f"expected two recordings, got {len(arguments.recordings)}: verify model=RUN A.wav B.wav"]
            )
        from spkexp import build, distributed
        from spkexp.scoring.pair import compare

        with distributed.processes(arguments.device) as device:
            model, _, _ = build.trained_model(arguments.model, (arguments.trust,) if arguments.trust else ())
            value = compare(model.to(device), *arguments.recordings)
        print(f"score {value:.4f}")
        threshold = _threshold(Path(arguments.model).expanduser())
        if threshold is None:
            print("no decision: the run has no validation results, so there is no threshold")
        else:
            verdict = "same speaker" if value > threshold else "different speakers"
            print(f"{verdict} (threshold {threshold:.4f}, at the equal error rate of the run's validation trials)")


def _threshold(folder: Path) -> float | None:
    """That of the validation trials in the results of `folder`; a checkpoint that is named itself has none."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    trials = json.loads(file.read_text(encoding="utf-8"))["trials"]
    return trials.get("val", {}).get("eer_threshold")


if __name__ == "__main__":
    main()
