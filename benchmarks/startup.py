"""Seconds from `python -m spkexp.train` to the end of the first training step, and of `--help`; medians of 5 runs.

    python benchmarks/startup.py [--output FILE]

Each run is a process of its own with the disk cache warm; the voices are made before the first.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import parser, rounded, write

RUNS = 5


def first_step(folder: Path, voices: Path) -> float:
    """Seconds until the first line of metrics.jsonl; the run is ended then."""
    arguments = [f"run_dir={folder}", f"data.root={voices}", "trainer.log_every=1"]
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "spkexp.train", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before its first step")
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    process.kill()
    process.wait()
    return seconds


def help_page() -> float:
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "spkexp.train", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begin


def main() -> None:
    output = parser(__doc__, "startup").parse_args().output
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_step(folder / "warm", folder / "voices")
        training = [first_step(folder / str(run), folder / "voices") for run in range(RUNS)]
    pages = [help_page() for _ in range(RUNS)]
    write(
        output,
        "seconds from the command to the first training step, and of --help",
        {
            "first_step_seconds": {
                "asked_at_most": 8.0,
                "median": round(median(training), 2),
                "runs": rounded(training),
            },
            "help_seconds": {"asked_at_most": 1.5, "median": round(median(pages), 2), "runs": rounded(pages)},
        },
        "torch",
        "hydra-core",
    )


if __name__ == "__main__":
    main()
