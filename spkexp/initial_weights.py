"""The weights that a run starts from: those of another run or of a published model, as far as they fit (init_from)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from spkexp import checkpoint, distributed
from spkexp.changes import flat
from spkexp.errors import UserError
from spkexp.loss_setup import take_classes
from spkexp.losses.head import Loss
from spkexp.models import lora

log = logging.getLogger(__name__)
LISTED = 20  # tensors that the report names one by one, of each kind
LORA = ("lora_rank", "lora_alpha", "lora_match")  # of an encoder: what decides whether two mean the same


class Fit(NamedTuple):
    """How the tensors of one model fit another; each list in the order of the model that it is of.

    taken: names of tensors that both have, in one shape; fresh: of the model's own that keep their initial values;
    skipped: of the source's that are used for nothing. A name whose shapes differ is in both of these.
    """

    taken: list[str]
    fresh: list[str]
    skipped: list[str]

    @property
    def partial(self) -> bool:
        """Whether anything is amiss: LoRA that is added changes nothing at first."""
        return bool(self.skipped) or not all(lora.is_lora(name) for name in self.fresh)


def fit(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Fit:
    same = {name for name in own if name in theirs and own[name].shape == theirs[name].shape}
    return Fit(
        [name for name in own if name in same],
        [name for name in own if name not in same],
        [name for name in theirs if name not in same],
    )


def take(cfg: DictConfig, model: nn.Module, announce: bool) -> "Source":
    """Give `model`, which cfg.model describes, the weights of cfg.init_from. Raises UserError where nothing fits.

    announce: say what was taken, from where. Every process calls this.
    """
    folder = distributed.main_first(lambda: checkpoint.find(cfg.init_from))
    config = checkpoint.load_config(folder, tuple(cfg.trust))
    tensors, head = checkpoint.load_tensors(folder)
    merged = _without_other_lora(cfg, config, tensors)
    own = model.state_dict()
    found = fit(own, tensors)
    encoder = {name for name, value in model.named_parameters() if name.startswith("encoder.") and value.dim() > 1}
    if encoder and not encoder & set(found.taken):
        raise UserError(
            f"init_from: {folder} is of {_name(config)}, of which nothing fits the encoder of {_name(cfg)}; leave "
            "model=… out to have its model"
        )
    with torch.no_grad():
        for name in found.taken:
            own[name].copy_(tensors[name])
    if announce and distributed.is_main():
        if merged:
            log.info("init_from: the LoRA of %s, another than this model's, is merged into its weights", folder)
        for line in differing_features(cfg, config):
            log.warning("init_from: %s", line)
        level = logging.WARNING if found.partial else logging.INFO
        log.log(level, "init_from: %s of %s\n%s", _name(config), folder, report(found, own, tensors))
    return Source(folder, head)


class Source(NamedTuple):
    """Where weights came from, and the tensors of its loss."""

    folder: Path
    head: dict[str, Tensor]

    def take_classes(self, loss: Loss, labels: list[str], announce: bool) -> None:
        """Let `loss`, whose classes are `labels`, go on with the classes that the source knows."""
        theirs = checkpoint.load_labels(self.folder) if self.head else []
        take_classes(loss, self.head, labels, theirs, announce)


def _name(cfg: DictConfig) -> str:
    """ecapa_small (spkexp.models.ecapa.ECAPA)."""
    return f"{checkpoint.named(cfg, 'model')} ({cfg.model.encoder._target_})"


def _without_other_lora(cfg: DictConfig, config: DictConfig, tensors: dict[str, Tensor]) -> bool:
    """Merge the source's LoRA into its weights unless this model has the very same one to go on with; whether it did.

    What was learnt there would be lost otherwise.
    """
    theirs, ours = (tuple(OmegaConf.select(c.model.encoder, key) for key in LORA) for c in (config, cfg))
    if not theirs[0] or theirs == ours:
        return False
    lora.merge_tensors(tensors, float(config.model.encoder.lora_alpha))
    return True


def differing_features(cfg: DictConfig, theirs: DictConfig) -> list[str]:
    """Settings of the front end in which the two differ, in words."""
    ours, other = (flat(c.model.features) for c in (cfg, theirs))
    return [
        f"model.features.{key} is {_value(ours, key)}, and the weights were trained with {_value(other, key)}: a front "
        "end belongs to its weights"
        for key in {**ours, **other}
        if ours.get(key) != other.get(key)
    ]


def _value(values: Mapping[str, object], key: str) -> object:
    return values.get(key, "not there")


def report(found: Fit, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """Tensors, and the numbers in them, by module; and by name what was not taken, with its shapes."""
    rows: list[tuple[str, ...]] = [("module", "taken", "re-initialised", "skipped")]
    counts = [(found.taken, own), (found.fresh, own), (found.skipped, theirs)]
    modules = dict.fromkeys(name.partition(".")[0] for name in (*own, *theirs))
    for module in modules:
        rows.append((module, *(_count(names, tensors, module) for names, tensors in counts)))
    rows.append(("all", *(_count(names, tensors) for names, tensors in counts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    fresh = [name for name in found.fresh if not lora.is_lora(name)]
    lines += _listed("re-initialised", [(name, _shapes(name, own, theirs)) for name in fresh])
    if len(fresh) < len(found.fresh):
        lines.append(f"re-initialised: {len(found.fresh) - len(fresh)} of LoRA, which begins as nothing")
    lines += _listed("skipped", [(name, _shape(theirs[name])) for name in found.skipped if name not in own])
    return "\n".join(f"  {line}" for line in lines)


def _count(names: list[str], tensors: Mapping[str, Tensor], module: str | None = None) -> str:
    sizes = [tensors[name].numel() for name in names if module is None or name.partition(".")[0] == module]
    return f"{len(sizes)} ({sum(sizes):,})" if sizes else "-"


def _listed(what: str, entries: list[tuple[str, str]]) -> list[str]:
    lines = [f"{what}: {name} {text}" for name, text in entries[:LISTED]]
    return lines + ([f"{what}: and {len(entries) - LISTED} more"] if len(entries) > LISTED else [])


def _shapes(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    there = f"there {_shape(theirs[name])}" if name in theirs else "not there"
    return f"{_shape(own[name])}, {there}"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
