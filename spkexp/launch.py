"""trainer.nproc: a run as processes that are started, watched, stopped and, if need be, started again from here.

An elastic launch as torchrun makes it, inside whatever process asks for it: a job of a sweep under any of Hydra's
launchers. The processes read the composed config from a file, so that Hydra is in the parent only. Under Slurm, with
one task a node, the parents of all nodes make one launch together.
"""

import os
import pkgutil
import re
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from spkexp import distributed
from spkexp.agent import GRACE_SECONDS, Agent, environment
from spkexp.cli import EXIT_USER, errors_to_exit_codes
from spkexp.cores import cores
from spkexp.errors import ConfigError, UserError
from spkexp.interrupt import StopRequest
from spkexp.lifeline import die_with
from spkexp.outcome import Outcome

# Until a process can save, Ctrl-C ends it without a page of what it was importing.
_START = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); from spkexp.launch import main; main()"
# How long a process waits for the first of its node to have made the same mistake, and to tell of it.
_TELLING_SECONDS = 3.0
# How long a node waits for the others of its launch.
_MEETING_SECONDS = 600
# Ports for the nodes to meet at: below those that systems hand out by themselves.
_PORTS = range(15_000, 32_000)

_launches = 0  # of this process: the nodes of one job of a sweep must not meet those of the next


