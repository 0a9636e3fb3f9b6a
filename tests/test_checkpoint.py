"""A checkpoint is whole after a kill at any moment, a full disk included, and tells when the disk spoilt it."""

import ctypes
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from spkexp import checkpoint, durable, kept_weights
from spkexp.errors import UserError

CONFIG = OmegaConf.create({"model": {"_target_": "spkexp.models.speaker.SpeakerModel"}, "seed": 0})
FILES = ["SHA256SUMS", "config.yaml", "labels.json", "model.safetensors", "train_state.pt"]


def modules(value: float) -> tuple[nn.Module, nn.Module]:
    model, head = nn.Linear(300, 300), nn.Linear(3, 2)
    for parameter in (*model.parameters(), *head.parameters()):
        nn.init.constant_(parameter, value)
    return model, head


def save(folder: Path, value: float) -> None:
    ema = {"tensors": {"weight": torch.full((320, 320), value)}}
    state = {"step": int(value), "optimizer": {"state": {}}, "ema": ema}
    checkpoint.save(folder, *modules(value), CONFIG, ["a", "ü"], state)


def value_of(found: Path | None) -> float:
    """The one value that all tensors of a whole checkpoint hold."""
    assert found is not None
    assert checkpoint.verify(found) is None
    model, head = checkpoint.load_tensors(found)
    state = checkpoint.load_state(found)
    tensors = (*model.values(), *head.values(), *state["ema"]["tensors"].values())
    values = {float(v) for tensor in tensors for v in tensor.unique()}
    assert len(values) == 1
    assert state["step"] == next(iter(values))
    assert checkpoint.load_labels(found) == ["a", "ü"]
    assert checkpoint.load_config(found).seed == 0
    return next(iter(values))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "a run ü"


@pytest.fixture
def last(run: Path) -> Path:
    return run / "checkpoints" / "last"


def test_saves_and_replaces(run: Path, last: Path) -> None:
    save(last, 1.0)
    assert names(last.parent) == ["last"]
    for value in (2.0, 3.0):
        save(last, value)
        assert value_of(last) == value
        assert value_of(last.with_name("previous")) == value - 1
        assert names(last.parent) == ["last", "previous"]
    assert names(last) == FILES
    assert checkpoint.find(run) == last
    assert checkpoint.find(last) == last
    assert checkpoint.newest(run) == last


def test_the_best_keeps_no_previous(run: Path, last: Path) -> None:
    save(last, 1.0)
    for value in (1.0, 2.0):
        save(last.with_name("best"), value)
    assert names(last.parent) == ["best", "last"]
    assert value_of(last.with_name("best")) == 2.0
    assert checkpoint.find(run) == last.with_name("best")
    assert checkpoint.newest(run) == last


def test_coreutils_agree(last: Path) -> None:
    save(last, 1.0)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=last, capture_output=True, text=True)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"{name}: OK" for name in FILES[1:]]
    flip(last / "train_state.pt")
    assert subprocess.run(check, cwd=last, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", FILES[1:])
def test_damage_is_told(last: Path, name: str) -> None:
    save(last, 1.0)
    file = last / name
    whole = file.read_bytes()
    flip(file)
    assert checkpoint.verify(last) == f"{name} has changed since it was written (other checksum)"
    truncate(file)
    assert checkpoint.verify(last) == f"{name} is truncated: {len(whole) // 2} of {len(whole)} bytes"
    file.write_bytes(whole + b"\0")
    assert checkpoint.verify(last) == f"{name} has changed: {len(whole) + 1} of {len(whole)} bytes"
    file.unlink()
    assert checkpoint.verify(last) == f"{name} is missing"
    file.mkdir()
    assert checkpoint.verify(last) is not None
    file.rmdir()
    file.write_bytes(whole)
    assert checkpoint.verify(last) is None


def test_damaged_checksums_are_damage_and_none_are_not(last: Path) -> None:
    save(last, 1.0)
    sums = last / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[:-2]))
    assert checkpoint.verify(last) == "SHA256SUMS is damaged: it does not list train_state.pt"
    sums.write_bytes(b"")
    assert checkpoint.verify(last) == "SHA256SUMS is damaged: it does not list model.safetensors"
    sums.write_bytes(b"\xff\xfe")
    assert "SHA256SUMS cannot be read" in (checkpoint.verify(last) or "")
    sums.unlink()  # as earlier versions wrote them
    assert checkpoint.verify(last) is None
    (last / "model.safetensors").unlink()
    assert checkpoint.verify(last) == "model.safetensors is missing"


