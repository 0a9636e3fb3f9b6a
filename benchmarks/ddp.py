"""Training in two processes, with a core each, against one process on one core: utterances per second.

    python benchmarks/ddp.py [--model ecapa_512] [--batch 32] [--steps 10] [--rounds 5] [--output FILE]

Each is `spkexp.train` itself, from wav files, with the same batch in each process and one thread. They take turns, and
in each turn two single runs also share the machine without a word between them: what they lose is the machine's
(memory, caches, threads of one core), what the two processes of one run lose beyond that is DDP's.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import parser, write

WARM_UP = 2  # steps
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


def train_on_one_core(arguments: list[str]) -> None:
    """Be `python -m spkexp.train` on the core CORE, else that of this rank."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("CORE", os.environ.get("LOCAL_RANK", "0")))]})
    sys.argv = ["spkexp.train", *arguments]
    runpy.run_module("spkexp.train", run_name="__main__")


class Training:
    """One run under way; it ends when `rate` is asked for."""

    def __init__(self, folder: Path, processes: int, core: int | None, batch: int, given: list[str]) -> None:
        self.folder = folder
        launcher = [sys.executable] if processes == 1 else [*LAUNCHER, f"--nproc-per-node={processes}"]
        own = [f"run_dir='{folder}'", f"trainer.batch_size={batch * processes}"]
        self.process = subprocess.Popen(
            [*launcher, __file__, "--train", *given, *own],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | ({} if core is None else {"CORE": str(core)}),
            stdout=subprocess.DEVNULL,
            stderr=(folder.parent / "errors.txt").open("wb"),
            start_new_session=True,
        )

    def steps(self) -> list[dict[str, float]]:
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line)["train"] for line in lines if line.endswith("\n")]

    def rate(self, steps: int) -> float:
        """Utterances a second of the median step after the warm-up, over all its processes."""
        while len(self.steps()) < steps:
            if self.process.poll() is not None:
                sys.exit((self.folder.parent / "errors.txt").read_text())
            time.sleep(0.1)
        found = self.steps()[WARM_UP:steps]
        return median(entry["utterances_per_second"] for entry in found)

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measured(trainings: list[Training], steps: int) -> float:
    """Utterances a second of all of them together."""
    total = sum(training.rate(steps) for training in trainings)
    for training in trainings:
        training.end()
    return total


def main() -> None:
    arguments = parser(__doc__, "ddp")
    arguments.add_argument("--model", default="ecapa_512")
    arguments.add_argument("--batch", type=int, default=32, help="utterances a step of each process")
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two processes need two cores")
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        settings = [f"model={given.model}", f"data.root='{name}/voices'", "data.num_workers=0", "trainer.log_every=1"]
        settings += ["trainer.epochs=1000", "trainer.validate_every=1000", "trainer.checkpoint_minutes=null"]
        for turn in range(given.rounds + 1):

            def training(case: str, processes: int, core: int | None, turn: int = turn) -> Training:
                return Training(Path(name, f"{case} {turn}"), processes, core, given.batch, settings)

            steps = given.steps if turn else WARM_UP + 1  # the first turn makes the voices
            one = measured([training("one", 1, 0)], steps)
            two = measured([training("two", 2, None)], steps)
            apart = measured([training("a", 1, 0), training("b", 1, 1)], steps)
            rounds.append({"one": one, "two": two, "apart": apart})
    rounds = rounds[1:]
    write(
        given.output,
        f"spkexp.train of {given.model} in two processes (gloo) against one, a core and a thread each; "
        f"{given.batch} utterances of 2 s a step and process, synthetic voices as wav",
        {
            "asked_ratio_at_least": 0.9,
            "rounds": given.rounds,
            "steps": given.steps,
            "one_process_utterances_per_second": round(median(turn["one"] for turn in rounds), 2),
            "two_processes_utterances_per_second": round(median(turn["two"] for turn in rounds), 2),
            "two_single_runs_utterances_per_second": round(median(turn["apart"] for turn in rounds), 2),
            "ratio_to_twice_one": round(median(turn["two"] / (2 * turn["one"]) for turn in rounds), 3),
            "ratios": [round(turn["two"] / (2 * turn["one"]), 3) for turn in rounds],
            "two_single_runs_to_twice_one": round(median(turn["apart"] / (2 * turn["one"]) for turn in rounds), 3),
            "two_processes_to_two_single_runs": round(median(turn["two"] / turn["apart"] for turn in rounds), 3),
        },
        "torch",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_on_one_core(sys.argv[2:])
    else:
        main()
