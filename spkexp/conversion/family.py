"""What one architecture of another toolkit is to us: how it is recognised, what its tensors are called here."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]
Settings = Mapping[str, Any]  # what the toolkit's own config says, as far as it is there
# A pattern and what its first match in a name is replaced by. All rules of a list are applied, in their order.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


class Architecture(NamedTuple):
    """model: a file of conf/model; changes: values for keys of the model section, dotted; a mapping takes the place of
    the whole node."""

    model: str
    changes: dict[str, Any]


class Family(NamedTuple):
    """One architecture of another toolkit.

    marks: patterns, each of which some tensor's name matches, in no other family before it in the toolkit's list.
    rules: from their names to ours; a name that they do not make one of ours is unknown.
    architecture: reads the sizes off the shapes. Raises KeyError for a tensor that is missing, UserError that does not
    name the file for what is not read.
    finish: what is more than another name, on tensors that have ours already.
    """

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    architecture: Callable[[Tensors, Settings], Architecture]
    finish: Callable[[Tensors], Tensors] = dict


class LeftOut(NamedTuple):
    """Tensors that have no place in ours, by pattern, and why that is right."""

    pattern: str
    reason: str


class Refused(NamedTuple):
    """Tensors, by pattern, that belong to what has no counterpart here, which is named."""

    pattern: str
    what: str


class Head(NamedTuple):
    """Directions of the classes (num_classes, embedding_size) and where they were found."""

    weight: Tensor
    place: str


def renamed(name: str, rules: tuple[Rule, ...]) -> str:
    """Their name of a tensor by our rules."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def count(tensors: Tensors, pattern: str) -> int:
    """How many different values the group of `pattern` has in the names that it matches from their beginning."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def has(tensors: Tensors, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in tensors)


def shape(tensors: Tensors, name: str, dimension: int) -> int:
    """Size of one dimension of the tensor `name`. Raises KeyError where there is none."""
    tensor = tensors[name]
    if tensor.ndim <= dimension:
        raise KeyError(name)
    return tensor.shape[dimension]


def split_context(tensors: Tensors) -> Tensors:
    """The attention's matrix over [frame; mean; deviation] as our two: over the frame, and over the context."""
    whole, scores = tensors.get("pooling.hidden.weight"), tensors.get("pooling.scores.weight")
    if whole is None or scores is None or whole.shape[1] != 3 * scores.shape[0]:
        return tensors
    channels = whole.shape[1] // 3
    parts = {"pooling.hidden.weight": whole[:, :channels], "pooling.context.weight": whole[:, channels:]}
    return tensors | parts


def attentive_pooling(tensors: Tensors, hidden: str, scores: str, **changes: Any) -> dict[str, Any]:
    """The node of the attentive pooling with these two matrices; `changes` to WeSpeaker's. Raises KeyError."""
    return {
        "_target_": "spkexp.models.pooling.AttentiveStatisticsPooling",
        "attention_channels": shape(tensors, hidden, 0),
        "global_context": shape(tensors, hidden, 1) == 3 * shape(tensors, scores, 0),
        "context_correction": 1,
        "attention_norm": False,
        "variance_floor": 1e-7,
    } | changes
