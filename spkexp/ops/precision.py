"""Where autocast must not reach."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """`with without_autocast(x.device):` computes in the types that tensors have, inside an autocast region too.

    In an exported graph, which has no such regions, it is nothing: torch.export could not write it to a file.
    """
    return nullcontext() if torch.compiler.is_exporting() else torch.autocast(device.type, enabled=False)
