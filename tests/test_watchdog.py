"""A process that makes no progress: what it says, when, and that it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from spkexp import watchdog
watchdog._STUCK_SECONDS = 0.5
with watchdog.Watchdog(1 / 60, Path(sys.argv[2])) as dog:
    for step in range(15):
        time.sleep(0.1)
        dog.beat(f"step {step}")
    with dog.pause("the long phase"):
        time.sleep(2)
    if sys.argv[1] == "hang":
        time.sleep(60)
    elif sys.argv[1] == "hold":
        ctypes.PyDLL(None).sleep(60)  # keeps the interpreter to itself
    elif sys.argv[1] == "suspend":
        print("ready", flush=True)
        sys.stdin.readline()
time.sleep(1.5)  # not watched any more
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
    assert 'File "<string>", line 13, in <module>' in stack


@pytest.mark.slow
def test_a_process_that_holds_the_interpreter_ends(tmp_path: Path) -> None:
    done = run("hold", tmp_path)
    assert done.returncode == -signal.SIGABRT
    assert "has kept the interpreter to itself for 2 s; it is aborted, with the stacks below" in done.stderr
    assert 'File "<string>", line 15 in <module>' in done.stderr


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("a file is in the way")
    done = run("hang", tmp_path)
    assert done.returncode == 1
    assert "has made no progress for 1 s since the long phase" in done.stderr


@pytest.mark.slow
def test_progress_pauses_and_suspension_keep_a_process_alive(tmp_path: Path) -> None:
    """Suspended as Ctrl-Z does it, with all that it started, and for longer than anything may take."""
    arguments = [sys.executable, "-c", PROGRAM, "suspend", str(tmp_path)]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(arguments, cwd=ROOT, text=True, start_new_session=True, **streams) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for send in (os.killpg, os.kill):
            send(process.pid, signal.SIGSTOP)
            time.sleep(2)
            send(process.pid, signal.SIGCONT)
        out, err = process.communicate("go on\n", timeout=60)
    assert (process.returncode, out, err) == (0, "alive\n", "")
    assert list(tmp_path.iterdir()) == []
