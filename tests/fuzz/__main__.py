"""`python -m tests.fuzz [seconds=60] [seed=0] [TARGET ...]`: many wrong files, and how many of each were tried.

Each target runs in a process of its own, with a bound on its memory and on the time of each input. What brings it down
is kept in fuzz-findings/TARGET/. Exit code 1: there are some.
"""

import faulthandler
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

MEMORY_BYTES = 3 << 30  # beside what the process has at its start
INPUT_SECONDS = 10
FINDINGS = Path("fuzz-findings")


def main() -> None:
    """All targets, or those that are named."""
    from tests.fuzz.targets import TARGETS

    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    names = [word for word in sys.argv[1:] if "=" not in word] or list(TARGETS)
    seconds, seed = float(options.get("seconds", 60)), int(options.get("seed", 0))
    total, bad = 0, 0
    for name in names:
        tried, found = _many(name, seconds, seed)
        total, bad = total + tried, bad + found
        print(f"{name:12s} {tried:9,d} inputs  {found} findings", flush=True)
    print(f"{'all':12s} {total:9,d} inputs  {bad} findings")
    sys.exit(bool(bad))


def _many(name: str, seconds: float, seed: int) -> tuple[int, int]:
    """(inputs tried, findings) of `seconds` of a target: a child that dies is started again behind its last input."""
    end, tried, found = time.monotonic() + seconds, 0, 0
    while (left := end - time.monotonic()) > 0 and found < 20:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.fuzz.child", name, str(left), str(seed), str(tried), folder]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            report = Path(folder, "tried")
            now = int(report.read_text() or tried) if report.is_file() else tried
            if done.returncode != 0:
                found += 1
                _keep(name, now, Path(folder, "input"), done)
            tried = now + 1 if done.returncode != 0 else now
            if done.returncode == 0 or not report.is_file():
                break
    return tried, found


def _keep(name: str, number: int, content: Path, done: "subprocess.CompletedProcess[str]") -> None:
    place = FINDINGS / name
    place.mkdir(parents=True, exist_ok=True)
    if content.is_file():
        shutil.copyfile(content, place / f"{number}.input")
    (place / f"{number}.txt").write_text(f"exit code {done.returncode}\n{done.stderr[-6000:]}")


def child(name: str, seconds: float, seed: int, first: int, place: Path) -> None:
    """Try inputs from number `first` on; the number and the content of the one at hand lie in `place`."""
    from tests.fuzz.mutations import drawn
    from tests.fuzz.targets import seeds, try_one

    faulthandler.enable()
    known = seeds(name)
    for content in known:  # what is imported on the way counts as the beginning
        (place / "work").mkdir(exist_ok=True)
        try_one(name, content, place / "work")
    has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end, number = time.monotonic() + seconds, first
    with (place / "tried").open("w") as report:
        while time.monotonic() < end:
            content = drawn(Random(seed * 1_000_003 + number), known)
            (place / "input").write_bytes(content)
            report.seek(0)
            report.write(str(number))
            report.flush()
            faulthandler.dump_traceback_later(INPUT_SECONDS, exit=True)  # also where no Python runs
            try_one(name, content, place / "work")
            faulthandler.cancel_dump_traceback_later()
            number += 1
        report.seek(0)
        report.write(str(number))


if __name__ == "__main__":
    main()
