"""hydra/launcher=submitit_local and submitit_slurm: jobs that outlast a time limit, being started again."""

import signal
import sys
import time
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from hydra_plugins.spkexp_launchers.job import Job, JobLauncher
from spkexp.errors import UserError
from spkexp.records import Ticket

POLL_SECONDS = 0.5
SECONDS_TO_STOP = 120  # for jobs that are cancelled to save; Slurm's KillWait is 30 s unless a site has another


class LocalLauncher(JobLauncher):
    """What a Slurm cluster does, on this machine: a job that reaches its time limit is warned, saves, and goes on."""

    def __init__(
        self,
        n_jobs: int,
        timeout_min: float,
        max_num_timeout: int,
        signal_delay_s: int,
        gpus_per_node: int,
        setup: ListConfig,
    ) -> None:
        """conf/hydra/launcher/submitit_local.yaml says what they are."""
        self.n_jobs, self.max_num_timeout = n_jobs, max_num_timeout
        self.parameters = {
            "timeout_min": timeout_min,
            "signal_delay_s": signal_delay_s,
            "gpus_per_node": gpus_per_node,
            "setup": OmegaConf.to_container(setup),
        }

    def run(self, jobs: list[Job]) -> list[str | None]:
        from submitit import LocalExecutor

        executor = LocalExecutor(self.folder / ".submitit" / "%j", max_num_timeout=self.max_num_timeout)
        executor.update_parameters(**self.parameters)
        ends: list[str | None] = [None] * len(jobs)
        waiting, running = list(enumerate(jobs)), dict[int, Any]()
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs and Ticket.read(self.folder).stopped is None:
                    index, job = waiting.pop(0)
                    running[index] = _submit_deaf(executor, job)
                for index in [index for index, job in running.items() if job.done()]:
                    ends[index] = f"see {running.pop(index).paths.stderr}"
                if not running and Ticket.read(self.folder).stopped is not None:
                    break
                time.sleep(POLL_SECONDS)
        except BaseException:  # those that began when the sweep was stopped already
            while not all(job.done() for job in running.values()):
                time.sleep(POLL_SECONDS)
            raise
        return ends


def _submit_deaf(executor: Any, job: Job) -> Any:
    """Submit a job whose controller does not hear Ctrl-C, for it would give the job one second to save."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, former)


class SlurmLauncher(JobLauncher):
    """One array of Slurm jobs, each on as many nodes as it asks for. Jobs whose sweep is stopped are cancelled."""

    def __init__(
        self,
        name: str,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        exclude: str | None,
        nodes: int,
        tasks_per_node: int,
        gpus_per_node: int | None,
        cpus_per_task: int,
        mem_gb: float | None,
        timeout_min: int,
        max_num_timeout: int,
        signal_delay_s: int,
        array_parallelism: int,
        setup: ListConfig,
        additional_parameters: DictConfig,
    ) -> None:
        """conf/hydra/launcher/submitit_slurm.yaml says what they are."""
        self.max_num_timeout = max_num_timeout
        parameters = {
            "name": name,
            "nodes": nodes,
            "tasks_per_node": tasks_per_node,
            "gpus_per_node": gpus_per_node,
            "cpus_per_task": cpus_per_task,
            "mem_gb": mem_gb,
            "timeout_min": timeout_min,
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_qos": qos,
            "slurm_constraint": constraint,
            "slurm_exclude": exclude,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_array_parallelism": array_parallelism,
            "slurm_setup": OmegaConf.to_container(setup),
            "slurm_additional_parameters": OmegaConf.to_container(additional_parameters),
            # Since Slurm 22.05 a step does not have the CPUs of its job unless it asks for them.
            "slurm_srun_args": [f"--cpus-per-task={cpus_per_task}"],
        }
        self.parameters = {key: value for key, value in parameters.items() if value is not None}

    def run(self, jobs: list[Job]) -> list[str | None]:
        from submitit import AutoExecutor

        try:
            folder = self.folder / ".submitit" / "%j"
            executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout)
        except RuntimeError as error:
            print(UserError(f"spkexp: hydra/launcher=submitit_slurm: {error}"), file=sys.stderr)
            sys.exit(2)
        executor.update_parameters(**self.parameters)
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
        Ticket.read(self.folder).leave_to_slurm(self.folder, [job.job_id for job in submitted])
        print(f"spkexp: Slurm has {', '.join(job.job_id for job in submitted)}", file=sys.stderr, flush=True)
        try:
            while not all(job.done() for job in submitted):
                time.sleep(POLL_SECONDS)
        except BaseException:
            for job in submitted:
                job.cancel(check=False)
            print("spkexp: the jobs are cancelled; those that run save", file=sys.stderr, flush=True)
            self.wait_until_saved(SECONDS_TO_STOP)
            raise
        Ticket.read(self.folder).leave_to_slurm(self.folder, [])
        return [f"Slurm says {job.state}; see {job.paths.stderr}" for job in submitted]
