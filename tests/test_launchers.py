"""Sweeps on every launcher: jobs that finish, fail, die, are stopped, and are put into the queue again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from spkexp.records import records
from tests import fake_slurm
from tests.conftest import Corpus
from tests.test_sweep import ENVIRONMENT, wait_for
from tests.test_train import TINY

PIECES = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.n_jobs=2"],
    "ray": ["hydra.launcher.num_cpus=2"],
    "submitit_slurm": ["hydra.launcher.array_parallelism=2"],
}


def command(module: str, launcher: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, "-m", f"hydra/launcher={launcher}", *PIECES[launcher], *arguments]


def start(folder: Path, launcher: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("tests.sweep_program", launcher, *arguments),
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # as a shell does it: Ctrl-C reaches the group
    )


def slow(*values: str) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.slow)


def sweep_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "sweeps").iterdir()
    return found


def pids(folder: Path) -> list[int]:
    return [int(line.split()[1]) for file in folder.glob("runs/*/events") for line in file.read_text().splitlines()]


def assert_gone(numbers: list[int], seconds: float = 20) -> None:
    """No such process is left, or it is dead and only its parent has not asked yet."""
    begin = time.monotonic()
    while alive := [pid for pid in numbers if _is_running(pid)]:
        assert time.monotonic() - begin < seconds, f"still running: {alive}"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("launcher", ["joblib", slow("submitit_local"), slow("ray")])
def test_what_became_of_each_job(launcher: str, tmp_path: Path) -> None:
    process = start(tmp_path, launcher, "names.model=user,kill,ok", "seed=4")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    found = records(sweep_folder(tmp_path))
    assert [(record.status, record.value) for record in found] == [
        ("failed", None),
        ("failed", None),
        ("finished", 0.4),
    ]
    assert found[0].error == "data.manifest: no such file; make it"
    assert str(found[1].error).startswith("ended without a message")
    assert "2 of 3 jobs failed:" in out
    assert len({record.pid for record in found} - {process.pid}) == 3  # processes of their own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize(
    ("launcher", "how"),
    [
        ("joblib", "SIGUSR1"),
        slow("joblib", "Ctrl-C"),
        slow("joblib", "SIGTERM"),
        slow("submitit_local", "Ctrl-C"),
        slow("submitit_local", "SIGTERM"),
        slow("ray", "SIGTERM"),
        slow("ray", "Ctrl-C"),
    ],
)
def test_a_signal_reaches_every_job_and_no_other_starts(launcher: str, how: str, tmp_path: Path) -> None:
    process = start(tmp_path, launcher, "names.model=wait", "seed=0,1,2")
    for seed in (0, 1):
        wait_for(tmp_path / f"runs/wait-{seed}/waits", process)
    number = signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM  # what the jobs get
    if how == "Ctrl-C":
        os.killpg(process.pid, number)
    else:
        process.send_signal(signal.Signals[how])
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (75 if how == "SIGUSR1" else 128 + number)
    assert "2 jobs to save and stop" in out
    for seed in (0, 1):
        assert (tmp_path / f"runs/wait-{seed}/saved").read_text() == number.name
    assert not (tmp_path / "runs/wait-2").exists()
    assert {record.status for record in records(sweep_folder(tmp_path))} == {"stopped"}
    assert_gone(pids(tmp_path))


@pytest.mark.parametrize("launcher", ["joblib", slow("submitit_local")])
def test_jobs_end_with_a_sweep_that_is_killed(launcher: str, tmp_path: Path) -> None:
    process = start(tmp_path, launcher, "names.model=wait", "seed=0,1")
    for seed in (0, 1):
        wait_for(tmp_path / f"runs/wait-{seed}/waits", process)
    process.kill()
    process.communicate(timeout=30)
    assert_gone(pids(tmp_path))
    for seed in (0, 1):  # what was there is saved
        assert (tmp_path / f"runs/wait-{seed}/saved").read_text() == "SIGTERM"


@pytest.mark.slow  # time limits are minutes
def test_a_job_that_is_warned_goes_on_without_slurm(tmp_path: Path) -> None:
    limits = ["hydra.launcher.timeout_min=0.75", "hydra.launcher.signal_delay_s=20"]
    process = start(tmp_path, "submitit_local", "names.model=preempted", "seed=0", *limits)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert len(pids(tmp_path)) == 2
    assert [record.status for record in records(sweep_folder(tmp_path))] == ["finished"]


def test_the_script_that_slurm_is_given(tmp_path: Path) -> None:
    slurm = tmp_path / "slurm"
    process = start(
        tmp_path,
        "submitit_slurm",
        "names.model=ok,user",
        "seed=1",
        "hydra.launcher.nodes=2",
        "trainer.nproc=8",
        "hydra.launcher.gpus_per_node=8",
        "hydra.launcher.cpus_per_task=64",
        "hydra.launcher.mem_gb=500",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.account=speech",
        "hydra.launcher.setup=['module load cuda || true','export NCCL_DEBUG=WARN']",
        "+hydra.launcher.additional_parameters.mail-type=FAIL",
        **fake_slurm.install(slurm),
    )
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 1, out
    logs = sweep_folder(tmp_path) / ".submitit"
    assert (
        fake_slurm.script(slurm)
        == f"""#!/bin/bash

