"""A process that makes no progress: what it says, when, and that it ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from spkexp.watchdog import Watchdog

ROOT = Path(__file__).parents[1]
PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from spkexp import watchdog
watchdog._STUCK_SECONDS = 1.5
with watchdog.Watchdog(1 / 60, Path(sys.argv[2])) as dog:
    for step in range(8):
        time.sleep(0.2)
        dog.beat(f"step {step}")
    with dog.pause("the long phase"):
        time.sleep(1.5)
    began = time.monotonic()
    if sys.argv[1] == "hang":
        time.sleep(60)
    elif sys.argv[1] == "hold":
        ctypes.PyDLL(None).sleep(60)  # keeps the interpreter to itself
print("alive")
"""


def run(mode: str, folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", PROGRAM, mode, str(folder)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=50)


def test_a_hanging_process_says_where_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "rün 1"
    done = run("hang", folder)
    assert done.returncode == 1
    assert done.stdout == ""
    stack = (folder / "stacks" / "rank-0.txt").read_text(encoding="utf-8")
    assert done.stderr == stack
    assert "rank 0 of 1 on " in stack
    assert "has made no progress for 1 s since the long phase; it does not wait for another process" in stack
    assert "Thread MainThread:" in stack
    assert 'File "<string>", line 14, in <module>' in stack


@pytest.mark.slow
def test_a_process_that_holds_the_interpreter_ends(tmp_path: Path) -> None:
    done = run("hold", tmp_path)
    assert done.returncode == 1
    assert "Timeout (0:00:02.5" in done.stderr
    assert 'File "<string>", line 16 in <module>' in done.stderr


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file is in the way")
    done = run("hang", tmp_path)
    assert done.returncode == 1
    assert "has made no progress for 1 s since the long phase" in done.stderr


def test_progress_and_pauses_keep_a_process_alive(tmp_path: Path) -> None:
    with Watchdog(0.3 / 60, tmp_path) as dog:
        for step in range(8):
            time.sleep(0.1)
            dog.beat(f"step {step}")
        with dog.pause("a long phase"):
            time.sleep(0.8)
        time.sleep(0.1)
    time.sleep(0.5)  # not watched any more
    assert list(tmp_path.iterdir()) == []
