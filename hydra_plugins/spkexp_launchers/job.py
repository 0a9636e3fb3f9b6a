"""What the launchers have in common: a job that runs in any process, and what became of all of them."""

import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from spkexp.records import FAILED, RUNNING, STOPPED, Record, Ticket, record_of, records


@dataclass(frozen=True)
class Job:
    """One job of a sweep. It is pickled, by cloudpickle, and called in the process that runs it.

    start: of the sweep that it belongs to; once that was killed and started anew, the job begins no more.
    """

    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction
    overrides: list[str]
    number: int
    singletons: dict[Any, Any]
    start: str

    def __call__(self) -> Any:
        if Ticket.read(Path(self.config.hydra.sweep.dir)).start != self.start:
            print("spkexp: the sweep of this job was started anew, which is to run it", file=sys.stderr)
            return None
        Singleton.set_state(self.singletons)
        setup_globals()
        config = self.hydra_context.config_loader.load_sweep_config(self.config, self.overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(self.number), self.number
        done = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        return done.return_value

    def checkpoint(self) -> Any:
        """submitit asks for it when Slurm takes the node back: the same job again, which goes on (resume=auto)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class JobLauncher(Launcher):
    """Runs jobs in processes of their own. What became of one is read from its record, however it ended."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def run(self, jobs: list[Job]) -> list[str | None]:
        """Run all jobs to their end. Returns, for each, how its process failed where the launcher knows."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Raises SystemExit where a job was stopped, so that no further ones are launched."""
        setup_globals()
        shared = self.hydra_context, self.config, self.task_function
        state, start = Singleton.get_state(), Ticket.read(self.folder).start
        jobs = [
            Job(*shared, list(overrides), initial_job_idx + index, state, start)
            for index, overrides in enumerate(job_overrides)
        ]
        ends = self.run(jobs)
        found = [self._record(job, end) for job, end in zip(jobs, ends, strict=True)]
        if any(record.status == STOPPED for record in found):
            sys.exit(Ticket.read(self.folder).stopped)
        return [self._result(record) for record in found]

    @property
    def folder(self) -> Path:
        return Path(self.config.hydra.sweep.dir)

    def wait_until_saved(self, seconds: float) -> None:
        """Until no job of this start runs according to its record, which those of other machines have alone."""
        start, end = Ticket.read(self.folder).start, time.monotonic() + seconds
        while any(record.start == start and record.status == RUNNING for record in records(self.folder)):
            if time.monotonic() > end:
                break
            time.sleep(0.1)

    def _record(self, job: Job, end: str | None) -> Record:
        """The record of a job whose process has ended; written where the process could not."""
        start = Ticket.read(self.folder)
        record = record_of(self.folder, job.overrides)
        if record is None or record.start != start.start:
            record = Record(
                job.number, job.overrides, RUNNING, None, None, None, 0.0, start.start, start.host, start.pid
            )
        if record.status == RUNNING:
            why = "ended without a message" if end is None else f"ended without a message, {end}"
            stopped = start.stopped is not None
            record = record.now(status=STOPPED if stopped else FAILED, error=None if stopped else why)
            record.write(self.folder)
        return record

    @staticmethod
    def _result(record: Record) -> JobReturn:
        result = JobReturn(overrides=record.overrides, status=JobStatus.COMPLETED)
        result.return_value = record.result
        return result
