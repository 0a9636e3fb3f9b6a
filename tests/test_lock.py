"""Two trainings in one folder are refused, and no death leaves a lock behind."""

import errno
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from spkexp.errors import UserError
from spkexp.lock import hold as hold_file

ROOT = Path(__file__).parents[1]
LOCK = ".lock"


def hold(folder: Path) -> AbstractContextManager[None]:
    return hold_file(folder / LOCK, f"{folder} is being trained by {{holder}}; wait for it", "get the right to write")


def holder(folder: Path, body: str) -> subprocess.Popen[str]:
    """A process that holds `folder` and runs `body`; it has printed a line when it holds it."""
    script = textwrap.dedent("""
        import os, sys, time
        from pathlib import Path
        from tests.test_lock import hold
        with hold(Path(sys.argv[1])):
    """) + textwrap.indent(textwrap.dedent(body), "    ")
    return subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "a run ü"
    made.mkdir()
    return made


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = holder(folder, "print('held', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_holder_is_told_who_the_first_is(folder: Path, other: subprocess.Popen[str]) -> None:
    expected = rf"a run ü is being trained by process {other.pid} on {platform.node()} since 20\d\d-.*; wait for it"
    for _ in range(2):  # asking does not free it
        with pytest.raises(UserError, match=expected), hold(folder):
            pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with hold(folder):
        assert f'"pid": {os.getpid()}' in (folder / LOCK).read_text()


def test_one_process_holds_it_once(folder: Path) -> None:
    with hold(folder):
        (folder / LOCK).read_bytes()  # with record locks, opening and closing the file would free it
        with pytest.raises(UserError, match=rf"process {os.getpid()} on"), hold(folder):
            pass
        with pytest.raises(UserError, match=rf"process {os.getpid()} on"), hold(folder):
            pass
    with hold(folder):
        pass


def test_a_forked_child_that_outlives_the_holder_does_not_keep_it(folder: Path) -> None:
    process = holder(
        folder,
        """
        if (child := os.fork()) == 0:
            try:
                os.write(1, b"forked\\n")  # a print may be two writes, and the other process's come between
                time.sleep(60)
            finally:
                os._exit(0)
        os.write(1, b"%d\\n" % child)
        time.sleep(60)
        """,
    )
    assert process.stdout is not None
    lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    (child,) = (int(line) for line in lines - {"forked"})
    try:
        with pytest.raises(UserError, match=f"process {process.pid} on"), hold(folder):
            pass  # the child's closing frees nothing
        process.kill()
        process.wait()
        os.kill(child, 0)  # still there
        with hold(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_program_that_the_holder_started_does_not_keep_it(folder: Path) -> None:
    process = holder(
        folder,
        """
        import subprocess
        print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
        time.sleep(60)
        """,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with hold(folder):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_leaves_the_block_closes_no_file_of_its_own(folder: Path) -> None:
    with hold(folder):
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with pytest.raises(UserError, match="is being trained"), hold(folder):
                pass
        else:
            mine = os.open(os.devnull, os.O_RDONLY)  # takes the number that the lock had
    if child == 0:
        try:
            os.fstat(mine)
        except OSError:
            os._exit(1)
        os._exit(0)


def test_an_error_inside_frees_it(folder: Path) -> None:
    with pytest.raises(KeyError), hold(folder):
        raise KeyError
    with hold(folder):
        pass


def test_what_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/.lock: cannot be written: .*; get the right to write"),
        hold(tmp_path / "file"),
    ):
        pass
    with pytest.raises(UserError, match=r"/proc/.lock: cannot be written: "), hold(Path("/proc")):
        pass


def test_without_locks_a_warning_and_on(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)  # no file system here is without
    with caplog.at_level(logging.WARNING), hold(folder):
        pass
    assert f"{folder / LOCK}: the file system has no locks (No locks available)" in caplog.text


def test_a_lock_file_with_rubbish_in_it_harms_nobody(folder: Path) -> None:
    (folder / LOCK).write_bytes(b"\xff\xfe[")
    with hold(folder):
        (folder / LOCK).write_bytes(b"\xff\xfe[")
        with pytest.raises(UserError, match="is being trained by another process; wait"), hold(folder):
            pass


def test_without_a_word_for_it_the_holder_is_waited_for(folder: Path, other: subprocess.Popen[str]) -> None:
    got: list[str] = []

    def work() -> None:
        with hold_file(folder / LOCK, None, ""):
            got.append("mine")

    waiting = threading.Thread(target=work)
    waiting.start()
    waiting.join(0.3)
    assert got == []
    other.kill()
    waiting.join(60)
    assert got == ["mine"]
