"""`python -m spkexp.evaluate`: error rates of a trained encoder on trials."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spkexp.arguments import Device, Trust, parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.sections import Text
from spkexp.types import PositiveInt

HELP = """
NAME
  spkexp.evaluate - error rates of a trained encoder on trials

SYNOPSIS
  python -m spkexp.evaluate model=RUN [trials=FILE] [scoring.KEY=VALUE ...]
  python -m spkexp.evaluate model=RUN watch=true [every=N] [trials=FILE]

KEYS
  model=RUN        a run folder (its best checkpoint), a checkpoint folder, or a
                   published model: user/name on the hub, an address
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
  scoring=NAME     as_norm, plda or default in place of the run's own scoring
  scoring.KEY=…    any key of it; conf/scoring/default.yaml explains them all
  data.root=DIR    where the audio lies; default: as in the run
  output=DIR       where results go; default: the run folder, and with other
                   scores than its own a folder below RUN/scoring/, which
                   compare takes as a run
  device=auto      auto, cpu or cuda; CUDA_VISIBLE_DEVICES says which GPU
  trust=PACKAGE    a package of yours, or [A,B], whose classes the run may name
  watch=true       while the run trains: score its checkpoints as they come, on
                   its validation trials or trials=FILE, and keep the best
  every=N          with watch: every so many epochs; default 1

EXAMPLES
  python -m spkexp.evaluate model=RUN trials=veri_test2.txt scoring=as_norm
  python -m spkexp.evaluate model=RUN scoring=plda scoring.plda.lda_size=128
  python -m spkexp.evaluate model=RUN scoring.calibration=val \\
      "scoring.quality=[duration,magnitude]" "scoring.conditions=[gender]"
  python -m spkexp.evaluate model=RUN trials=long.txt scoring.window=4

FILES
  results.json (an entry for each trial list, with 95 % intervals),
  scores/<trials>.txt, scores/<trials>.utterances.csv (who speaks, the files),
  hardest/<trials>.txt (and .csv), plots/*-<trials>*.png, and with
  scoring.save_embeddings=h5|npz|parquet|ark embeddings/<trials>.*
  Of a run that learnt another label than the speaker (data.label), without
  trials=FILE: scores/<split>.csv (every answer), scores/confusion-<split>.csv,
  plots/confusion-<split>.png
  With watch: RUN/watch/<trials>/metrics.jsonl and best/, a checkpoint folder
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Text
    trials: Text | None = None
    models: Text | None = None
    root: Text | None = Field(None, alias="data.root")
    output: Text | None = None
    device: Device = "auto"
    trust: Trust = ()
    watch: bool = False
    every: PositiveInt | None = None
    scoring: list[str] = []

    @model_validator(mode="after")
    def _agrees(self) -> "Arguments":
        if self.watch and self.output is not None:
            raise ValueError("output: a watch writes into the run's folder, RUN/watch/; leave it out")
        if not self.watch and self.every is not None:
            raise ValueError("every: is how often a watch validates; give watch=true, too")
        return self


def main() -> None:
    """Score the trials and write what belongs into the run folder."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, section="scoring")
        from spkexp import distributed
        from spkexp.evaluation import Request, evaluate, validate

        set_up_logging()
        request = Request(
            Path(arguments.trials) if arguments.trials else None,
            Path(arguments.models) if arguments.models else None,
            arguments.root,
            tuple(arguments.scoring),
            arguments.trust,
        )
        with distributed.processes(arguments.device) as device:
            if arguments.watch:
                validate(Path(arguments.model), request, arguments.every or 1, device)
            else:
                evaluate(arguments.model, request, Path(arguments.output) if arguments.output else None, device)


if __name__ == "__main__":
    main()