@dataclass(frozen=True)
class Nodes:
    """The machines of a launch. own: index of this one; endpoint: where they meet, on the first of them.

    address: this one's name, by which the others reach it.
    """

    count: int
    own: int
    endpoint: str
    address: str | None
    run_id: str

    @property
    def meeting(self) -> str:
        return f"{self.count} at {self.endpoint} within {_MEETING_SECONDS} s"

    @property
    def remedy(self) -> str:
        if self.own == 0:
            return "if another program has the port, start the step or the job again: each takes another port"
        return f"see whether the task on {self.endpoint.partition(':')[0]} runs, and no firewall is in between"

    def exit_code(self, code: int) -> int:
        """That of this node's task, where the run's is `code`.

        Slurm may kill the other tasks of a step as soon as one fails (KillOnBadExit), and after a warning the first is
        still to save, or to put the job into the queue again: the others end without a word.
        """
        return 0 if code == os.EX_TEMPFAIL and self.own != 0 else code

    @staticmethod
    def here(launches: int) -> "Nodes":
        """Those of the Slurm step that this process is the task of, else this machine alone.

        launches: how many there were before in this process. Raises ConfigError where a node has several tasks.
        """
        # The step's variables and not the job's: a batch script of two nodes runs on one of them until it calls srun.
        slurm = os.environ
        count, tasks = (int(slurm.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("NODES", "TASKS"))
        if tasks != count:
            raise ConfigError(
                [
                    f"trainer.nproc: Slurm started {tasks} tasks on {count} node{'s' * (count > 1)}, and each would "
                    "start trainer.nproc processes; ask for one task a node: --ntasks-per-node=1"
                ]
            )
        if count == 1:
            return Nodes(1, 0, "localhost:0", "localhost", uuid.uuid4().hex)
        job, step, again = (int(slurm.get(f"SLURM_{what}", 0)) for what in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
        port = _PORTS[(97 * job + 31 * step + 7 * again + launches) % len(_PORTS)]
        return Nodes(
            count,
            int(slurm["SLURM_NODEID"]),
            f"{first_host(slurm['SLURM_STEP_NODELIST'])}:{port}",
            slurm.get("SLURMD_NODENAME"),
            f"{job}-{step}-{again}-{launches}",
        )


def first_host(hosts: str) -> str:
    """gpu03, of Slurm's gpu[03-05,9],login1: the node with index 0."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts).partition(",")[0]


def run(cfg: DictConfig, resumed: bool, task: str = "spkexp.train:run") -> Outcome | None:
    """What `task(cfg, resumed)` returns in rank 0 of cfg.trainer.nproc processes on each node; None on later nodes.

    task: a function by its dotted name. Raises SystemExit where the processes fail: with 2 after a mistake of the
    user, of which they told, with 128 + the signal or 75 (start it again) where a signal stopped them, else with 1.
    """
    global _launches
    nodes = Nodes.here(_launches)
    _launches += 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // cfg.trainer.nproc)))
    with tempfile.TemporaryDirectory(prefix="spkexp-launch-") as folder, StopRequest() as stop:
        OmegaConf.save(cfg, Path(folder, "config.yaml"))
        command = ("-c", _START, str(os.getpid()), folder, task, str(int(resumed)))
        try:
            agent = Agent(_spec(cfg, nodes, command), stop, nodes.meeting)
        except RendezvousError as error:
            why = error.__cause__ or error
            failure: tuple[int, str] | None = (1, f"the nodes cannot meet, {nodes.meeting}: {why}; {nodes.remedy}")
        else:
            stop.forward = agent.forward
            with environment(OMP_NUM_THREADS=threads):
                failure = agent.launch()
        outcome = Outcome.read(Path(folder, "outcome.json"))
    if failure is not None:
        code, message = failure
        if message:
            print(f"spkexp: {message}", file=sys.stderr)
        sys.exit(nodes.exit_code(code))
    if stop():
        stopped = stop.stopped()
        if nodes.own != 0:  # the first node's task is the one that has the job requeued
            sys.exit(nodes.exit_code(stopped.exit_code))
        stopped.leave()
    return outcome if nodes.own == 0 else None


def _spec(cfg: DictConfig, nodes: Nodes, command: tuple[str, ...]) -> WorkerSpec:
    meeting = RendezvousParameters(
        backend="c10d",
        endpoint=nodes.endpoint,
        run_id=nodes.run_id,
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        local_addr=nodes.address,
        is_host=nodes.own == 0,
        read_timeout=300,  # a node may be minutes later than the first
        join_timeout=_MEETING_SECONDS,
    )
    return WorkerSpec(
        role="spkexp",
        local_world_size=cfg.trainer.nproc,
        entrypoint=sys.executable,
        args=command,
        rdzv_handler=get_rendezvous_handler(meeting),
        max_restarts=cfg.trainer.max_restarts,
        monitor_interval=0.1,
        local_addr=nodes.address,
    )


def main() -> None:
    """One process of a launch: PARENT FOLDER TASK RESUMED."""
    parent, name, task, resumed = sys.argv[1:]
    die_with(int(parent))
    folder = Path(name)
    with errors_to_exit_codes():
        try:
            outcome = pkgutil.resolve_name(task)(OmegaConf.load(folder / "config.yaml"), bool(int(resumed)))
        except UserError as error:
            if _told_by_another(str(error), folder / "mistake.txt"):
                sys.exit(EXIT_USER)
            raise
        _share(outcome, folder / "outcome.json")


def _told_by_another(mistake: str, file: Path) -> bool:
    """Whether the first process of this node tells of the same mistake; all of them often find it at once."""
    if os.environ["LOCAL_RANK"] == "0":
        file.with_suffix(".new").write_text(mistake, encoding="utf-8")
        file.with_suffix(".new").rename(file)
        return False
    end = time.monotonic() + _TELLING_SECONDS
    while time.monotonic() < end and not file.exists():
        time.sleep(0.05)
    return file.exists() and file.read_text(encoding="utf-8") == mistake


def _share(outcome: Outcome | None, file: Path) -> None:
    """Leave rank 0's outcome to every node's parent: the node that has rank 0 need not be Slurm's first.

    Raises SystemExit where rank 0 does not come to it: the agents wait no longer for one another, either.
    """
    key = f"outcome/{distributed.attempt()}"
    if os.environ["RANK"] == "0":
        if outcome is not None:
            outcome.write(file)
        distributed.remember(key, file.read_text(encoding="utf-8") if outcome is not None else "")
    elif os.environ["LOCAL_RANK"] == "0":
        end, pause = time.monotonic() + GRACE_SECONDS, 0.05
        while (text := distributed.recall(key)) is None:
            if time.monotonic() > end:
                print(f"spkexp: rank 0 did not come to its end within {GRACE_SECONDS:g} s", file=sys.stderr)
                sys.exit(distributed.EXIT_LOST)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)  # each look is a connection to the node that has the memory
        if text:
            file.write_text(text, encoding="utf-8")
