"""The whole way from another toolkit's checkpoint to a folder that all commands take."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from torch import nn

from spkexp import build, checkpoint, durable, saved_config
from spkexp.conversion import speechbrain
from spkexp.conversion.building import Built, built, listed, settings_of
from spkexp.conversion.family import Head
from spkexp.conversion.idrnd import REDIMNET
from spkexp.conversion.pyannote import PYANNOTE
from spkexp.conversion.reading import Found, locate, read, read_labels
from spkexp.conversion.speechbrain import SPEECHBRAIN
from spkexp.conversion.three_d_speaker import THREE_D_SPEAKER
from spkexp.conversion.toolkit import CLASSIFIER
from spkexp.conversion.wespeaker import WESPEAKER
from spkexp.errors import UserError
from spkexp.whole_file import write_json

TOOLKITS = {toolkit.name: toolkit for toolkit in (SPEECHBRAIN, WESPEAKER, THREE_D_SPEAKER, REDIMNET, PYANNOTE)}
RECORD = "converted.json"
# Copies at other speeds are classes of their own, behind all others, in WeSpeaker and 3D-Speaker: here they are `@0.9`.
_SPEEDS = (0.9, 1.1)
_UNUSED = {CLASSIFIER: "it is more than one layer of cosines"}
_STATISTICS = (
    "mean_var_norm_emb.ckpt",
    "statistics of embeddings, which SpeechBrain's verification does not use either",
)


@dataclass(frozen=True)
class Request:
    """What to convert, and where to; overrides: model=NAME and model.KEY=VALUE, as typed."""

    source: str
    checkpoint: str
    output: Path
    labels: Path | None
    overrides: tuple[str, ...]


def convert(request: Request) -> list[str]:
    """Convert the checkpoint; returns lines that say what became of it. Raises UserError."""
    toolkit = TOOLKITS[request.source]
    output = request.output.expanduser()
    _require_free(output)
    file, companions = locate(request.checkpoint, toolkit.files, toolkit.companions)
    tensors, rest = read(file, toolkit.shells)
    found = Found(file, tensors, rest, companions)
    settings = settings_of(toolkit, found)
    head = toolkit.head(found, settings)
    classes = _classes(head, found, request.labels)
    labels, left_out = classes.labels, classes.left_out
    if head is not None:  # which is none of the model's tensors
        found = replace(found, tensors={name: x for name, x in tensors.items() if name != head.place})
    made = built(toolkit, found, settings, list(request.overrides))
    left_out |= made.left_out
    made.config.augment.speeds = list(classes.speeds)  # by which it is known whose classes are copies
    classifier = _classifier(head, made, labels) if head is not None and labels else None
    checkpoint.save_portable(output, made.model, classifier, saved_config.without_paths(made.config), labels)
    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    record = {
        "source": toolkit.name,
        "architecture": made.family,
        "checkpoint": request.checkpoint,
        "file": file.name,
        "sha256": durable.digest(file),
        "companions": sorted(companions),
        "tensors": len(tensors),
        "parameters": parameters,
        "classes": len(labels),
        "left_out": left_out,
    }
    try:
        write_json(output / RECORD, record)
    except OSError as error:
        cause, remedy = durable.cause_and_remedy(error)
        raise UserError(f"{output / RECORD}: cannot be written: {cause}; {remedy}") from error
    return [
        f"{made.family} of {toolkit.name}: {parameters:,} parameters, embeddings of {made.model.embedding_size}",
        f"front end: {_front_end(made.config)}",
        *([f"read with it: {', '.join(str(path) for path in companions.values())}"] if companions else []),
        *([f"classes: {classes}, of {head.place}"] if head is not None and labels else []),
        *(f"left out: {listed(names, 4)}: {reason}" for reason, names in left_out.items()),
        f"written: {output}",
    ]


def _require_free(output: Path) -> None:
    """Raise UserError unless `output` is not there, empty, or was written by an earlier conversion."""
    try:
        taken = durable.there(output) and not (output / RECORD).is_file() and any(output.iterdir())
    except NotADirectoryError:
        raise UserError(f"output={output}: is a file; name a folder") from None
    except OSError as error:
        raise UserError(f"output={output}: cannot be read: {error.strerror}; name another folder") from error
    if taken:
        raise UserError(f"output={output}: holds other files, which would be lost; name a folder that is not there")


class _Classes(NamedTuple):
    """labels: of the head's classes, empty where it is left out, with the copies at `speeds` behind all others;
    left_out: what is left out, by the reason."""

    labels: list[str]
    speeds: tuple[float, ...]
    left_out: dict[str, list[str]]

    def __str__(self) -> str:
        """4, each also at the speeds 0.9, 1.1"""
        copies = f", each also at the speeds {', '.join(map(str, self.speeds))}" if self.speeds else ""
        return f"{len(self.labels) // (1 + len(self.speeds)):,}{copies}"


def _classes(head: Head | None, found: Found, stated: Path | None) -> _Classes:
    """Raises UserError where the names are not those of the head."""
    left_out = {_UNUSED[name]: [name] for name in found.companions if name in _UNUSED and head is None}
    left_out |= {_STATISTICS[1]: [_STATISTICS[0]]} if _STATISTICS[0] in found.companions else {}
    file = stated or found.companions.get(speechbrain.LABELS)
    if head is None:
        if stated is not None:
            raise UserError(
                f"labels={stated}: the checkpoint has no classifier that scores by cosines, so there is nothing to name"
            )
        return _Classes([], (), left_out)
    rows = len(head.weight)
    if file is None:
        left_out |= {f"nothing names its {rows:,} classes; labels=FILE takes it along": [head.place]}
        return _Classes([], (), left_out)
    labels = read_labels(file.expanduser())
    speeds = _SPEEDS if len(labels) * (1 + len(_SPEEDS)) == rows else ()
    labels += [f"{name}@{speed}" for speed in speeds for name in labels]
    if len(labels) != rows or len(set(labels)) != rows:
        twice = "" if len(set(labels)) == len(labels) else f" ({len(set(labels)):,} different)"
        raise UserError(f"{file}: has {len(labels):,} names{twice} for the {rows:,} classes of {head.place}")
    return _Classes(labels, speeds, left_out)


def _classifier(head: Head, made: Built, labels: list[str]) -> nn.Module:
    """The head of the config's loss with these directions. Raises UserError where they are not of the embedding."""
    run_time = {
        "num_classes": len(labels),
        "embedding_size": made.model.embedding_size,
        "class_counts": torch.ones(len(labels), dtype=torch.int64),
        "steps_per_epoch": 1,
    }
    classifier = build.build(made.config.loss, "loss", **run_time)
    if classifier.weight.shape != head.weight.shape:
        raise UserError(
            f"{head.place}: has the shape {list(head.weight.shape)}, and embeddings have {made.model.embedding_size}"
        )
    classifier.load_state_dict({"weight": head.weight})
    return classifier


def _front_end(config: DictConfig) -> str:
    features = {str(key): value for key, value in config.model.features.items()}
    kind = str(features.pop("_target_")).rpartition(".")[2]
    return f"{kind}({', '.join(f'{key}={value}' for key, value in features.items())})"
