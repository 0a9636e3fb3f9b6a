"""`python -m spkexp.convert`: the weights of other toolkits as a model that all commands take."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from spkexp.arguments import parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.sections import Text

HELP = """
NAME
  spkexp.convert - weights of other toolkits as a model that all commands take

SYNOPSIS
  python -m spkexp.convert source=TOOLKIT checkpoint=FILE output=DIR
                           [labels=FILE] [model=NAME] [model.KEY=VALUE ...]

KEYS
  source=…         speechbrain   ECAPA-TDNN, x-vector
                   wespeaker     ResNet, Res2Net, ECAPA-TDNN, CAM++, ReDimNet
                   3dspeaker     ResNet, Res2Net, ERes2NetV2, ECAPA-TDNN, CAM++
                   redimnet      ReDimNet of its authors
                   pyannote      SincTDNN (pyannote/embedding), ResNet
  checkpoint=…     a file of weights (.ckpt, .pt, .pth, .bin, .safetensors); the
                   folder that it lies in; hf:user/name/FILE or user/name on the
                   hub; or https://…#sha256=HEX. What lies beside it (a config,
                   a classifier with its labels) is read, too.
  output=DIR       a folder that is not there yet, or an earlier conversion
  labels=FILE      names of the classifier's classes, one a line or a JSON list:
                   it then becomes the model's head
  model=NAME       a file of conf/model in place of what the shapes say
  model.KEY=VALUE  any key of the model section, for what no shape shows:
                   model.encoder.dilations=[1,2,3,4,5]

DESCRIPTION
  Architecture and sizes are read off the tensors, the front end is the
  toolkit's own. Nothing of the checkpoint is executed: files with other objects
  than tensors, numbers and text are refused. Every tensor is accounted for: one
  that no rule knows, that does not fit, or that is missing is an error that
  lists them all, and what is left out on purpose is printed.

EXAMPLES
  python -m spkexp.convert source=wespeaker output=resnet34 \\
      checkpoint=Wespeaker/wespeaker-voxceleb-resnet34-LM
  python -m spkexp.convert source=speechbrain output=ecapa \\
      checkpoint=speechbrain/spkrec-ecapa-voxceleb
  python -m spkexp.evaluate model=ecapa trials=veri_test2.txt data.root=DIR
  python -m spkexp.verify model=ecapa A.wav B.wav
  python -m spkexp.train init_from=ecapa data=folder data.root=DIR

FILES
  model.safetensors, config.yaml (of a whole run), labels.json, SHA256SUMS, and
  converted.json: where the weights came from, and what was left out
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    source: Literal["speechbrain", "wespeaker", "3dspeaker", "redimnet", "pyannote"]
    checkpoint: Text
    output: Text
    labels: Text | None = None
    model: list[str] = Field([])


def main() -> None:
    """Convert the checkpoint and say what became of it."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP, section="model")
        from spkexp.conversion.conversion import Request, convert

        set_up_logging()
        request = Request(
            arguments.source,
            arguments.checkpoint,
            Path(arguments.output),
            Path(arguments.labels) if arguments.labels else None,
            tuple(arguments.model),
        )
        for line in convert(request):
            print(line)


if __name__ == "__main__":
    main()
