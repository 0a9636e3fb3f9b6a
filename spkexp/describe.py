"""`python -m spkexp.describe`: what a dataset holds: speakers, hours, durations, levels; a table, charts and JSON."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict

from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.compose import compose_config
from spkexp.errors import UserError
from spkexp.overrides import parse_with_overrides
from spkexp.sections import Text
from spkexp.types import NonNegativeInt, Positive, PositiveInt

log = logging.getLogger(__name__)

HELP = """
NAME
  spkexp.describe - what a dataset holds: speakers, hours, durations, levels

SYNOPSIS
  python -m spkexp.describe data=NAME data.root=DIR [data.KEY=VALUE ...]
                            [output=DIR] [KEY=VALUE ...]

DESCRIPTION
  Counts utterances, speakers and hours of each split that training would use,
  and reads a sample of the utterances for levels, clipping, noise and the
  range of the mel features. Prints tables and writes a page of charts.

KEYS
  data=NAME           a file of conf/data; default: synthetic
  data.KEY=VALUE      any key of it, e.g. data.label=keyword for utterances per
                      keyword, data.filter, data.on_error=skip
  model=NAME          whose mel features are looked at; default: ecapa_small
  model.KEY=VALUE     e.g. model.features.num_mels=40
  output=DIR          default: description-DATASET in the current folder;
                      what is there from an earlier call is replaced
  sample=1000         utterances to read; all, or 0 for none
  seconds=60          of a longer utterance a stretch of this length is read,
                      from a random place
  seed=0              which utterances are read, and which stretches
  workers=N           reading threads; default: as many as there are cores

FIGURES
  Levels are in dB re full scale (a sine at full scale: peak 0, RMS -3.01),
  measured before resampling. Clipped: 3 samples in a row at full scale.
  Silent: no sample above -60 dB. SNR is an estimate: the level that 95 % of
  the 25-ms frames of an utterance stay below minus the one that 5 % do; where
  speech has no pauses it says too little. Mel features are natural logarithms,
  before and after what model.features.normalise takes away.

FILES
  output/description.png   one page of charts
  output/description.json  every figure:
    data, label, crop_seconds, extensions, skipped, speakers_in_several_splits
    splits.NAME and all: utterances, speakers, classes, hours,
      shorter_than_crop, seconds, utterances_per_class, seconds_per_class
    sample: seed, utterances, unreadable, sample_rates, channels, rms_db,
      peak_db, snr_db, dc_offset, full_scale_share, clipped_utterances,
      silent_utterances, log_mel.NORMALISATION: min, mean, max, bins
    Distributions are min, p01, p05, p25, median, p75, p95, p99, max, mean.

EXAMPLES
  python -m spkexp.describe data=librispeech data.root=/corpora/LibriSpeech
  python -m spkexp.describe data=manifest data.manifest=mine.csv sample=all
"""


def _all_is_none(value: Any) -> Any:
    return None if value == "all" else value


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overrides: list[Text] = []
    output: Text | None = None
    sample: Annotated[NonNegativeInt | None, BeforeValidator(_all_is_none)] = 1000
    seconds: Positive = 60.0
    seed: NonNegativeInt = 0
    workers: PositiveInt | None = None


def main() -> None:
    """Describe the dataset that the command line names."""
    with errors_to_exit_codes():
        arguments, [overrides] = parse_with_overrides(Arguments, HELP, "describe", ("data", "model"))
        cfg = compose_config(overrides)
        set_up_logging()
        _describe(arguments, cfg)


def _describe(arguments: Arguments, cfg: DictConfig) -> None:
    # Imports torch, which takes seconds: only once the command line is known to be right.
    from spkexp import corpus
    from spkexp.data.description import describe_table
    from spkexp.data.files import whole
    from spkexp.data.levels import Measurement, measure, sample_rows
    from spkexp.data.prepared import write_json
    from spkexp.report.data_page import data_page
    from spkexp.report.description import description_text

    table, unusable = corpus.table(cfg)
    name = cfg.names.data if cfg.data.corpus is not None else corpus.source(cfg).name
    description = describe_table(name, _tables(table, cfg), cfg.data.label, cfg.data.crop_seconds, len(unusable))
    measurement = Measurement(
        sample_rate=cfg.model.features.sample_rate,
        front_ends=_front_ends(cfg),
        seconds=arguments.seconds,
        seed=arguments.seed,
        on_error=cfg.data.on_error,
        max_bad_fraction=cfg.data.max_bad_fraction,
        workers=arguments.workers or os.cpu_count() or 1,
    )
    output = Path(arguments.output or f"description-{name.replace('/', '-')}").expanduser()
    remedy = "choose another folder with output=DIR"
    with _writable(output, remedy):
        rows = sample_rows(table, arguments.sample, arguments.seed)
        sample = measure(rows, cfg.data.label, measurement) if len(rows) else None
        write_json(output / "description.json", description.facts(sample), output, remedy)
        with whole(output / "description.png", output, remedy) as partial:
            data_page(partial, description, sample)
    print(description_text(description, sample, cfg.model.features.sample_rate))
    print(f"charts: {output / 'description.png'}\nnumbers: {output / 'description.json'}")


@contextmanager
def _writable(folder: Path, remedy: str) -> Iterator[None]:
    """Find out before an hour's work whether its result can be kept. Leaves no empty folder where the work fails."""
    from spkexp.data.files import writing

    new = not folder.exists()
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written: Permission denied; {remedy}")
    try:
        yield
    except BaseException:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _tables(table: Any, cfg: DictConfig) -> dict[str, Any]:
    """The table by split, as training would split it; by its own names of splits, or undivided, where that is not
    possible: a test set alone, a corpus of one speaker."""
    from spkexp.data.split import split_table

    settings = cfg.data.split
    try:
        parts = split_table(table, cfg.data.label, settings.by, settings.fractions, settings.seed)
        return {name: part for name, part in parts.items() if len(part)}
    except UserError as error:
        if settings.by != "auto":
            raise
        log.warning("not split as for training: %s", error)
    if "split" not in table.columns:
        return {"all": table}
    return {str(name): part for (name,), part in table.group_by("split", maintain_order=True)}


def _front_ends(cfg: DictConfig) -> dict[str, Any]:
    """The model's mel features without normalisation and, if it normalises, with it; none where it has no mel."""
    from spkexp import build
    from spkexp.features import LogMel

    node = cfg.model.features
    if not isinstance(build.build(node, "model.features"), LogMel):
        return {}
    kinds = dict.fromkeys(["none", node.normalise])
    nodes = {kind: OmegaConf.create({**node, "normalise": kind}) for kind in kinds}
    return {kind: build.build(changed, "model.features") for kind, changed in nodes.items()}


if __name__ == "__main__":
    main()
