"""`python -m spkexp.calibrate`: scores of runs to log-likelihood ratios, several runs fused."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Len, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.sections import Text

HELP = """
NAME
  spkexp.calibrate - scores of runs to log-likelihood ratios; several are fused

SYNOPSIS
  python -m spkexp.calibrate RUN [RUN ...] output=DIR [KEY=VALUE ...]

DESCRIPTION
  Learns on one trial list what scores mean, by logistic regression, and turns
  those of other lists into natural-log likelihood ratios. Of several runs the
  weighted sum that tells speakers apart best: a fusion. The runs need scores
  (scoring.save_scores=true) of the same trials; the list that is learnt on
  must share no speaker and no utterance with those that are calibrated.

  Prints what it brought: EER, minDCF, the DCF of the decisions that the ratios
  call for, Cllr and minCllr, and the weights. Cllr - minCllr is what a better
  calibration could still gain. Before calibration the scores are taken as if
  they were log-likelihood ratios.

KEYS
  output=DIR           where results go
  on=val               the trial list to learn on
  trials=test[,...]    the trial lists to calibrate
  quality=MEASURE,...  what the calibration takes in beside the scores, of the
                       lesser and the greater side of each trial:
                         duration     log seconds
                         magnitude    log length of the embedding
                         cohort_mean  mean score against the cohort, where
                                      scores are normalised
  p_target=0.5         the prior to learn for: 0.5 makes Cllr least, a small
                       one cares most for scores where false alarms are rare

FILES
  results.json, config.yaml (compare takes DIR as a run), calibration.json (the
  weights), scores/<trials>.txt, plots/calibration-<trials>.png

EXAMPLES
  python -m spkexp.calibrate runs/2026-11-21/120000-ecapa output=calibrated
  python -m spkexp.calibrate RUN RUN RUN quality=duration output=fused
"""


def _are_runs(values: list[str]) -> list[str]:
    if not values:
        raise ValueError("name at least one: python -m spkexp.calibrate RUN [RUN ...] output=DIR")
    for value in values:
        key, equals, _ = value.partition("=")
        if equals and not Path(value).exists():
            raise ValueError(f"{value}: no such folder, and no key {key!r}; --help lists the keys")
    return values


Names = Annotated[list[Text], Len(1), BeforeValidator(lambda value: value.split(","))]
Measure = Literal["duration", "magnitude", "cohort_mean"]


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    runs: Annotated[list[Text], AfterValidator(_are_runs)]
    output: Text
    on: Text = "val"
    trials: Names = ["test"]
    quality: Annotated[list[Measure], BeforeValidator(lambda value: value.split(","))] = []
    p_target: Annotated[float, Gt(0), Lt(1)] = 0.5


def main() -> None:
    """Calibrate, write what belongs into the output folder and print what it brought."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, positional="runs")
        from spkexp.calibration import Request, calibrate_runs

        set_up_logging()
        request = Request(arguments.on, arguments.trials, arguments.quality, arguments.p_target)
        calibrate_runs([Path(run) for run in arguments.runs], request, Path(arguments.output))


if __name__ == "__main__":
    main()
