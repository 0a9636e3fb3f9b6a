"""`python -m spkexp.export`: a trained encoder as a file for programs without spkexp."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spkexp.arguments import Trust, parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.errors import UserError
from spkexp.sections import Text

if TYPE_CHECKING:
    from spkexp.evaluation import Evaluation
    from spkexp.models.speaker import SpeakerModel

HELP = """
NAME
  spkexp.export - a trained encoder as a file for programs without spkexp

SYNOPSIS
  python -m spkexp.export model=RUN output=encoder.onnx [quantise=int8]
  python -m spkexp.export model=RUN output=encoder.pt2

DESCRIPTION
  One graph from waveform to embedding, features included, for any number of
  utterances of any length. Its inputs: waveform (batch, samples) float32 in
  [-1, 1], and lengths (batch,) int64, the samples of each row. Its output:
  embedding (batch, size). Before the file gets its name it is compared with
  torch on ten lengths from 0.01 s to 30 s and on a padded batch; a deviation
  above 1e-4 is an error.

KEYS
  model=RUN        a run folder (its best checkpoint), a checkpoint folder, a
                   published model
  output=FILE      NAME.onnx for onnxruntime and others, or NAME.pt2, a program
                   of torch.export that torch loads without spkexp
  quantise=int8    also NAME.int8.onnx, whose weights are 8-bit integers; says
                   what that costs in EER, on the run's own validation trials
                   or on these:
  trials=FILE      a trial a line, as in spkexp.evaluate
  data.root=DIR    where the audio lies; default: as in the run
  trust=PACKAGE    a package of yours whose classes the run's model may name

EXAMPLES
  python -m spkexp.export model=RUN output=encoder.onnx
  python -m spkexp.export model=RUN output=encoder.onnx quantise=int8 \\
      trials=veri_test2.txt data.root=/corpora/voxceleb1

FILES
  The file says of itself (ONNX metadata; spkexp.json in a .pt2): sample_rate,
  embedding_size, model, opset, threshold, spkexp_version, weights_sha256.
  docs/export.md runs one in eight lines of Python.
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Text
    output: Text
    quantise: Literal["int8"] | None = None
    trials: Text | None = None
    root: Text | None = Field(None, alias="data.root")
    trust: Trust = ()

    @model_validator(mode="after")
    def _agrees(self) -> "Arguments":
        if self.quantise is None and (self.trials or self.root):
            raise ValueError("trials and data.root: are for what int8 costs; give quantise=int8, too")
        return self


def main() -> None:
    """Export, check, and say what came of it."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP)
        from spkexp import build
        from spkexp.exporting import files, report
        from spkexp.exporting.metadata import metadata_of

        set_up_logging()
        output, int8 = Path(arguments.output).expanduser(), arguments.quantise == "int8"
        files.check_output(output, int8)
        model, cfg, folder = build.trained_model(arguments.model, arguments.trust)
        evaluation = _evaluation(arguments, folder) if int8 else None
        exported = files.export(model.requires_grad_(False), metadata_of(model, cfg, folder), output, int8)
        for index, one in enumerate(exported):
            print(report.exported_line(one, int8=index > 0))
        if int8:
            _print_costs(model, [one.file for one in exported], evaluation)


def _evaluation(arguments: Arguments, folder: Path) -> "Evaluation | str":
    """The trials to measure on, found before the long work begins, or why the run has none. Raises UserError."""
    import torch

    from spkexp import checkpoint
    from spkexp.evaluation import Evaluation, Request

    trials = Path(arguments.trials).expanduser() if arguments.trials else None
    request = Request(trials, None, arguments.root, (), arguments.trust)
    try:
        cfg = checkpoint.load_config(folder, arguments.trust)
        found = Evaluation(Path(arguments.model), cfg, folder, request, torch.device("cpu"), ("val",))
    except UserError as error:
        if trials is not None:
            raise
        return str(error)
    (name,) = found.reported
    of = found.sets[name].trials
    if of is None or of.target is None:
        if trials is not None:
            raise UserError(f"{trials}: has no labels, so it cannot tell what int8 costs")
        return "the run has no verification trials"
    return found


def _print_costs(model: "SpeakerModel", written: list[Path], evaluation: "Evaluation | str | None") -> None:
    import torch

    from spkexp.exporting import report
    from spkexp.exporting.cost import error_rates, utterances_per_second
    from spkexp.exporting.onnx_file import OnnxModel

    whole, int8 = (OnnxModel(file, torch.get_num_threads()) for file in written)
    print(report.speed_line(*(utterances_per_second(one, whole.sample_rate) for one in (model, whole, int8))))
    if evaluation is None or isinstance(evaluation, str):
        print(f"what int8 costs in EER is not known: {evaluation}; trials=FILE data.root=DIR tells")
        return
    (name,) = evaluation.reported
    # Of a model scoring wants nothing but its embeddings, their size and the sample rate.
    before, after = (evaluation.scored(cast("SpeakerModel", one))[name] for one in (whole, int8))
    print(report.cost_line(name, error_rates(before, after, evaluation.settings.bootstrap)))


if __name__ == "__main__":
    main()
