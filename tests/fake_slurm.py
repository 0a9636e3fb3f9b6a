"""sbatch, squeue, srun, sacct, scontrol and scancel as a job meets them: install(folder) makes the commands.

sbatch keeps the script and runs it in the background, once for each task of an array; srun runs its command once for
each node; a job that scontrol requeued while it ran is run again. State is in files of the folder.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

FIRST = 4711
NODE = "import socket\nsocket.gethostname = lambda: 'node1'\n"  # jobs take themselves to be on another machine


def install(folder: Path) -> dict[str, str]:
    """Make the commands in folder/bin. Returns the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for command in ("sbatch", "squeue", "srun", "sacct", "scontrol", "scancel"):
        file = folder / "bin" / command
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {command} "$@"\n')
        file.chmod(0o755)
    (folder / "node").mkdir()
    (folder / "node" / "sitecustomize.py").write_text(NODE)
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def script(folder: Path) -> str:
    return (folder / "script.sh").read_text()


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def option(text: str, name: str) -> str | None:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", text, re.MULTILINE)
    return found[1].strip("'") if found else None


def sbatch(folder: Path, file: str) -> None:
    text = Path(file).read_text()
    job = str(FIRST - 1 + sum(call.startswith("sbatch") for call in calls(folder)))
    (folder / "script.sh").write_text(text)
    array = option(text, "array")
    last = int(array.split("%")[0].split("-")[1]) if array else None
    for task in range(last + 1) if last is not None else [None]:
        name = job if task is None else f"{job}_{task}"
        (folder / name).write_text("PENDING")
        command = [sys.executable, __file__, "batch", name]
        null = subprocess.DEVNULL
        subprocess.Popen(command, start_new_session=True, stdin=null, stdout=null, stderr=null)
    print(f"Submitted batch job {job}")


def batch(folder: Path, name: str) -> None:
    text = script(folder)
    environment = {
        **os.environ,
        "SLURM_JOB_ID": name.split("_")[0],
        "SLURM_JOB_NUM_NODES": option(text, "nodes") or "1",
        "PYTHONPATH": f"{folder / 'node'}:{os.environ.get('PYTHONPATH', '')}",
    }
    environment |= {"SLURM_NTASKS": environment["SLURM_JOB_NUM_NODES"], "SLURM_JOB_NODELIST": "localhost"}
    if "_" in name:
        environment |= {"SLURM_ARRAY_JOB_ID": name.split("_")[0], "SLURM_ARRAY_TASK_ID": name.split("_")[1]}
    logs = Path((option(text, "output") or "").replace("%A_%a", name).replace("%j", name)).parent
    requeued = folder / f"{name}.requeued"
    signal.signal(signal.SIGTERM, lambda *_: None)  # as Slurm's step daemon: the job's processes are what is to end
    while True:
        while not logs.is_dir():  # who submitted a job makes the folder of its logs afterwards
            time.sleep(0.05)
        (folder / name).write_text("RUNNING")
        process = subprocess.Popen(["bash", str(folder / "script.sh")], env=environment)
        (folder / f"{name}.pid").write_text(str(os.getpid()))
        code = process.wait()
        if not requeued.exists():
            break
        requeued.unlink()
        (folder / name).write_text("REQUEUED")
    (folder / name).write_text("COMPLETED" if code == 0 else "FAILED")


def srun(folder: Path, *arguments: str) -> int:
    rest, files = list(arguments), {}
    while rest[0].startswith("-"):
        name, equals, value = rest.pop(0).partition("=")
        if name in ("--output", "--error"):
            files[name] = value if equals else rest.pop(0)
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    processes = []
    for node in range(int(os.environ["SLURM_NTASKS"])):
        streams = []
        for name in ("--output", "--error"):
            path = files[name].replace("%A", array).replace("%a", task).replace("%j", os.environ["SLURM_JOB_ID"])
            path = path.replace("%t", str(node))
            streams.append(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        environment = {**os.environ, "SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
        processes.append(subprocess.Popen(rest, env=environment, stdout=streams[0], stderr=streams[1]))
    signal.signal(signal.SIGTERM, lambda *_: None)
    return max(abs(process.wait()) for process in processes)


def sacct(folder: Path, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for file in sorted(folder.glob("[0-9]*")):
        if not file.suffix:
            print(f"{file.name}|{file.read_text()}|localhost")


def squeue(folder: Path, *arguments: str) -> int:
    if (folder / "down").exists():
        print("slurm_load_jobs error: Unable to contact slurm controller", file=sys.stderr)
        return 1
    (asked,) = (argument.removeprefix("--jobs=").split(",") for argument in arguments if "--jobs=" in argument)
    for name in asked:
        if (folder / name).read_text() in ("PENDING", "RUNNING", "REQUEUED"):
            print(name)
    return 0


def scontrol(folder: Path, what: str, name: str) -> None:
    assert what == "requeue"
    (folder / f"{name}.requeued").touch()


def scancel(folder: Path, name: str) -> None:
    pid = folder / f"{name}.pid"
    if pid.exists() and (folder / name).read_text() == "RUNNING":
        os.killpg(int(pid.read_text()), signal.SIGTERM)


if __name__ == "__main__":
    state = Path(os.environ["FAKE_SLURM"])
    with (state / "calls").open("a") as log:
        log.write(" ".join(sys.argv[1:]) + "\n")
    sys.exit(globals()[sys.argv[1]](state, *sys.argv[2:]))
