"""What it costs that a job of a sweep is a launch of two processes: seconds until they have met, and of a whole run.

    python benchmarks/launch.py [--output FILE]

The launch is timed from `spkexp.launch.run` to the first line of the task in rank 0, the processes having joined; the
runs from the command to its end, a single step with its validation, with trainer.nproc=2 and without; medians of 5,
one after the other. On a machine that others use, the seconds of CPU time say more than those of the clock.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import parser, rounded, write
from omegaconf import DictConfig, OmegaConf

RUNS = 5


def joined(cfg: DictConfig, resumed: bool) -> None:
    """What the processes of a launch do."""
    from spkexp import distributed

    with distributed.processes("cpu"):
        if distributed.is_main():
            Path(cfg.file).write_text(str(time.time()))


def launch(folder: Path) -> float:
    from spkexp.launch import run

    file = folder / "joined"
    begin = time.time()
    run(OmegaConf.create({"file": str(file), "trainer": {"nproc": 2, "max_restarts": 0}}), False, "launch:joined")
    return float(file.read_text()) - begin


def one_step(folder: Path, voices: Path, nproc: str) -> tuple[float, float]:
    """Seconds by the clock and of CPU time, of a whole run."""
    arguments = [f"run_dir={folder}", f"data.root={voices}", "trainer.max_steps=1", f"trainer.nproc={nproc}"]
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "spkexp.train", *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - begin, cpu


def main() -> None:
    output = parser(__doc__, "launch").parse_args().output
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    runs: dict[str, list[tuple[float, float]]] = {"null": [], "2": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch(folder)  # the parent of a second job has imported torch
        launches = [launch(folder) for _ in range(RUNS)]
        one_step(folder / "warm", folder / "voices", "null")
        for number in range(RUNS):
            for nproc, found in runs.items():
                found.append(one_step(folder / f"{nproc}-{number}", folder / "voices", nproc))
    seconds = {nproc: [clock for clock, _ in found] for nproc, found in runs.items()}
    cpu = {nproc: median(seconds for _, seconds in found) for nproc, found in runs.items()}
    extra = median(seconds["2"]) - median(seconds["null"])
    write(
        output,
        "seconds until the two processes of a launch have met, and of a one-step run with trainer.nproc=2 and without",
        {
            "load_average": round(os.getloadavg()[1], 1),
            "joined_seconds": {"median": round(median(launches), 2), "runs": rounded(launches)},
            "run_seconds": {
                "nproc_null": round(median(seconds["null"]), 2),
                "nproc_2": round(median(seconds["2"]), 2),
                "extra": round(extra, 2),
                "asked_at_most": 6.0,
                "runs": {nproc: rounded(found) for nproc, found in seconds.items()},
            },
            "run_cpu_seconds": {f"nproc_{nproc}": round(found, 2) for nproc, found in cpu.items()},
        },
        "torch",
        "hydra-core",
    )


if __name__ == "__main__":
    main()
