"""`python -m spkexp.publish`: a trained model where others can load it."""

from typing import Annotated

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, model_validator

from spkexp.arguments import Trust, parse
from spkexp.cli import errors_to_exit_codes, set_up_logging
from spkexp.sections import Text

HELP = """
NAME
  spkexp.publish - a trained model where others can load it

SYNOPSIS
  python -m spkexp.publish model=RUN licence=ID to=USER/NAME [KEY=VALUE ...]
  python -m spkexp.publish model=RUN licence=ID output=DIR|FILE.tar.gz

KEYS
  model=RUN        a run folder (its best checkpoint) or another model's folder
  licence=ID       under which others may use it, as the hub and SPDX call it:
                   cc-by-4.0, apache-2.0, mit, cc-by-nc-4.0, other, ...
  to=USER/NAME     a repository of models on the Hugging Face hub, which is
                   made if need be; log in once: hf auth login
  private=true     make it one that others do not see
  message=TEXT     of the commit there
  output=DIR       a new folder, or an archive (.tar.gz) to be put on any web
                   server, whose address others load with its checksum
  description=TEXT a sentence or two for the model card: on what it was trained
  labels=false     without the names of the training speakers and the head that
                   tells them; then it classifies no more
  trust=PACKAGE    a package of yours, or [A,B], whose classes the run may name

DESCRIPTION
  Writes model.safetensors, config.yaml (without paths of this machine),
  labels.json, results.json, SHA256SUMS and a model card (README.md) with the
  error rates and their intervals. Look at it with output=DIR first.
  Whoever has spkexp takes USER/NAME, or the address, in the place of RUN:
    python -m spkexp.verify model=USER/NAME a.wav b.wav
    spkexp.load("USER/NAME")

EXAMPLES
  python -m spkexp.publish model=RUN licence=cc-by-4.0 output=/tmp/card
  python -m spkexp.publish model=RUN licence=cc-by-4.0 to=me/ecapa-voxceleb
"""


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Text
    licence: Annotated[str, MinLen(1)]
    to: Text | None = None
    output: Text | None = None
    private: bool = False
    message: Text | None = None
    description: Text | None = None
    labels: bool = True
    trust: Trust = ()

    @model_validator(mode="after")
    def _goes_somewhere(self) -> "Arguments":
        if self.to is None and self.output is None:
            raise ValueError("give to=USER/NAME, a repository on the hub, or output=DIR")
        if self.to is None and (self.private or self.message is not None):
            raise ValueError("private and message are of a repository on the hub; give to=USER/NAME, too")
        return self


def main() -> None:
    """Write the folder, the archive, or the repository."""
    with errors_to_exit_codes():
        arguments = parse(Arguments, HELP)
        from spkexp.publishing import publish

        set_up_logging()
        publish(
            arguments.model,
            arguments.licence,
            to=arguments.to,
            output=arguments.output,
            private=arguments.private,
            message=arguments.message,
            description=arguments.description,
            labels=arguments.labels,
            trust=arguments.trust,
        )


if __name__ == "__main__":
    main()