# Parameters
#SBATCH --account=speech
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=64
#SBATCH --error={logs}/%A_%a/%A_%a_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=spkexp
#SBATCH --mail-type=FAIL
#SBATCH --mem=500GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output={logs}/%A_%a/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=90
#SBATCH --wckey=submitit

# setup
module load cuda || true
export NCCL_DEBUG=WARN

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output {logs}/%A_%a/%A_%a_%t_log.out --error {logs}/%A_%a/%A_%a_%t_log.err \
--cpus-per-task=64 {sys.executable} -u -m submitit.core._submit {logs}/%j
"""
    )
    # It was run as well: every job on both nodes, and the first one keeps the record.
    assert len(pids(tmp_path)) == 4
    assert [record.status for record in records(sweep_folder(tmp_path))] == ["finished", "failed"]
    assert "data.manifest: no such file; make it" in out


@pytest.mark.slow
def test_slurm_preempts_a_job_and_starts_it_again(tmp_path: Path) -> None:
    slurm = tmp_path / "slurm"
    process = start(tmp_path, "submitit_slurm", "names.model=preempted", "seed=0", **fake_slurm.install(slurm))
    wait_for(tmp_path / "runs/preempted-0/waits", process)
    os.kill(pids(tmp_path)[0], signal.SIGUSR2)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0, out
    assert len(pids(tmp_path)) == 2
    assert f"scontrol requeue {fake_slurm.FIRST}" in fake_slurm.calls(slurm)
    assert [record.status for record in records(sweep_folder(tmp_path))] == ["finished"]


def test_a_sweep_that_is_stopped_leaves_nothing_in_slurms_queue(tmp_path: Path) -> None:
    slurm = tmp_path / "slurm"
    environment = {**fake_slurm.install(slurm), "SECONDS_TO_SAVE": "1.5"}
    process = start(tmp_path, "submitit_slurm", "names.model=wait", "seed=0,1", **environment)
    for seed in (0, 1):
        wait_for(tmp_path / f"runs/wait-{seed}/waits", process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "failed" not in out
    assert {(record.status, record.host) for record in records(sweep_folder(tmp_path))} == {("stopped", "node1")}
    assert {f"scancel {fake_slurm.FIRST}_{task}" for task in (0, 1)} <= set(fake_slurm.calls(slurm))
    assert (tmp_path / "runs/wait-0/saved").exists()
    assert_gone(pids(tmp_path))


def test_slurm_without_slurm(tmp_path: Path) -> None:
    process = start(tmp_path, "submitit_slurm", "names.model=ok", "seed=0,1", PATH="/usr/bin:/bin")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "hydra/launcher=submitit_slurm: " in out
    assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_training_on_every_launcher(launcher: str, make_corpus: Corpus, tmp_path: Path) -> None:
    arguments = [*TINY, f"data.manifest='{make_corpus()}'", "seed=0,1"]
    environment = {**ENVIRONMENT, **fake_slurm.install(tmp_path / "slurm")}
    for attempt in range(2):
        done = subprocess.run(
            command("spkexp.train", launcher, *arguments),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("finished") == 2
        assert "EER %" in done.stdout
        runs = list(tmp_path.glob("runs/*-*-*/*/results.json"))
        assert len(runs) == 2  # the second time they are skipped
        if attempt == 0:
            first = {file: file.stat().st_mtime_ns for file in runs}
    assert {file: file.stat().st_mtime_ns for file in runs} == first
    assert {json.loads(file.read_text())["seed"] for file in runs} == {0, 1}


@pytest.mark.slow
def test_stopping_a_sweep_of_ddp_runs_and_going_on(make_corpus: Corpus, tmp_path: Path) -> None:
    arguments = [*TINY, f"data.manifest='{make_corpus()}'", "seed=0,1", "trainer.nproc=2", "trainer.epochs=400"]
    arguments += ["trainer.validate_every=1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spkexp.train", "-m", *arguments], cwd=tmp_path, env=ENVIRONMENT, text=True
    )
    begin = time.monotonic()
    while not any(file.read_text().count("\n") > 2 for file in tmp_path.glob("runs/*-*-*/*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() - begin < 120
        time.sleep(0.1)
    below = descendants(process.pid)
    assert len(below) >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert_gone(below)
    runs = list(tmp_path.glob("runs/*-*-*/*"))
    assert len(runs) == 1
    assert (runs[0] / "checkpoints" / "last" / "train_state.pt").is_file()
    (record,) = records(sweep_folder(tmp_path))
    assert record.status == "stopped"


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
