"""torch's elastic agent for one node, with manners: who ends, why, who waits for whom, and what is not tried again."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousError

from spkexp import distributed
from spkexp.cli import EXIT_USER
from spkexp.exit_codes import STOPPED, warnings
from spkexp.interrupt import Stopped, StopRequest

# How long the processes may take to finish their step and save, once a signal asked them to.
GRACE_SECONDS = 300.0
# How long those may take that are told to stop at once, or whose fellow ended by a mistake that all of them find.
SHORT_GRACE_SECONDS = 10.0
# Ends that were asked for: by signals, or by the user's mistake. Another attempt would only repeat them.
FINAL = STOPPED | {EXIT_USER}
ORDERLY = FINAL | {distributed.EXIT_LOST}


class Agent(LocalElasticAgent):
    """Starts this node's processes and watches them.

    A signal that `stop` receives is theirs: they finish the step, save and end, and the agent waits for them. `failed`
    is the ranks that failed before torch ended the rest, with their exit codes (negative: minus the signal).
    """

    def __init__(self, spec: WorkerSpec, stop: StopRequest, meeting: str) -> None:
        """meeting: which nodes are to come together, where and within what time, for the message that they did not."""
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull))
        self.stop, self.meeting = stop, meeting
        self.failed: dict[int, int] = {}
        self._failed_at = 0.0
        self._deadline = float("inf")  # of the processes, to end after a signal
        self._killed = False
        self._joining = False

    def launch(self) -> tuple[int, str] | None:
        """None where all processes ended well, or as a signal asked them to; else the exit code and a line about it."""
        try:
            # The agent would take over the signals that are named here, each time that it starts processes.
            with environment(TORCHELASTIC_SIGNALS_TO_HANDLE="none"), _quiet():
                result = self.run()
        except Stopped:  # while it waited for the other nodes
            return None
        except RendezvousError as error:
            return 1, (
                f"the nodes of the launch did not come together, {self.meeting}: {str(error) or type(error).__name__}; "
                "see whether each node's task was started, and reaches that address"
            )
        finally:
            self._worker_group.spec.rdzv_handler.shutdown()
        if result is None:  # a node whose processes failed has closed the rendezvous
            return 1, "the run ended on another node; its message says why"
        if not result.is_failed() or (self.stop() and self._obeyed()):
            return None
        if EXIT_USER in self.failed.values():
            return EXIT_USER, ""
        # Signals that the processes were sent by somebody else.
        codes = set(self.failed.values()) - {distributed.EXIT_LOST}
        if codes and codes <= STOPPED:
            return (os.EX_TEMPFAIL if os.EX_TEMPFAIL in codes else min(codes)), ""
        return 1, f"{self._what_failed()}{self._where_to_look()}"

    def forward(self, number: int) -> None:
        """Pass a signal on to the processes. After the first, `stop` passes on repetitions, which are that they stop at
        once, and a cluster's warning, which never hurries."""
        if self._joining:
            raise Stopped(number)
        if self._deadline == float("inf"):
            self._deadline = time.monotonic() + GRACE_SECONDS
        elif number not in warnings():
            self._deadline = min(self._deadline, time.monotonic() + SHORT_GRACE_SECONDS)
        self._send(number)

    def _send(self, number: int) -> None:
        for handler in self._handlers().values():
            handler.proc.send_signal(number)  # does nothing to a process that has ended

    def _handlers(self) -> dict[int, Any]:
        return self._pcontext.subprocess_handlers if isinstance(self._pcontext, SubprocessContext) else {}

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self.stop.number is not None:
            raise Stopped(self.stop.number)
        self._joining = True
        super()._rendezvous(worker_group)
        self._joining = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.failed = {}
        processes = super()._start_workers(worker_group)
        if self.stop.number is not None:  # it came before they could be sent it
            self._send(self.stop.number)
        return processes

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        spec = worker_group.spec
        what = self._what_failed() if self.failed else "a process of another node failed"
        count = f"{spec.max_restarts - self._remaining_restarts} of {spec.max_restarts}"
        _say(f"{what}; all start again from the last checkpoint (restart {count})")
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {worker_group.workers[local].global_rank: h.proc.poll() for local, h in self._handlers().items()}
        failed = {rank: code for rank, code in codes.items() if code}
        if failed and not self.failed:
            self._failed_at = time.monotonic()
        self.failed = failed
        if time.monotonic() > self._deadline:
            if not self._killed:
                _say("the processes did not end in time: they are killed")
            self._killed = True
            self._send(signal.SIGKILL)
        elif None in codes.values() and failed and set(failed.values()) <= ORDERLY:
            # torch would end the others with SIGTERM: here they are about to end by themselves, with something to say.
            patience = GRACE_SECONDS if set(failed.values()) <= STOPPED else SHORT_GRACE_SECONDS
            if time.monotonic() - self._failed_at < patience:
                return RunResult(state=WorkerState.HEALTHY)
        if self.stop() or FINAL & set(failed.values()):
            self._remaining_restarts = 0
        return super()._monitor_workers(worker_group)

    def _obeyed(self) -> bool:
        """Whether all ended because of the signal: saved, or killed by it before there was anything to save."""
        orderly = STOPPED | {distributed.EXIT_LOST} | {-number for number in self.stop.received()}
        return set(self.failed.values()) <= orderly

    def _what_failed(self) -> str:
        """The likeliest cause: a process that was killed says nothing, and one that lost another was not the first."""
        rank, code = min(
            self.failed.items(), key=lambda item: (item[1] == distributed.EXIT_LOST, item[1] >= 0, item[0])
        )
        group = self._worker_group
        size = group.workers[0].world_size
        host = f" on {socket.gethostname()}" if size > len(group.workers) else ""
        name = f"rank {rank} of {size}{host}"
        if code >= 0:
            return f"{name} ended with exit code {code}"
        hint = " (as the system does when memory runs out)" if -code == signal.SIGKILL else ""
        return f"{name} was killed by {signal.Signals(-code).name}{hint}"

    def _where_to_look(self) -> str:
        group = self._worker_group
        if group.group_rank != 0:  # the memory is on that node
            return ""
        here = {"MASTER_ADDR": group.master_addr or "", "MASTER_PORT": str(group.master_port)}
        with environment(TORCHELASTIC_USE_AGENT_STORE="True", **here):
            folder = distributed.recall(distributed.RUN_FOLDER)
        return "" if folder is None else f"; see {os.path.join(folder, 'train.log')}"


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """The environment with `values` in the place of what it had, while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of what it does to the processes: those that fail speak, and then the agent."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _say(what: str) -> None:
    print(f"spkexp: {what}", file=sys.stderr, flush=True)