def test_a_folder_replaced_while_it_is_read_is_not_damaged(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(last, 1.0)
    digest, saved = durable.digest, []

    def slow(file: Path) -> str:
        if not saved:  # between the reading of the checksums and that of the first file a training saves again
            saved.append(file)
            monkeypatch.setattr(durable, "digest", digest)
            save(last, 2.0)
        return digest(file)

    monkeypatch.setattr(durable, "digest", slow)
    assert checkpoint.verify(last) is None
    assert saved


def test_the_newest_that_is_whole_is_used(run: Path, last: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.newest(run) is None
    save(last.with_name("best"), 1.0)
    for value in (2.0, 3.0):
        save(last, value)
    with caplog.at_level(logging.WARNING):
        assert value_of(checkpoint.newest(run)) == 3.0
        assert caplog.records == []
        truncate(last / "train_state.pt")
        previous = last.with_name("previous")
        assert checkpoint.newest(run) == previous
        (record,) = caplog.records
        assert record.message.startswith(f"{last}: train_state.pt is truncated: ")
        assert record.message.endswith(f"; {previous} is whole and is used instead")
        caplog.clear()
        flip(previous / "model.safetensors")
        best = last.with_name("best")
        assert checkpoint.newest(run) == best
        assert [record.message.partition(":")[0] for record in caplog.records] == [str(last), str(previous)]
        assert all(f"{best} is whole and is used instead" in record.message for record in caplog.records)
    (best / "config.yaml").unlink()
    with pytest.raises(UserError) as raised:
        checkpoint.newest(run)
    lines = str(raised.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in (last, previous, best, run)]
    assert lines[2:] == [
        f"{best}: config.yaml is missing",
        f"{run}: no checkpoint is whole; bring one back from a copy, or start anew",
    ]


def test_after_going_on_from_the_previous_it_is_not_the_damaged_one_that_is_kept(run: Path, last: Path) -> None:
    for value in (1.0, 2.0):
        save(last, value)
    flip(last / "model.safetensors")
    found = checkpoint.newest(run)
    assert found is not None
    checkpoint.settle(run, found)
    assert names(last.parent) == ["last"]
    assert value_of(checkpoint.newest(run)) == 1.0
    save(last, 3.0)
    assert (value_of(last), value_of(last.with_name("previous"))) == (3.0, 1.0)


@pytest.mark.parametrize("used", ["last.new", "last", "last.old", "previous", "best"])
def test_settle_removes_what_is_newer_and_damaged_alone(run: Path, last: Path, used: str) -> None:
    places = ["last.new", "last", "last.old", "previous", "best"]
    for value, name in enumerate(places, start=1):
        save(last.with_name("x"), float(value))
        last.with_name("x").rename(last.with_name(name))
    for name in places[: places.index(used)]:
        flip(last.with_name(name) / "labels.json")
    found = checkpoint.newest(run)
    assert found == last.with_name(used)
    value = value_of(found)
    checkpoint.settle(run, found)
    assert value_of(checkpoint.newest(run)) == value
    assert value_of(last.with_name("best")) == 5.0
    assert {place for place in places if last.with_name(place).exists()} == {
        "last.new": {"last", "previous", "best"},
        "last": {"last", "last.old", "previous", "best"},
        "last.old": {"last", "previous", "best"},
        "previous": {"last", "best"},
        "best": {"best"},
    }[used]
    save(last, 6.0)
    assert value_of(checkpoint.newest(run)) == 6.0


def test_a_damaged_model_is_not_used_unasked(run: Path, last: Path) -> None:
    best, previous = last.with_name("best"), last.with_name("previous")
    for value in (1.0, 2.0):
        save(last, value)
    save(best, 2.0)
    flip(best / "train_state.pt")  # the model is whole, and nobody asks for more
    assert checkpoint.find(run) == best
    truncate(best / "model.safetensors")
    for source in (run, best):
        with pytest.raises(UserError, match=rf"best: model.safetensors is truncated: .*; {last} is whole: give that"):
            checkpoint.find(source)
    (last / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"last: model.safetensors is missing; {previous} is whole"):
        checkpoint.find(last)
    shutil.rmtree(last)
    shutil.rmtree(best)
    assert checkpoint.find(run) == previous
    flip(previous / "labels.json")
    with pytest.raises(UserError, match=r"previous: labels.json has changed .*; bring the checkpoint back from a copy"):
        checkpoint.find(run)


def test_loading_names_what_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "last", 1.0)
    model, _ = checkpoint.load_tensors(tmp_path / "last")
    with pytest.raises(UserError, match=r"weight has shape \[300, 300\], expected \[5, 300\]"):
        checkpoint.load_into(nn.Linear(300, 5), model, tmp_path, "model")
    with pytest.raises(UserError, match="bias is not expected"):
        checkpoint.load_into(nn.Linear(300, 300, bias=False), model, tmp_path, "model")
    with pytest.raises(UserError, match="no such run folder"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.find(tmp_path)
    (tmp_path / "last" / "train_state.pt").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"train_state.pt: cannot be read"):
        checkpoint.load_state(tmp_path / "last")
    (tmp_path / "last" / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read"):
        checkpoint.load_tensors(tmp_path / "last")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "cannot be read"),
        (b"a: \xff\xfe\x00", "cannot be read"),
        (b"a: 1\n\tb: 2", "cannot be read"),
        (b"a: 1\na: 2", "cannot be read"),
        (b"- 1", "holds no config"),
        (b"", "holds no config"),
        (b"text", "holds no config"),
        (b"1.5", "cannot be read|holds no config"),
    ],
)
def test_a_broken_config(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"config.yaml: ({message}).*; bring it back from a copy"):
        checkpoint.load_config(tmp_path)


