"""What saving a checkpoint costs: seconds, where they go, and what that makes of a training that saves every minute.

    python benchmarks/checkpoint.py [--rounds 7] [--folder DIR] [--output FILE]

Each save replaces the one before, as in a training, with the state of AdamW. The models take turns. Checksums are
computed while the disk is flushed, so the parts add up to more than the whole. The seconds of CPU time, of all threads,
and the load average tell whether others used the machine.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from common import parser, write
from omegaconf import DictConfig
from torch import nn

from spkexp import build, checkpoint, durable
from spkexp.compose import compose_config

CASES = {"ecapa_small": 20, "ecapa": 5994, "resnet34": 5994}  # model: classes
# What of `save` each part is: (module, function).
PARTS = {
    "copy_to_cpu": (checkpoint, "_tensors"),
    "write_model": (checkpoint, "save_file"),
    "write_state": (torch, "save"),
    "hash": (durable, "digest"),
    "flush": (durable, "flush"),
    "replace": (durable, "replace"),
}


class Case:
    """A model with a head, and the state of an optimizer that has made a step."""

    def __init__(self, name: str, classes: int) -> None:
        self.config: DictConfig = compose_config([f"model={name}", "data=synthetic"])
        self.labels = [f"id{index:05d}" for index in range(classes)]
        self.model = build.model(self.config.model)
        run_time = {"num_classes": classes, "class_counts": torch.ones(classes, dtype=torch.int64)}
        self.head: nn.Module = build.build(
            self.config.loss, "loss", embedding_size=self.model.embedding_size, steps_per_epoch=1, **run_time
        )
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()

    def save(self, folder: Path) -> dict[str, float]:
        """Seconds of one save and of its parts."""
        state = {"step": 1, "optimizer": self.optimizer.state_dict()}
        with timed() as seconds:
            begin, cpu = time.perf_counter(), time.process_time()
            checkpoint.save(folder, self.model, self.head, self.config, self.labels, state)
            seconds["whole"], seconds["cpu"] = time.perf_counter() - begin, time.process_time() - cpu
        return seconds


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Adds up the seconds of PARTS inside."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                seconds[part] += time.perf_counter() - begin

        return call

    patches = [
        patch.object(module, name, clocked(part, getattr(module, name))) for part, (module, name) in PARTS.items()
    ]
    for each in patches:
        each.start()
    try:
        yield seconds
    finally:
        for each in patches:
            each.stop()


def main() -> None:
    arguments = parser(__doc__, "checkpoint")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--folder", type=Path, help="on the disk to be measured; by default that of temporary files")
    given = arguments.parse_args()
    cases = {name: Case(name, classes) for name, classes in CASES.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    figures = {}
    with TemporaryDirectory(dir=given.folder) as place:
        for turn in range(given.rounds + 2):
            for name, case in cases.items():
                seconds = case.save(Path(place, name, "checkpoints", "last"))
                if turn >= 2:  # from the third on there is one to remove
                    rounds[name].append(seconds)
        for name, measured in rounds.items():
            middle = {part: round(median(seconds[part] for seconds in measured), 4) for part in measured[0]}
            files = Path(place, name, "checkpoints", "last").iterdir()
            figures[name] = {
                "classes": CASES[name],
                "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
                "seconds": middle.pop("whole"),
                "cpu_seconds": middle.pop("cpu"),
                "runs": [round(seconds["whole"], 3) for seconds in measured],
                "parts": middle,
                "share_of_a_minute": round(median(seconds["whole"] for seconds in measured) / 60, 5),
            }
    write(
        given.output,
        "seconds of saving a checkpoint with AdamW's state from CPU memory; share of a minute is what a training that "
        "saves every minute loses",
        {
            "asked_share_at_most": 0.01,
            "rounds": given.rounds,
            "load_average": round(os.getloadavg()[0], 1),
            "results": figures,
        },
        "torch",
        "safetensors",
    )


if __name__ == "__main__":
    main()
