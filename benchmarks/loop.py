"""The training loop against the bare model: utterances per second of both, in one process, taking turns.

    python benchmarks/loop.py [--rounds 5] [--steps 30] [--output FILE]

The loop is `spkexp.train`'s own: reading random crops from wav files, checks, meters, clipping, logging every step.
The bare model does forward, backward and the optimizer's step on one batch that lies in memory.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from common import parser, write
from omegaconf import OmegaConf

from spkexp.compose import compose_config
from spkexp.experiment import Experiment
from spkexp.interrupt import StopRequest
from spkexp.sections import Trainer

CASES = {
    "ecapa_small, no copies": ["model=ecapa_small", "augment=none"],
    "ecapa_small, speed copies": ["model=ecapa_small", "augment=speed"],
    "xvector, no copies": ["model=xvector", "augment=none"],
}


def experiment(folder: Path, overrides: list[str], steps: int) -> Experiment:
    folder.mkdir()
    common = [f"run_dir='{folder}'", f"data.root='{folder.parent}/voices'", f"trainer.max_steps={steps}"]
    common += ["trainer.validate_every=1000", "trainer.checkpoint_minutes=null", "trainer.log_every=1"]
    cfg = compose_config([*overrides, *common])
    settings = Trainer.model_validate(OmegaConf.to_container(cfg.trainer))
    built = Experiment(cfg, settings, torch.device("cpu"), folder, resumed=False, stop=StopRequest())
    built.trainer.validation.measure = None
    return built


def loop_rate(built: Experiment) -> float:
    """Utterances a second of Trainer.fit."""
    built.trainer.fit()
    position = built.trainer.position
    return position.step * built.cfg.trainer.batch_size / position.seconds


def bare_rate(built: Experiment, steps: int) -> float:
    """Utterances a second of forward, backward and step on one batch."""
    batch = next(built.trainer.batches(0))
    module, optimizer = built.train_step.train(), built.trainer.optimizer
    begin = time.monotonic()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        module(batch.waveform, batch.lengths, batch.label, batch.key, batch.material, step).loss.backward()
        optimizer.step()
    return steps * len(batch.item) / (time.monotonic() - begin)


def main() -> None:
    arguments = parser(__doc__, "loop")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=30)
    given = arguments.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for case, overrides in CASES.items():
            pairs = []
            for turn in range(given.rounds + 1):
                folder = Path(name, f"{case} {turn}")
                built = experiment(folder, overrides, given.steps)
                bare_rate(built, 3)
                pairs.append((loop_rate(built), bare_rate(built, given.steps)))
            pairs = pairs[1:]  # the first round warms up
            figures[case] = {
                "loop_utterances_per_second": round(median(a for a, _ in pairs), 1),
                "bare_utterances_per_second": round(median(b for _, b in pairs), 1),
                "ratio": round(median(a / b for a, b in pairs), 3),
                "ratios": [round(a / b, 3) for a, b in pairs],
            }
    write(
        given.output,
        "spkexp.train's loop against the bare model; batch of 32, crops of 2 s, synthetic voices as wav",
        {"asked_ratio_at_least": 0.95, "rounds": given.rounds, "steps": given.steps, "results": figures},
        "torch",
    )


if __name__ == "__main__":
    main()
