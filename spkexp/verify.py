"""`python -m spkexp.verify`: do two recordings hold the same speaker?"""

from typing import Annotated

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict

from spkexp.arguments import Trust, parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.errors import ConfigError
from spkexp.sections import Text

HELP = """
NAME
  spkexp.verify - do two recordings hold the same speaker?

SYNOPSIS
  python -m spkexp.verify model=RUN A.wav B.wav [threshold=T]
      [device=auto|cpu|cuda|cuda:N] [trust=PACKAGE]

DESCRIPTION
  Prints the cosine of the two embeddings, from -1 to 1, and the decision at
  the threshold where the run's validation trials had their equal error rate,
  which is told with its 95 % interval. There is no decision where the run's
  own scores are no plain cosines, or it has no validation results; threshold=T
  decides at a score of yours.

  RUN is a run folder, whose best checkpoint is taken, a checkpoint or another
  folder with a model, an archive at https://HOST/FILE#sha256=HEX, or
  USER/NAME on the Hugging Face hub.

  Other sample rates are resampled and channels averaged. trust names a
  package of yours whose classes the run's model may name.

  The same from Python: spkexp.load(RUN).verify(A, B)
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Text
    recordings: Annotated[list[Text], Len(0)] = []
    threshold: Annotated[float, Ge(-1), Le(1)] | None = None
    device: Text = "auto"
    trust: Trust = ()


def main() -> None:
    """Print the score and the decision."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, positional="recordings", are_files=True)
        if len(arguments.recordings) != 2:
            raise ConfigError(
                [f"expected two recordings, got {len(arguments.recordings)}: verify model=RUN A.wav B.wav"]
            )
        from spkexp.inference.loading import load

        set_up_logging()
        model = load(arguments.model, arguments.device, trust=arguments.trust)
        score, same, threshold, reason = model.verify(*arguments.recordings, threshold=arguments.threshold)
        print(f"score {score:.4f}")
        if threshold is None:
            print(f"no decision: {reason}; threshold=T decides at a score of yours")
        else:
            print(f"{'same speaker' if same else 'different speakers'} (threshold {threshold:.4f}, {reason})")


if __name__ == "__main__":
    main()
