"""The same training by SpeechBrain and by spkexp: error rates after equal epochs and in equal time.

    python benchmarks/peer.py [--folder FOLDER] [--data ../shared/data] [--seeds 0 1 2] [--epochs 10] [--output FILE]

From the repository's root, with the study experiments/peer.yaml. SpeechBrain's side is benchmarks/peer_speechbrain.py,
ours `python -m spkexp.train experiments=peer`. Both begin with the weights that SpeechBrain draws, which
`spkexp.convert` takes over, and hear the same crops in the same batches. Each trains in a process of its own, with one
thread and without worker processes, in turns; the seconds are those of training alone, on the wall and on the
processor: reading, features and steps, without imports, set-up, validation and checkpoints. What SpeechBrain trained is
converted and scored by `spkexp.evaluate`, and FOLDER is a sweep for `spkexp.compare`. In the end SpeechBrain trains
anew in the time that ours took: with as many epochs as go into it, over which its learning rate goes up and down.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported, here and in the processes

import torch
from common import parser, write
from omegaconf import OmegaConf
from peer_speechbrain import Clock
from peer_speechbrain import train as train_speechbrain

from spkexp import build, checkpoint, corpus, experiment, run_folder, train
from spkexp.compose import compose_config
from spkexp.conversion.conversion import Request, convert
from spkexp.cost.macs import count_macs
from spkexp.cost.workload import Workload
from spkexp.evaluation import Request as Trials
from spkexp.evaluation import evaluate
from spkexp.meter import Meter
from spkexp.records import FINISHED, Record, Ticket
from spkexp.results import MACS_SECONDS

OURS, THEIRS, IN_TIME = "spkexp", "speechbrain", "speechbrain-in-time"


def train_spkexp(folder: Path, overrides: list[str]) -> None:
    """`python -m spkexp.train OVERRIDES`, with its seconds on the processor, too."""
    clock = Clock()

    class Timed(Meter):
        def resume_clock(self) -> None:
            super().resume_clock()
            clock.start()

        def record(self, *arguments: Any) -> float:
            seconds = super().record(*arguments)
            clock.stop()
            return seconds

    experiment.Meter = Timed
    sys.argv = ["spkexp.train", *overrides, f"run_dir='{folder}'"]
    try:
        train.main()
    finally:
        clock.write(folder)


def finish(folder: Path, overrides: list[str]) -> None:
    """Make what SpeechBrain trained a run of spkexp: its best checkpoint converted, scored as any run is."""
    cfg = train.with_absolute_paths(compose_config(overrides))
    best = json.loads((folder / "best.json").read_text())
    convert(Request("speechbrain", best["path"], folder / "converted", None, ()))
    model, _, _ = build.trained_model(folder / "converted")
    checkpoint.save_portable(folder / "checkpoints" / "best", model, None, cfg, [])
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    run_folder.record_environment(folder, cfg)
    clock = json.loads((folder / "clock.json").read_text())
    steps = _lines(folder)[-1]["step"]
    results = {"model": cfg.names.model, "data": cfg.names.data, "seed": cfg.seed}
    results |= {"parameters": sum(p.numel() for p in model.parameters()), "steps": steps, "trials": {}}
    results["macs"] = count_macs(Workload(model, MACS_SECONDS, "fp32")).model
    results |= {"train_seconds": clock["wall"], "utterances_per_second": steps * cfg.trainer.batch_size / clock["wall"]}
    (folder / "results.json").write_text(json.dumps(results))
    evaluate(str(folder), Trials(None, None, None, (), ()), None, torch.device("cpu"))
    found = json.loads((folder / "results.json").read_text())["trials"]["val"]["eer"]
    if abs(found - best["eer"]) > 2e-3:  # some trials may change places by rounding
        raise SystemExit(f"{folder}: val EER {found} after the conversion, and {best['eer']} in SpeechBrain")


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(system: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train in a process of its own; what it took, and the error rates."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--train", system, str(folder), *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    total, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if system != OURS:
        finish(folder, overrides)
    clock, results = (json.loads((folder / name).read_text()) for name in ("clock.json", "results.json"))
    epochs = [line for line in _lines(folder) if "val" in line]
    found = {
        "seed": results["seed"],
        "epochs": len(epochs),
        "steps": results["steps"],
        "test_eer": round(results["trials"]["test"]["eer"], 4),
        "train_seconds": round(clock["wall"], 1),
        "train_cpu_seconds": round(clock["cpu"], 1),
        "seconds_before": round(clock["begin"] - begin, 1),
        "seconds_of_all": round(total, 1),
        "cpu_seconds_of_all": round(sum(after[:2]) - sum(before[:2]), 1),
        "val": [{"seconds": round(line["seconds"], 1), "eer": round(line["val"]["eer"], 4)} for line in epochs],
    }
    print(folder.name, {key: value for key, value in found.items() if key != "val"}, file=sys.stderr)
    return found


def losses_differ(folder: Path, seeds: list[int]) -> dict[str, float]:
    """Of the training losses of both systems at the same steps: the difference, relative, the largest of the seeds."""
    found: dict[str, float] = {}
    for seed in seeds:
        ours, theirs = (
            [line["train"]["loss"] for line in _lines(folder / f"{system}-{seed}") if "train" in line]
            for system in (OURS, THEIRS)
        )
        stretches = {"step 1": slice(1), "steps 2 to 5": slice(1, 5), "steps 6 to 10": slice(5, 10)}
        stretches |= {"the last 30 steps": slice(-30, None)}
        for name, steps in stretches.items():
            differs = abs(mean(ours[steps]) / mean(theirs[steps]) - 1)
            found[name] = max(found.get(name, 0.0), float(f"{differs:.1e}"))
    return found


def main() -> None:
    arguments = parser(__doc__, "peer")
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    arguments.add_argument(
        "--folder", type=Path, default=Path("runs", "sweeps", f"peer-{now}"), help="a new one, for the runs"
    )
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the recordings")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # for the processes
    given = arguments.parse_args()
    if given.train:
        system, place, *overrides = given.train
        (train_spkexp if system == OURS else train_speechbrain)(Path(place), overrides)
        return
    folder: Path = given.folder.absolute()
    folder.mkdir(parents=True)
    # The initial weights in one place for all seeds, which are one row of a table then.
    common = ["experiments=peer", f"data.root='{given.data.absolute()}'", f"init_from='{folder}/initial'"]
    cfg = compose_config([*common, "seed=0"])
    steps = len(corpus.data(cfg).train) // cfg.trainer.batch_size

    start, host, pid = datetime.now().isoformat(), platform.node(), os.getpid()
    Ticket(start, sys.orig_argv, host, pid, False, None).write(folder)
    numbers = itertools.count()

    def trained(system: str, seed: int, epochs: int) -> dict[str, Any]:
        own = [f"seed={seed}", f"trainer.epochs={epochs}", f"trainer.schedule.half_cycle_steps={epochs * steps // 2}"]
        overrides = [*common, *own, "trainer.log_every=1", *([] if system == OURS else [f"names.model={system}"])]
        place = folder / f"{system}-{seed}"
        found = run(system, place, overrides)
        seconds = found["seconds_of_all"]
        Record(next(numbers), overrides, FINISHED, None, str(place), None, seconds, start, host, pid).write(folder)
        return found

    runs: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: [], IN_TIME: []}
    for seed in given.seeds:
        runs[THEIRS].append(trained(THEIRS, seed, given.epochs))
        shutil.rmtree(folder / "initial", ignore_errors=True)
        convert(Request("speechbrain", str(folder / f"{THEIRS}-{seed}" / "initial"), folder / "initial", None, ()))
        runs[OURS].append(trained(OURS, seed, given.epochs))
    ours, theirs = (mean(one["train_cpu_seconds"] for one in runs[system]) for system in (OURS, THEIRS))
    if 0 < (epochs := round(given.epochs * ours / theirs)) < given.epochs:
        runs[IN_TIME] = [trained(IN_TIME, seed, epochs) for seed in given.seeds]
    write(
        given.output,
        "the same training by spkexp and by SpeechBrain, in turns, with one thread; EER on unseen speakers",
        {
            "steps_per_epoch": steps,
            "batch_size": cfg.trainer.batch_size,
            "times_as_fast_by_cpu_seconds": round(theirs / ours, 2),
            "losses_differ_by": losses_differ(folder, given.seeds),
            "mean_test_eer": {
                system: round(mean(one["test_eer"] for one in own), 4) for system, own in runs.items() if own
            },
            "runs": runs,
        },
        "torch",
        "speechbrain",
    )
    print(f"runs: {given.folder}")


if __name__ == "__main__":
    main()
