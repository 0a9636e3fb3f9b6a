"""Low-rank adaptation: a linear layer of a trained network stays as it is and learns a small difference beside it.

Hu et al.: LoRA, Low-rank adaptation of large language models, ICLR 2022, section 4.1.
"""

import math
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

A, B = "lora_a", "lora_b"  # as a layer's two parameters are called


class LoraLinear(nn.Linear):
    """y = W x + b + (α / r) B A dropout(x): (…, in) -> (…, out); A (r, in) and B (out, r) learn, W and b do not.

    A begins with Kaiming's uniform initialisation as in the authors' code, B with 0, so that y begins as that of
    `linear`, whose parameters it takes over under their names.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scaling, self.dropout = alpha / rank, dropout
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training)
        return super().forward(x) + self.scaling * F.linear(F.linear(dropped, self.lora_a), self.lora_b)


def add(network: nn.Module, match: str, rank: int, alpha: float, dropout: float) -> None:
    """Make the linear layers of `network` whose dotted names `match` matches learn by LoRA alone.

    match: a glob whose * goes beyond dots; several with `|` between them. Raises ValueError for one without a match.
    """
    linear = {name: module for name, module in network.named_modules() if type(module) is nn.Linear}
    patterns = [pattern.strip() for pattern in match.split("|")]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ValueError(f"lora_match: no linear layer is called '{pattern}'; there are {_shown(list(linear))}")
    for name, module in linear.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            _put(network, name, LoraLinear(module, rank, alpha, dropout))


def _shown(names: list[str]) -> str:
    """One of each kind: layers.0.attention.q_proj stands for those of all layers."""
    kinds = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names}
    return ", ".join(sorted(kinds)) or "none"


@torch.no_grad()
def merge(network: nn.Module) -> int:
    """Put what LoRA learnt into the weights, W + (α / r) B A, and plain linear layers in its place; how many."""
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLinear)]
    for name, module in found:
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight, plain.bias = module.weight, module.bias
        plain.weight += module.scaling * module.lora_b @ module.lora_a
        _put(network, name, plain.train(module.training))
    return len(found)


def merge_tensors(tensors: dict[str, Tensor], alpha: float) -> None:
    """The same for a state_dict, in place: what is left has the names of a network without LoRA."""
    for name in [name for name in tensors if name.rpartition(".")[2] == A]:
        layer = name.removesuffix(A)
        a, b = tensors.pop(name), tensors.pop(f"{layer}{B}")
        tensors[f"{layer}weight"] = tensors[f"{layer}weight"] + alpha / len(a) * b @ a


def is_lora(name: str) -> bool:
    """Whether a parameter of this name belongs to LoRA."""
    return name.rpartition(".")[2] in (A, B)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
