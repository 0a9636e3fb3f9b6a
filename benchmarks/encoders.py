"""Training speed of encoders on a CPU beside the same networks of WeSpeaker and SpeechBrain.

    SPKEXP_WESPEAKER=/path/to/a/checkout python benchmarks/encoders.py [--rounds 5] [--output FILE]

Forward, backward and a step of SGD on features of 32 utterances of 2 s (200 frames), the same for both; utterances a
second. Every measurement is a process of its own, the median of its steps after those that warm up; all cases take
turns, and the median over the rounds is written. Ours runs as `spkexp.train` runs it: it keeps freed memory
(`spkexp.allocator`). Peers that are not there are left out, by name.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from common import parser, write
from torch import Tensor, nn

from spkexp import build
from spkexp.allocator import keep_freed_memory
from spkexp.compose import compose_config

BATCH, FRAMES, WARM_UP, STEPS = 32, 200, 2, 3
SPEECHBRAIN = ["model=ecapa", "model.encoder.aggregation_channels=3072", "model.encoder.aggregation_norm=true"]
SPEECHBRAIN += ["model.encoder.padding=reflect", "model/pooling=attentive_statistics_speechbrain"]
# name of the case: overrides of ours
OURS = {
    "ecapa": ["model=ecapa"],
    "ecapa, speechbrain's": SPEECHBRAIN,
    "resnet34": ["model=resnet34"],
    "campplus": ["model=campplus"],
    "redimnet_b2": ["model=redimnet_b2", "model.encoder.strides=[1,2,1,2,1,2]"],  # as WeSpeaker has it
}
# name of the case: module and class of WeSpeaker, its arguments
WESPEAKER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ecapa": ("ecapa_tdnn", "ECAPA_TDNN_GLOB_c1024", {"feat_dim": 80, "embed_dim": 192, "pooling_func": "ASTP"}),
    "resnet34": ("resnet", "ResNet34", {"feat_dim": 80, "embed_dim": 256, "pooling_func": "TSTP"}),
    "campplus": ("campplus", "CAMPPlus", {"feat_dim": 80, "embed_dim": 512, "pooling_func": "TSTP"}),
    "redimnet_b2": ("redimnet", "ReDimNetB2", {"feat_dim": 72, "embed_dim": 192, "pooling_func": "ASTP"}),
}


def ours(case: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], int]:
    keep_freed_memory()
    model = build.model(compose_config(OURS[case]).model)
    lengths = torch.full((BATCH,), FRAMES)
    size: int = model.features.out_channels  # type: ignore[assignment]
    return model, lambda features: model.embed(features, lengths), size


def wespeaker(case: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], int]:
    package = ModuleType("wespeaker")  # its own __init__ imports tools for data
    package.__path__ = [str(Path(os.environ["SPKEXP_WESPEAKER"]) / "wespeaker")]
    sys.modules["wespeaker"] = package
    module, name, arguments = WESPEAKER[case]
    model = getattr(__import__(f"wespeaker.models.{module}", fromlist=[name]), name)(**arguments)

    def forward(features: Tensor) -> Tensor:
        output = model(features.mT)
        return output[-1] if isinstance(output, tuple) else output

    return model, forward, arguments["feat_dim"]


def speechbrain(case: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], int]:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    model = ECAPA_TDNN(80, channels=[1024] * 4 + [3072], lin_neurons=192)
    return model, lambda features: model(features.mT), 80


# Parameters that ours has more than theirs: affine batch normalisation and a bias at the end of CAM++; four weights for
# each of 1152 channels in ReDimNet's sums, less a scalar of theirs.
SPARE = {"campplus": 1_536, "redimnet_b2": 4_607}
SIDES = {"ours": ours, "wespeaker": wespeaker, "speechbrain": speechbrain}


def measure(side: str, case: str, precision: str) -> float:
    """Utterances a second of this process."""
    torch.manual_seed(0)
    model, forward, size = SIDES[side](case)
    model.train()
    features = torch.randn(BATCH, size, FRAMES)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            embedding = forward(features)
        embedding.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return BATCH / median(seconds[WARM_UP:])


def check_sizes(keys: list[tuple[str, str, str]]) -> None:
    """The networks of a case are the same, or this compares nothing."""
    for side, case, precision in keys:
        if side != "ours" and precision == "fp32":
            sizes = [sum(p.numel() for p in SIDES[name](case)[0].parameters()) for name in ("ours", side)]
            if sizes[0] - sizes[1] != SPARE.get(case, 0):
                raise SystemExit(f"{case}: ours has {sizes[0]} parameters, {side}'s {sizes[1]}")


def cases() -> list[tuple[str, str, str]]:
    """(side, case, precision) of all that can be measured here."""
    found = [("ours", case, precision) for case in OURS for precision in ("fp32", "bf16")]
    if "SPKEXP_WESPEAKER" in os.environ:
        found += [("wespeaker", case, "fp32") for case in WESPEAKER]
    else:
        print("without WeSpeaker: set SPKEXP_WESPEAKER to a checkout of it", file=sys.stderr)
    return [*found, ("speechbrain", "ecapa, speechbrain's", "fp32")]


def main() -> None:
    arguments = parser(__doc__, "encoders")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # side, case, precision: for the processes
    given = arguments.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    rates: dict[tuple[str, str, str], list[float]] = {key: [] for key in cases()}
    check_sizes(list(rates))
    for number in range(given.rounds):
        for key, values in rates.items():
            command = [sys.executable, __file__, "--measure", *key]
            values.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(number, *key, f"{values[-1]:.1f}", file=sys.stderr)
    medians = {key: median(values) for key, values in rates.items()}
    table: dict[str, dict[str, float]] = {}
    for (side, case, precision), rate in medians.items():
        table.setdefault(case, {})[f"{side} {precision}"] = round(rate, 1)
    for case, row in table.items():
        for side in ("wespeaker", "speechbrain"):
            if (side, case, "fp32") in medians:
                for precision in ("fp32", "bf16"):
                    ratio = medians["ours", case, precision] / medians[side, case, "fp32"]
                    row[f"ours {precision} / {side} fp32"] = round(ratio, 2)
        row["bf16 / fp32"] = round(medians["ours", case, "bf16"] / medians["ours", case, "fp32"], 2)
    write(
        given.output,
        f"training, utterances/s, batch {BATCH} of {FRAMES} frames, {torch.get_num_threads()} threads",
        {"rounds": given.rounds, "steps": STEPS, "results": table},
        "torch",
        "speechbrain",
    )


if __name__ == "__main__":
    main()
