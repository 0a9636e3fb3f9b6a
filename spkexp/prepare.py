"""`python -m spkexp.prepare`: the manifest of a corpus, once; and the corpus converted, if asked for."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.compose import compose_config
from spkexp.errors import ConfigError
from spkexp.overrides import parse_with_overrides
from spkexp.sections import Text
from spkexp.types import Positive, PositiveInt

if TYPE_CHECKING:
    from spkexp.data.prepared import Prepared

HELP = """
NAME
  spkexp.prepare - list a corpus once, and convert it if asked for

SYNOPSIS
  python -m spkexp.prepare data=NAME data.root=DIR [data.KEY=VALUE ...]
                           [output=DIR] [KEY=VALUE ...]

DESCRIPTION
  Lists the utterances, reads how long they are from the headers of the files,
  and keeps both as a manifest, from which training then starts at once.
  Training makes it too where it is missing; here it can be done ahead.
  With output=DIR every utterance is also converted: to 16-bit wav or flac at
  the model's sample rate, and mono where data.mix_channels=true. The result
  needs no data.root: data=manifest data.manifest=DIR.
  Stopped or killed, the same command goes on where it was. Run again, it finds
  everything done, and converts again what changed (not into shards).

KEYS
  data=NAME           a file of conf/data; default: synthetic
  data.KEY=VALUE      any key of it; with output also data.filter,
                      data.resample, data.on_error=skip, data.max_bad_fraction
  model=NAME          whose sample rate the output has; default: ecapa_small
  refresh=true        make the manifest anew, even if the corpus seems the same
  workers=N           threads for headers and processes for conversion;
                      default: as many as there are cores (headers: at least 8)
  output=DIR          convert to this folder
  format=wav          wav or flac
  trim_db=NUMBER      cut silence at both ends: 10-ms frames that many dB below
                      the loudest one of the utterance; try 40
  pack_mb=NUMBER      tar shards of this size instead of files, in mixed order
  cohort=N            list N utterances of each training speaker in cohort.txt

FILES
  data.cache_dir/CORPUS-ID.parquet   the manifest: id, path, duration, …
  data.cache_dir/CORPUS-ID.json      what, when, counts, broken files and why
  output/manifest.parquet            paths relative to it: it can be moved
  output/prepare.json                settings, counts, broken files and why
  output/wav/SPEAKER/ID.wav          or flac/SPEAKER/ID.flac, or shard-*.tar
  output/clipped.txt                 ids of what went beyond full scale
  A manifest is made anew when names or times of the corpus's upper folders
  changed (three levels, while they have at most 10,000 entries in all), or its
  lists or tars; single audio files are not looked at: refresh=true does.

EXAMPLES
  python -m spkexp.prepare data=librispeech data.root=/corpora/LibriSpeech
  python -m spkexp.prepare data=voxceleb2 data.root=/corpora/voxceleb2 \\
      output=/fast/voxceleb2 trim_db=40 pack_mb=512
  python -m spkexp.train data=manifest data.manifest=/fast/voxceleb2
"""

# Own keys that say something about the output alone.
OF_OUTPUT = ("format", "trim_db", "pack_mb", "cohort")


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overrides: list[Text] = []
    output: Text | None = None
    format: Literal["wav", "flac"] = "wav"
    trim_db: Positive | None = None
    pack_mb: PositiveInt | None = None
    cohort: PositiveInt | None = None
    workers: PositiveInt | None = None
    refresh: bool = False


def main() -> None:
    """Make the manifest that the command line asks for, and convert what it lists."""
    with errors_to_exit_codes():
        arguments, [overrides] = parse_with_overrides(Arguments, HELP, "prepare", ("data", "model"))
        cfg = compose_config(overrides)
        _require_output(arguments, cfg)
        set_up_logging()
        try:
            _prepare(arguments, cfg)
        except KeyboardInterrupt:
            print("spkexp: interrupted; the same command goes on where it stopped", file=sys.stderr)
            sys.exit(130)


def _require_output(arguments: Arguments, cfg: DictConfig) -> None:
    """Raise ConfigError for what would have no effect without output."""
    if arguments.output is not None:
        return
    useless = [key for key in OF_OUTPUT if key in arguments.model_fields_set]
    useless += ["data.filter"] if cfg.data.filter is not None else []
    if useless:
        raise ConfigError([f"{key}: is about the conversion; add output=DIR or leave it out" for key in useless])


def _prepare(arguments: Arguments, cfg: DictConfig) -> None:
    # Imports torch, which takes seconds: only once the command line is known to be right.
    from spkexp import corpus
    from spkexp.data.prepared import prepare
    from spkexp.report.corpus import corpus_table

    source = corpus.source(cfg)
    cache = Path(cfg.data.cache_dir).expanduser()
    prepared = prepare(source, cache, keep=True, refresh=arguments.refresh, threads=arguments.workers)
    print(corpus_table(prepared.facts))
    print(f"manifest: {prepared.file}")
    if arguments.output is not None:
        facts = _convert(arguments, cfg, prepared, source.identity, Path(arguments.output).expanduser().absolute())
        print()
        print(corpus_table(facts))
        print(f"use it with: data=manifest data.manifest={arguments.output}")


def _convert(
    arguments: Arguments, cfg: DictConfig, prepared: "Prepared", identity: dict[str, Any], output: Path
) -> dict[str, Any]:
    """What prepare.json says of the converted corpus."""
    from spkexp import corpus
    from spkexp.data.cohort import write_cohort
    from spkexp.data.convert import Conversion
    from spkexp.data.converted import Order, convert_table

    reading = corpus.reading(cfg)
    rows, left_out = corpus.table(cfg, prepared)
    conversion = Conversion(
        arguments.format, reading.sample_rate, reading.resample, reading.mix_channels, arguments.trim_db
    )
    table, facts = convert_table(
        Order(
            table=rows,
            identity=identity,
            conversion=conversion,
            output=output,
            pack_bytes=None if arguments.pack_mb is None else arguments.pack_mb * 10**6,
            workers=arguments.workers or os.cpu_count() or 1,
            on_error=cfg.data.on_error,
            max_bad_fraction=cfg.data.max_bad_fraction,
            left_out=left_out,
        )
    )
    if arguments.cohort is not None:
        if "split" in table.columns:
            table = table.filter(table["split"] == "train")
        write_cohort(output / "cohort.txt", table, cfg.data.label, arguments.cohort, None, cfg.seed)
    return facts


if __name__ == "__main__":
    main()
