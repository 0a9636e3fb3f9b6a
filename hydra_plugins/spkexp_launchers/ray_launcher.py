"""hydra/launcher=ray: jobs on a Ray cluster, or on a Ray of this machine's own that ends with the sweep."""

import os
import signal
from contextlib import suppress
from typing import Any

from hydra_plugins.spkexp_launchers.job import Job, JobLauncher

SECONDS_TO_STOP = 600  # for jobs on other machines to save


class RayLauncher(JobLauncher):
    """Each job is a task in a fresh worker, of which no second attempt is made."""

    def __init__(self, address: str | None, num_cpus: int | None, cpus_per_job: float, gpus_per_job: float) -> None:
        """conf/hydra/launcher/ray.yaml says what they are."""
        self.address, self.num_cpus = address, num_cpus
        self.cpus_per_job, self.gpus_per_job = cpus_per_job, gpus_per_job

    def run(self, jobs: list[Job]) -> list[str | None]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        import cloudpickle
        import ray

        former = signal.getsignal(signal.SIGTERM)
        ray.init(address=self.address, num_cpus=self.num_cpus, include_dashboard=False, configure_logging=False)
        signal.signal(signal.SIGTERM, former)  # Ray has put its own
        try:
            remote = ray.remote(num_cpus=self.cpus_per_job, num_gpus=self.gpus_per_job, max_retries=0, max_calls=1)(
                _call
            )
            tasks = [remote.remote(cloudpickle.dumps(job)) for job in jobs]
            try:
                return [self._end(task) for task in tasks]
            except BaseException:
                for task in tasks:
                    ray.cancel(task)
                ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_TO_STOP)
                raise
        finally:
            ray.shutdown()

    @staticmethod
    def _end(task: Any) -> str | None:
        import ray

        try:
            ray.get(task)
        except ray.exceptions.RayError as error:
            return f"Ray says {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return None


def _call(pickled: bytes) -> None:
    import cloudpickle

    with suppress(SystemExit):  # which the job's record tells; for Ray it would be a crash
        cloudpickle.loads(pickled)()
