"""Which parameters learn, from when on and how fast: trainer.param_groups and trainer.layer_decay for an optimizer."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from spkexp.errors import ConfigError, UserError
from spkexp.sections import ParamGroup

KEY = "trainer.param_groups"
REST = "default"  # the name, for logs, of the parameters that are in no group

Groups = Mapping[str, ParamGroup | None]


def parameter_groups(
    train_step: nn.Module, groups: Groups, layer_decay: float | None, lr: float | None
) -> list[dict[str, Any]]:
    """The parameters that `train_step` trains, for a torch optimizer: those that differ in nothing share an entry.

    Every entry has "params" and a "name" for logs that no other has; "lr" and "weight_decay" where they are not the
    optimizer's own. What a module marks by an attribute `_no_weight_decay`, as mamba-ssm does, has none.
    What is frozen for all epochs is left out.

    A group's `match` is a glob on the dotted names of the parameters of `train_step`, or of the modules that hold
    them: `model.encoder.*`, `model.encoder` (which is the same), `head`, `*.bias`. A `*` goes beyond dots; several
    patterns stand side by side with `|` between them. Each must match something, and no parameter two groups.

    With `layer_decay` d, the rate of a parameter in the i-th layer from the top of the encoder (0 is the topmost) is
    multiplied by d^i, that of the front end, below its n layers, by d^n; what follows the encoder keeps its rate
    (Clark et al.: ELECTRA, ICLR 2020, section 3.1). A group's own `lr` is multiplied alike.

    Args:
        lr: of the optimizer, for layer_decay.

    Raises:
        ConfigError: a pattern that matches nothing, two groups that match the same, nothing left to train.
        UserError: an encoder that does not tell its layers.
    """
    group_of = _assign(train_step, groups)
    depth_of = {} if layer_decay is None else _depths(train_step)
    found: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for name, parameter in train_step.named_parameters():
        if not parameter.requires_grad:
            continue
        group, depth = group_of.get(name), depth_of.get(name, 0)
        settings = groups[group] if group is not None else None
        if settings is not None and settings.frozen_epochs == "all":
            continue
        exempt = bool(getattr(parameter, "_no_weight_decay", False))
        key = (group or REST, depth, exempt)
        if key not in found:
            found[key] = {"params": [], "name": _name(*key), **_options(settings, layer_decay, depth, exempt, lr)}
        found[key]["params"].append(parameter)
    order = [REST, *groups]  # from the top down, and what has weight decay first
    return [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), *key[1:]))]


def check_optimizer(optimizer: Optimizer, groups: Groups) -> None:
    """Raise ConfigError for a weight decay that `optimizer` would not look at."""
    mistakes = [
        f"{KEY}.{name}.weight_decay: {type(optimizer).__name__} has no weight decay; leave it out"
        for name, group in groups.items()
        if group is not None and group.weight_decay is not None and "weight_decay" not in optimizer.defaults
    ]
    if mistakes:
        raise ConfigError(mistakes)


class Freezing:
    """Keeps the groups with `frozen_epochs` as they are for so many epochs, or all.

    A frozen parameter has no gradient, which optimizers skip without a trace in their state; a batch normalisation
    whose parameters are all frozen keeps its statistics too, as in evaluation. (One without parameters goes with the
    module around it.) To be made after `parameter_groups`, of the model as it was built.

    Args:
        train_step: what is trained. Parameters that its modules froze themselves stay frozen.
        groups: trainer.param_groups.
        steps_per_epoch: optimizer steps.

    Raises ConfigError if nothing would be left to train.
    """

    def __init__(self, train_step: nn.Module, groups: Groups, steps_per_epoch: int) -> None:
        assigned = _assign(train_step, groups)
        self._until: list[tuple[float, nn.Parameter]] = []  # the first step that trains it
        for name, parameter in train_step.named_parameters():
            group = groups.get(assigned.get(name, ""))
            if group is not None and group.frozen_epochs and parameter.requires_grad:
                epochs = float("inf") if group.frozen_epochs == "all" else group.frozen_epochs
                self._until.append((epochs * steps_per_epoch, parameter))
        held = {id(parameter) for _, parameter in self._until}
        # Norms that hear of the freezing; what their own module or its own weights froze before is not our business.
        self._norms = [
            (norm, parameters)
            for norm, parameters in _batch_norms(train_step)
            if any(id(parameter) in held for parameter in parameters)
        ]
        self._fixed: set[int] = set()  # norms in evaluation mode because of `apply`

    def apply(self, step: int) -> bool:
        """Freeze and thaw as it is right for `step`, a pure function of it; whether any parameter changed.

        To be called before every step, for whoever validates puts the whole model into training mode. After a change
        DistributedDataParallel has to be made anew: it exchanges the gradients of what was trained when it was made.
        """
        changed = False
        for until, parameter in self._until:
            trained = step >= until
            if parameter.requires_grad != trained:
                parameter.requires_grad_(trained)
                parameter.grad = None  # of an earlier step, if any
                changed = True
        for norm, parameters in self._norms:
            if not any(parameter.requires_grad for parameter in parameters):
                norm.eval()
                self._fixed.add(id(norm))
            elif id(norm) in self._fixed:
                norm.train()
                self._fixed.discard(id(norm))
        return changed


def _assign(train_step: nn.Module, groups: Groups) -> dict[str, str]:
    """Name of each parameter that is in a group -> the group's name. Raises ConfigError."""
    mistakes, assigned = list[str](), dict[str, str]()
    trained = {name: parameter.requires_grad for name, parameter in train_step.named_parameters()}
    for group, settings in groups.items():
        if settings is None:
            continue
        if group == REST:
            mistakes.append(f"{KEY}.{REST}: is what the parameters outside all groups are called; take another name")
        matched = dict.fromkeys(
            name
            for pattern in settings.match.split("|")
            for name in _matching(pattern.strip(), trained, f"{KEY}.{group}.match", mistakes)
        )
        if matched and not any(trained[name] for name in matched):
            mistakes.append(
                f"{KEY}.{group}.match: the model trains nothing of what '{settings.match}' matches "
                "(model.encoder.trainable); leave the group out"
            )
        shared = [name for name in matched if name in assigned]
        if shared:
            mistakes.append(
                f"{KEY}.{group}.match: '{settings.match}' matches {shared[0]}"
                f"{f' and {len(shared) - 1} more' if len(shared) > 1 else ''}, which "
                f"{KEY}.{assigned[shared[0]]}.match matches too; let each parameter be in one group"
            )
        assigned |= dict.fromkeys(matched, group)
    everything = [name for name, learns in trained.items() if learns]
    at_first = [groups[assigned[name]] if name in assigned else None for name in everything]
    if not mistakes and everything and all(group is not None and group.frozen_epochs for group in at_first):
        mistakes.append(f"{KEY}: frozen_epochs leaves nothing to train at first; let one group, or the rest, learn")
    if mistakes:
        raise ConfigError(mistakes)
    return assigned


