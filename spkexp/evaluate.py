"""`python -m spkexp.evaluate`: error rates of a trained encoder on trials."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.sections import Text

HELP = """
NAME
  spkexp.evaluate - error rates of a trained encoder on trials

SYNOPSIS
  python -m spkexp.evaluate model=RUN [trials=FILE] [KEY=VALUE ...]

KEYS
  model=RUN        a run folder (its best checkpoint) or a checkpoint folder
  trials=FILE      a trial a line, in any of these forms:
                     0|1 enroll test                   VoxCeleb, VoxSRC
                     enroll test target|nontarget      Kaldi
                     enroll test 0|1                   CN-Celeb
                     enroll test tgt|imp               SITW
                     enroll test                       blind: scores only
                   Names are utterance ids of the run's data, or files below
                   data.root, FILE's folder (or the one above it) or the
                   current folder; extension and leading folders may differ.
                   Without it: the run's own validation and test trials.
  models=FILE      `MODEL utterance [utterance ...]` a line, where trials enrol
                   models of several utterances (CN-Celeb's enroll.map, SITW's
                   enroll-core.lst, Kaldi's spk2utt)
  data.root=DIR    where the audio lies; default: as in the run
  output=DIR       where results go; default: the run folder
  device=auto      auto, cpu or cuda
  trust=PACKAGE    a package of yours whose classes the run's model may name

FILES
  results.json (an entry for each trial list), scores/<trials>.txt, plots/det-<trials>.png
  Of a run that learnt another label than the speaker (data.label), without
  trials=FILE: scores/<split>.csv (every answer), scores/confusion-<split>.csv,
  plots/confusion-<split>.png
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Text
    trials: Text | None = None
    models: Text | None = None
    root: Text | None = Field(None, alias="data.root")
    output: Text | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust: Text | None = None


def main() -> None:
    """Score the trials and write what belongs into the run folder."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP)
        from spkexp import distributed
        from spkexp.evaluation import evaluate

        set_up_logging()
        with distributed.processes(arguments.device) as device:
            evaluate(
                Path(arguments.model),
                Path(arguments.trials) if arguments.trials else None,
                Path(arguments.models) if arguments.models else None,
                arguments.root,
                Path(arguments.output) if arguments.output else None,
                device,
                (arguments.trust,) if arguments.trust else (),
            )


if __name__ == "__main__":
    main()
