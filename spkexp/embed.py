"""`python -m spkexp.embed`: embeddings of recordings, whole or in windows; or who speaks when."""

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spkexp.arguments import Device, Trust, parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.sections import Text
from spkexp.types import NonNegative, NonNegativeInt, Positive, PositiveInt

HELP = """
NAME
  spkexp.embed - embeddings of recordings, whole or in windows; who speaks when

SYNOPSIS
  python -m spkexp.embed model=RUN input=AUDIO|DIR|MANIFEST|- output=FILE.h5
      [window=SECONDS [step=SECONDS|PERCENT%]] [segments=FILE.rttm]
  python -m spkexp.embed model=RUN input=AUDIO|DIR|MANIFEST|- output=FILE.rttm
      diarize=true [num_speakers=N] [segments=FILE.rttm]

KEYS
  model=RUN        a run folder (its best checkpoint), a checkpoint folder, or
                   what else stands for a model: user/name of the hub, an
                   address
  input=           an audio file;
                   a folder: all wav, flac, m4a, opus, mp3 and ogg files below
                   it, called by their path without the extension, unless two
                   were alike then;
                   a manifest (CSV, JSON, Parquet, a Kaldi folder, what prepare
                   wrote), whose other columns (speaker, ...) go into the
                   output;
                   -: paths from standard input, one a line
  output=FILE      .h5, .npz, .parquet, or .ark (with .scp and .csv); what is
                   there is replaced, but for what the command reads
  window=SECONDS   an embedding for every window of so many seconds, not for the
                   whole recording; the last one ends with the recording, and a
                   shorter recording is one window
  step=            from one window to the next, in seconds (step=0.1) or a share
                   of the window (step=25%); default 50%
  segments=FILE    an RTTM: an embedding for each of its segments, or for each
                   window of them; those of recordings that are not in the
                   input are left out
  data.root=DIR    where the relative paths of a manifest start
  resample=false   other sample rates than the model's are errors;
                   default: they are resampled
  mix_channels=false  several channels are an error; default: their mean
  on_error=skip    leave out what cannot be read, and list it; default: raise
  batch_seconds=S  audio in a batch, with padding; default 240
  precision=bf16   faster on GPUs that have it; default fp32
  device=auto      auto, cpu or cuda; CUDA_VISIBLE_DEVICES says which GPU
  num_workers=N    processes that read; default: none on a CPU
  trust=PACKAGE    a package of yours, or [A,B], whose classes the run may name

  diarize=true     write who speaks when, as an RTTM: speech is found by its
                   level, or taken from segments=FILE; windows of it (window=1.5
                   step=50%) are clustered, each recording by itself
  num_speakers=N   of each recording; default: found, at most max_speakers=N
                   (default: no limit but one for every 4 s of speech and, with
                   spectral clustering, 20); give it if you know it
  clustering=agglomerative  in place of spectral, which finds the number of
                   speakers by itself; this one merges what is more alike than
  threshold=T      a cosine; default: that of the run's validation trials
  min_speech, min_silence, min_turn   in seconds; .2, .3 and .25

DESCRIPTION
  Embeddings are the model's own, not scaled to length one. Batches hold audio
  of like length; what is beside an utterance in its batch does not change it.

  Killed at any moment, the same command goes on where it was, and the result
  is the same to the last bit. What there is so far lies in OUTPUT.partial,
  which is removed in the end; another model, input or setting starts anew and
  says so. Once it is finished, the same command embeds everything again and
  replaces OUTPUT at its end.
  diarize=true writes at its end alone: killed, it starts over.

  torchrun --nproc-per-node=8 -m spkexp.embed ... shares the work.

FILES
  OUTPUT holds `id`, `embedding` and the manifest's other columns in the order
  of the input. Windows are called ID/000000, ID/000001, ..., and have
  `recording`, `start` and `end`, in seconds of the file. Segments are called
  RECORDING/000000, ... in the order of the RTTM, with `recording`, `start`,
  `end` and its `speaker`. spkexp.embedding.windows_file.read_windows reads
  windows back, by recording.

EXAMPLES
  python -m spkexp.embed model=RUN input=corpus/ output=corpus.h5
  python -m spkexp.embed model=RUN input=talk.wav output=talk.npz \\
      window=1.5 step=25%
  find corpus -name '*.flac' | python -m spkexp.embed model=RUN input=- \\
      output=some.parquet
"""


DIARIZATION_WINDOW = 1.5  # s
_OF_DIARIZATION = (
    *("num_speakers", "max_speakers", "threshold", "clustering"),
    *("min_speech", "min_silence", "min_turn"),
)


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Text
    input: Text
    output: Text
    root: Text | None = Field(None, alias="data.root")
    window: Annotated[float, Ge(0.1)] | None = None
    step: Text | None = None
    segments: Text | None = None
    resample: bool = True
    mix_channels: bool = True
    on_error: Literal["raise", "skip"] = "raise"
    batch_seconds: Positive = 240.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Device = "auto"
    num_workers: NonNegativeInt | None = None
    trust: Trust = ()
    diarize: bool = False
    num_speakers: PositiveInt | None = None
    max_speakers: PositiveInt | None = None
    threshold: Annotated[float, Gt(-1), Lt(1)] | None = None
    clustering: Literal["agglomerative", "spectral"] | None = None
    min_speech: NonNegative | None = None
    min_silence: NonNegative | None = None
    min_turn: NonNegative | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "Arguments":
        alien = [name for name in _OF_DIARIZATION if getattr(self, name) is not None and not self.diarize]
        if alien:
            raise ValueError(f"{alien[0]}: is of diarization; give diarize=true, too")
        if self.diarize:
            if not (self.resample and self.mix_channels):
                raise ValueError("diarize: always resamples and averages channels; leave resample and mix_channels out")
            if self.threshold is not None and self.clustering != "agglomerative":
                raise ValueError("threshold: spectral clustering has none; give clustering=agglomerative, too")
            return self
        if self.step is not None and self.window is None:
            raise ValueError("step: is from one window to the next, and there are none; give window=SECONDS, too")
        return self


def main() -> None:
    """Embed the input and write the output."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP)
        from spkexp import distributed
        from spkexp.embedding.run import Request, Settings, embed
        from spkexp.interrupt import Stopped
        from spkexp.scoring.sliding import parse_step

        set_up_logging()
        request = Request(
            arguments.model,
            arguments.input,
            Path(arguments.output).expanduser(),
            arguments.root,
            arguments.segments,
            arguments.on_error,
            arguments.precision,
            arguments.num_workers,
            arguments.trust,
        )
        window = arguments.window or (DIARIZATION_WINDOW if arguments.diarize else None)
        step = None if window is None else parse_step(arguments.step or "50%", window)
        try:
            with distributed.processes(arguments.device) as device:
                if arguments.diarize:
                    from spkexp.diarization.settings import Settings as DiarizationSettings
                    from spkexp.embedding.diarize import diarize

                    given: dict[str, Any] = {"window": window, "step": step}
                    given |= {name: getattr(arguments, name) for name in _OF_DIARIZATION}
                    chosen = DiarizationSettings(**{key: value for key, value in given.items() if value is not None})
                    diarize(request, chosen, arguments.batch_seconds, device)
                else:
                    settings = Settings(
                        window, step, arguments.batch_seconds, arguments.resample, arguments.mix_channels
                    )
                    embed(request, settings, device)
        except Stopped as stopped:
            stopped.leave()


if __name__ == "__main__":
    main()
