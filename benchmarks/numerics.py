"""What the ways of computing bring: layout in memory, bf16, fused optimizers, torch.compile. Cases take turns.

    python benchmarks/numerics.py [--rounds 5] [--seconds 2] [--batch 8] [--quick] [--output FILE]

A step is forward and backward of the embedding, without features and head; of an optimizer, its step alone. --quick
leaves compilation out, which takes minutes.
"""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch
from common import parser, write
from torch import Tensor

from spkexp import build
from spkexp.allocator import keep_freed_memory
from spkexp.compose import compose_config
from spkexp.models import layers, redimnet
from spkexp.models.speaker import SpeakerModel
from spkexp.numerics import compile_encoder

LAYOUT = ["resnet18", "campplus", "redimnet_b2", "eres2netv2", "conv2d"]
PRECISION = ["ecapa_small", "resnet18", "transformer"]
COMPILED = ["xvector", "transformer"]
OPTIMIZERS = {"Adam": {"lr": 1e-3}, "AdamW": {"lr": 1e-3}, "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True}}
WAYS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "plain": {"foreach": False}}

as_chosen = layers.innermost_channels


def speaker_model(name: str) -> SpeakerModel:
    torch.manual_seed(0)
    return build.model(compose_config([f"model={name}"]).model).train()


def step(model: SpeakerModel, features: Tensor, bf16: bool = False) -> Tensor:
    model.zero_grad(set_to_none=True)
    autocast: AbstractContextManager[Any] = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
    with autocast:
        embedding = model.embed(features, torch.full((len(features),), features.shape[2]))
    embedding.float().square().mean().backward()
    return embedding.detach()


def in_turns(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each case, after a round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            begin = time.perf_counter()
            case()
            if turn:
                taken[name].append(1000 * (time.perf_counter() - begin))
    return {name: round(median(times), 1) for name, times in taken.items()}


def layout(model: SpeakerModel, features: Tensor, rounds: int) -> dict[str, float]:
    """Channels innermost where the model chooses so, against channels outermost always."""

    def case(innermost: Callable[[int], bool]) -> Callable[[], object]:
        def run() -> None:
            layers.innermost_channels = redimnet.innermost_channels = innermost
            step(model, features)

        return run

    found = in_turns({"as_chosen_ms": case(as_chosen), "outermost_ms": case(lambda channels: False)}, rounds)
    layers.innermost_channels = redimnet.innermost_channels = as_chosen
    return found | {"speedup": round(found["outermost_ms"] / found["as_chosen_ms"], 2)}


def precision(model: SpeakerModel, features: Tensor, rounds: int) -> dict[str, float]:
    found = in_turns(
        {"fp32_ms": lambda: step(model, features), "bf16_ms": lambda: step(model, features, bf16=True)}, rounds
    )
    return found | {"speedup": round(found["fp32_ms"] / found["bf16_ms"], 2)}


def compiled(model: SpeakerModel, features: Tensor, rounds: int) -> dict[str, float]:
    other = copy.deepcopy(model)
    compile_encoder(other, torch.device("cpu"))
    begin = time.perf_counter()
    step(other, features)
    first = time.perf_counter() - begin
    found = in_turns({"eager_ms": lambda: step(model, features), "compiled_ms": lambda: step(other, features)}, rounds)
    return {"first_step_s": round(first, 1), **found, "speedup": round(found["eager_ms"] / found["compiled_ms"], 2)}


def optimizers(rounds: int) -> dict[str, dict[str, float]]:
    """One step of ECAPA with 1024 channels, 14.7 M parameters."""
    model = speaker_model("ecapa")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return {
        name: in_turns(
            {
                f"{way}_ms": getattr(torch.optim, name)(model.parameters(), **settings, **options).step
                for way, options in WAYS.items()
            },
            rounds,
        )
        for name, settings in OPTIMIZERS.items()
    }


def main() -> None:
    arguments = parser(__doc__, "numerics")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=2.0)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--quick", action="store_true")
    given = arguments.parse_args()
    keep_freed_memory()
    torch._inductor.config.force_disable_caches = True  # what a first run waits for

    def each(measure: Callable[..., dict[str, float]], names: list[str]) -> dict[str, dict[str, float]]:
        found = {}
        for name in names:
            model = speaker_model(name)
            features = torch.randn(given.batch, int(model.features.out_channels), round(100 * given.seconds) - 2)
            found[name] = measure(model, features, given.rounds)
            print(measure.__name__, name, found[name], flush=True)
        return found

    figures = {
        "optimizer_step": optimizers(given.rounds),
        "layout": each(layout, LAYOUT),
        "bf16": each(precision, PRECISION),
        "compile": {} if given.quick else each(compiled, COMPILED),
    }
    settings = {"rounds": given.rounds, "batch": given.batch, "seconds": given.seconds}
    settings["threads"] = torch.get_num_threads()
    write(given.output, "ways of computing a training step", settings | {"results": figures}, "torch")


if __name__ == "__main__":
    main()