def _matching(pattern: str, names: Mapping[str, bool], key: str, mistakes: list[str]) -> list[str]:
    """The parameters that `pattern` matches, or whose module it does; with none a mistake more."""
    found = [name for name in names if any(fnmatchcase(part, pattern) for part in _with_modules(name))]
    if not found:
        known = list(dict.fromkeys(part for name in names for part in _with_modules(name)))
        close = get_close_matches(pattern.rstrip(".*"), known, n=3, cutoff=0.5)
        remedy = f"the closest are {', '.join(close)}" if close else f"names begin with {', '.join(_tops(names))}"
        mistakes.append(f"{key}: no parameter or module is called '{pattern}'; {remedy}")
    return found


def _with_modules(name: str) -> Iterator[str]:
    """head.a.weight -> head, head.a, head.a.weight."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _tops(names: Mapping[str, bool]) -> list[str]:
    """What is there, two levels down: model.encoder, model.embedding, head.weight."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _depths(train_step: nn.Module) -> dict[str, int]:
    """Name of each parameter in the encoder or below it -> its layer, counted from the top. Raises UserError."""
    model = train_step.model
    assert isinstance(model, nn.Module)
    encoder = model.encoder
    layers = getattr(encoder, "layers_from_input", None)
    if layers is None:
        raise UserError(
            f"trainer.layer_decay: {type(encoder).__name__} does not tell its layers; give it a property "
            "layers_from_input, a list with a tuple of modules and parameters for each layer, the lowest first, or "
            "set trainer.layer_decay=null"
        )
    depth_of_id = {
        id(parameter): depth
        for depth, layer in enumerate(reversed(layers))
        for part in layer
        for parameter in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    return {
        name: depth_of_id.get(id(parameter), len(layers))
        for name, parameter in train_step.named_parameters()
        if name.startswith(("model.features.", "model.encoder."))
    }


def _options(
    group: ParamGroup | None, layer_decay: float | None, depth: int, exempt: bool, lr: float | None
) -> dict[str, float]:
    """What differs from the optimizer's own settings."""
    options: dict[str, float] = {}
    own = group.lr if group is not None else None
    rate = lr if own is None else own
    if layer_decay is not None:
        if rate is None:
            raise ConfigError(["trainer.optimizer.lr: trainer.layer_decay goes by it; give it a value"])
        options["lr"] = rate * layer_decay**depth
    elif own is not None:
        options["lr"] = own
    if exempt:
        options["weight_decay"] = 0.0
    elif group is not None and group.weight_decay is not None:
        options["weight_decay"] = group.weight_decay
    return options


def _name(group: str, depth: int, exempt: bool) -> str:
    """default, default.top-1 (one layer below the top), default.no_decay."""
    return f"{group}{f'.top-{depth}' if depth else ''}{'.no_decay' if exempt else ''}"


def _batch_norms(train_step: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Every batch normalisation with statistics, and the parameters it goes by."""
    for name, module in train_step.named_modules():
        # Not an instance normalisation, which is of that class too and takes the statistics of each input.
        if not isinstance(module, nn.modules.batchnorm._NormBase) or not module.track_running_stats:
            continue
        parameters, around = list(module.parameters()), name
        while not parameters and around:
            around = around.rpartition(".")[0]
            parameters = list(train_step.get_submodule(around).parameters())
        yield module, parameters
