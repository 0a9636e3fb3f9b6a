"""Multiply-accumulates of a forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from spkexp.cost.workload import Workload, module_calls
from spkexp.ops.counting import counting


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Floating-point operations from the shapes of the arguments."""
    return sdpa_flop_count(query, key, value)


# The attention kernel of CPUs, which torch's counter does not know.
_MORE_OPERATIONS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class Macs:
    """For one utterance.

    model: from the features to the embedding, which is what papers state.
    features: of the feature extractor.
    by_module: dotted name -> with everything inside it.
    declared: operation -> of `model`, what operations state themselves (`spkexp.ops.counting`).
    """

    model: int
    features: int
    by_module: dict[str, int]
    declared: dict[str, int]


def count_macs(workload: Workload) -> Macs:
    """Count matrix products, convolutions, attention and what operations declare; nothing is computed.

    Elementwise operations, normalisations and the Fourier transform of the features are not counted.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_OPERATIONS)
    tensors, waveform = workload.on_paper(1)
    with (
        counting(lambda: counter.get_total_flops() // 2) as tally,
        module_calls(workload.model, tally.total) as calls,
        counter,
    ):
        workload.run(waveform, training=False, tensors=tensors)
    by_module: dict[str, int] = {}
    for call in calls:
        by_module[call.name] = by_module.get(call.name, 0) + call.after - call.before
    features = by_module.get("features", 0)
    return Macs(tally.total() - features, features, by_module, tally.by_operation)