@pytest.mark.parametrize("content", [b"[", b"\xff\xfe", b"", b"{}", b"[1]", None])
def test_broken_labels(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(UserError, match=r"labels.json: (cannot be read|holds no list).*; bring it back from a copy"):
        checkpoint.load_labels(tmp_path)


def test_state_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    save(tmp_path / "last", 1.0)
    torch.save({"step": Evil()}, tmp_path / "last" / "train_state.pt")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_state(tmp_path / "last")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("left", ["new", "old", "folder new", "new old", "folder old", "partial", "folder partial new"])
def test_kill_between_the_renames(run: Path, last: Path, name: str, left: str) -> None:
    """Whatever is left, the newest that is complete is found, and the next save clears up."""
    folder, values = last.with_name(name), {"old": 1.0, "folder": 2.0, "new": 3.0}
    for kind in left.split():
        place = folder if kind == "folder" else durable.beside(folder, kind)
        if kind == "partial":
            place.mkdir(parents=True)
            (place / "model.safetensors").write_bytes(b"half")
        else:
            save(last.with_name("x"), values[kind])
            last.with_name("x").rename(place)
    there = [values[kind] for kind in left.split() if kind in values]
    if there:
        assert value_of(checkpoint.repaired(folder)) == value_of(checkpoint.newest(run)) == max(there)
    else:
        assert checkpoint.newest(run) is None
    for value in (4.0, 5.0):
        save(folder, value)
        assert value_of(checkpoint.newest(run)) == value
    assert names(last.parent) == (["last", "previous"] if name == "last" else ["best"])


def test_a_damaged_one_between_the_renames_does_not_push_out_a_whole_one(run: Path, last: Path) -> None:
    for value in (1.0, 2.0):
        save(last, value)
    shutil.copytree(last, last.with_name("last.new"))
    flip(last.with_name("last.new") / "model.safetensors")
    save(last, 3.0)
    assert [value_of(last.with_name(name)) for name in ("last", "previous")] == [3.0, 2.0]
    assert names(last.parent) == ["last", "previous"]


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """(process id, reading end of a pipe) of a child that runs `work` with the writing end, and ends."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reader)
            torch.set_num_threads(1)  # the pool of threads stayed behind
            work(writer)
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    return child, reader


def output(work: Callable[[int], None]) -> str:
    """All that `work` writes, to its end."""
    child, reader = forked(work)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_sigkill_at_any_moment(run: Path) -> None:
    """A process that saves without pause is killed again and again; what is left is whole, and never older."""

    def save_on(pipe: int) -> None:
        found = checkpoint.newest(run)
        start = int(value_of(found)) if found else 0
        if found:
            checkpoint.settle(run, found)
        for value in range(start + 1, start + 10_000):
            save(run / "checkpoints" / "last", float(value))
            os.write(pipe, f"{value}\n".encode())

    latest, draw = 0.0, random.Random(0)
    for _ in range(20):
        child, reader = forked(save_on)
        with open(reader, encoding="utf-8") as pipe:
            confirmed = int(pipe.readline())
            time.sleep(draw.uniform(0.0, 0.05))
            os.kill(child, signal.SIGKILL)
            confirmed = max([confirmed, *(int(line) for line in pipe if line.endswith("\n"))])
        os.waitpid(child, 0)
        found = value_of(checkpoint.newest(run))
        assert found >= confirmed > latest
        if (previous := run / "checkpoints" / "previous").exists():
            assert value_of(previous) >= found - 2  # found - 1, or found - 2 before it was replaced
        latest = found


@pytest.mark.parametrize("name", ["last", "best"])
def test_killed_before_every_change_on_disk(run: Path, last: Path, tmp_path: Path, name: str) -> None:
    """A save is cut off before each of its renames, removals and flushes in turn."""
    folder, prepared = last.with_name(name), tmp_path / "prepared"
    for value in (1.0, 2.0):
        save(folder, value)
    run.rename(prepared)

    def cut_off(after: int) -> None:
        count = 0

        def counting(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **keywords: object) -> object:
                nonlocal count
                if count == after:
                    os._exit(1)
                count += 1
                return real(*arguments, **keywords)

            return call

        for change in ("rename", "rmdir", "unlink", "fsync", "mkdir"):
            setattr(os, change, counting(getattr(os, change)))
        save(folder, 3.0)

    reached = []
    for after in range(200):
        shutil.copytree(prepared, run)
        child, reader = forked(lambda pipe, after=after: cut_off(after))
        os.close(reader)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reached.append(value_of(checkpoint.newest(run)))
        if ended == 0:
            break
        save(folder, 4.0)  # clears up whatever was left
        assert value_of(checkpoint.newest(run)) == 4.0
        assert names(last.parent) == (["last", "previous"] if name == "last" else ["best"])
        shutil.rmtree(run)
    assert ended == 0
    assert len(reached) > 15
    assert reached == sorted(reached)
    assert set(reached) == {2.0, 3.0}


def refused(run: Path) -> str:
    """What the user is told by a save that cannot be done."""
    with pytest.raises(UserError) as raised:
        save(run / "checkpoints" / "last", 2.0)
    return str(raised.value)


def test_full_disk_leaves_what_was_there(run: Path, last: Path) -> None:
    save(last, 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (20_000, 380_000):  # too small for the model, and for the state alone
            # A limit on the size of files makes writes fail half way, as a full disk does.
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            message = refused(run)
            assert message.startswith(f"{last}: cannot be saved: File too large")
            assert message.endswith(f"what was saved before is untouched; raise the limit on the size of a file (ulimit"
                                    f" -f), then go on with resume={run}")  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert value_of(last) == 1.0
    assert names(last.parent) == ["last"]


def on_small_disk(disk: Path, work: Callable[[], str]) -> str:
    """What `work` returns where 1.2 MB are mounted at `disk`; skips where the kernel lets nobody mount."""

    def mount(*options: str) -> bool:
        return subprocess.run(["mount", *options], capture_output=True).returncode == 0

    def apart(pipe: int) -> None:
        libc, user = ctypes.CDLL(None), os.getuid()
        if libc.unshare(_NEWNS | (_NEWUSER if user else 0)):
            os.write(pipe, b"skip")
            return
        if user:
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        # Private first, or the rest of the machine would see it.
        if mount("--make-rprivate", "/") and mount("-t", "tmpfs", "-o", "size=1200k", "none", str(disk)):
            os.write(pipe, work().encode())
        else:
            os.write(pipe, b"skip")

    disk.mkdir()
    printed = output(apart)
    if printed == "skip":
        pytest.skip("nothing can be mounted here")
    return printed


_NEWNS, _NEWUSER = 0x00020000, 0x10000000  # of sched.h


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"

    def work() -> str:  # 1.2 MB take one checkpoint of 780 KB and half of another
        save(run / "checkpoints" / "last", 1.0)
        return f"{refused(run)}; {value_of(checkpoint.newest(run))}"

    printed = on_small_disk(run.parent, work)
    assert printed.startswith(f"{run}/checkpoints/last: cannot be saved: No space left on device")
    assert printed.endswith(f"; what was saved before is untouched; make room, then go on with resume={run}; 1.0")


def test_a_disk_that_is_mounted_for_reading_only(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"

    def work() -> str:
        save(run / "checkpoints" / "last", 1.0)
        subprocess.run(["mount", "-o", "remount,ro", str(run.parent)], check=True)
        return f"{refused(run)}; {value_of(checkpoint.newest(run))}"

    printed = on_small_disk(run.parent, work)
    assert printed.startswith(f"{run}/checkpoints/last: cannot be saved: Read-only file system")
    assert printed.endswith(f"; mount the file system for writing, then go on with resume={run}; 1.0")


def without_rights(work: Callable[[], str]) -> str:
    """What `work` returns as a user to whom not every folder is open."""

    def apart(pipe: int) -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        os.write(pipe, work().encode())

    return output(apart)


def test_no_right_to_write_or_to_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to others
        run = Path(name, "run")
        last = run / "checkpoints" / "last"
        save(last, 1.0)
        run.parent.chmod(0o755)
        last.parent.chmod(0o555)
        message = without_rights(lambda: refused(run))
        assert message.startswith(f"{last}: cannot be saved: Permission denied ({last}.partial); what was saved before")
        assert message.endswith(f"give this user the right to write there, then go on with resume={run}")

        def unreadable() -> str:
            answers = [refused(run)]
            for ask in (checkpoint.newest, checkpoint.find):  # neither may take it for a run without a checkpoint
                with pytest.raises(UserError, match=r"cannot be read: Permission denied; give this user the right"):
                    ask(run)
            return "; ".join(answers)

        last.parent.chmod(0o000)
        message = without_rights(unreadable)
        assert message.startswith(f"{last}: cannot be saved: Permission denied ({last}")
        assert "Traceback" not in message
        last.parent.chmod(0o755)


def test_something_in_the_way(run: Path, last: Path) -> None:
    last.parent.mkdir(parents=True)
    last.touch()
    assert refused(run) == (
        f"{last}: cannot be saved: Not a directory ({last}); move that away, then go on with resume={run}"
    )
    last.unlink()
    durable.beside(last, "partial").touch()
    assert f"cannot be saved: Not a directory ({last}.partial); move that away" in refused(run)
    shutil.rmtree(run)
    run.touch()
    assert f"cannot be saved: Not a directory ({last}.partial); move that away" in refused(run)
    # A place where nobody can make a folder.
    with pytest.raises(UserError, match=r"^/proc/checkpoints/last: cannot be saved: .* \(/proc/checkpoints"):
        save(Path("/proc/checkpoints/last"), 1.0)


class Counted(nn.Module):
    """A model with what an average must not average."""

    def __init__(self, value: float, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value, dtype=torch.float32))
        self.short = nn.Parameter(torch.full((2,), value, dtype=torch.bfloat16))
        self.register_buffer("num_batches_tracked", torch.tensor(count))


def keep_weights(folder: Path, step: int, value: float, keep: int = 3) -> None:
    kept_weights.save(folder, step, Counted(value, step), Counted(-value, 10 * step), keep)


def test_the_last_weights_are_averaged(tmp_path: Path) -> None:
    recent = tmp_path / "recent"
    for step, value in ((9, 100.0), (10, 1.0), (100, 2.0), (1000, 6.0)):
        keep_weights(recent, step, value)
    files = sorted(recent.glob("*.safetensors"))
    assert [file.name for file in files] == [f"step-{step:08d}.safetensors" for step in (10, 100, 1000)]
    assert len(names(recent)) == 6  # and their checksums
    model, head = kept_weights.average(files)
    assert model["weight"].tolist() == [3.0] * 3
    assert (model["weight"].dtype, model["short"].dtype) == (torch.float32, torch.bfloat16)
    assert head["short"].tolist() == [-3.0] * 2
    assert (model["num_batches_tracked"], head["num_batches_tracked"]) == (1000, 10_000)


def test_the_mean_is_taken_in_float64(tmp_path: Path) -> None:
    for step, value in enumerate((2.0**24, 1.0, 1.0)):
        keep_weights(tmp_path, step, value)
    model, _ = kept_weights.average(sorted(tmp_path.glob("*.safetensors")))
    expected = torch.tensor((2**24 + 2) / 3, dtype=torch.float64).float()  # float32 loses both ones
    assert model["weight"][0] == expected != torch.tensor(2.0**24) / 3


def test_weights_of_steps_that_are_done_again(tmp_path: Path) -> None:
    recent = tmp_path / "recent"
    kept_weights.drop_after(recent, 0)  # there are none
    for step in (1, 2, 3):
        keep_weights(recent, step, float(step), keep=5)
    (recent / "step-00000003.safetensors.partial").write_bytes(b"half")
    kept_weights.drop_after(recent, 2)
    assert names(recent) == [f"step-0000000{step}.safetensors{more}" for step in (1, 2) for more in ("", ".sha256")]
    keep_weights(recent, 2, 7.0, keep=5)
    model, _ = kept_weights.average(sorted(recent.glob("*.safetensors")))
    assert model["weight"].tolist() == [4.0] * 3


def test_damaged_weights_are_not_averaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights were kept"):
        kept_weights.average([])
    for step in (1, 2):
        keep_weights(tmp_path, step, float(step))
    files = sorted(tmp_path.glob("*.safetensors"))
    flip(files[0])
    with pytest.raises(UserError, match=r"step-00000001.safetensors has changed .*; delete that file and resume"):
        kept_weights.average(files)
    files[0].unlink()
    kept_weights.save(tmp_path, 3, *modules(1.0), 3)
    with pytest.raises(UserError, match=r"step-00000003.safetensors: has other tensors than .*step-00000002"):
        kept_weights.average(sorted(tmp_path.glob("*.safetensors")))


def test_weights_that_cannot_be_written(run: Path) -> None:
    recent = run / "checkpoints" / "recent"
    recent.parent.mkdir(parents=True)
    recent.touch()
    with pytest.raises(UserError, match=r"step-00000001.safetensors: cannot be saved: File exists .*; move that away"):
        keep_weights(recent, 1, 1.0)
