"""hydra/launcher=joblib: so many jobs at a time on this machine, each in a process of its own."""

import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hydra_plugins.spkexp_launchers.job import Job, JobLauncher
from spkexp.records import Ticket


class JoblibLauncher(JobLauncher):
    """joblib's threads, each of which waits for the process of a job.

    Not loky's processes: where one of those is killed, by the system for its memory say, joblib ends all others.
    """

    def __init__(self, n_jobs: int) -> None:
        """n_jobs: as joblib has it; -1: as many as there are cores."""
        self.n_jobs = n_jobs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def run(self, jobs: list[Job]) -> list[str | None]:
        from joblib import Parallel, delayed

        try:
            return list(Parallel(n_jobs=self.n_jobs, prefer="threads")(delayed(self._run)(job) for job in jobs))
        except BaseException:  # those that began when the sweep was stopped already
            for process in self._processes:
                process.wait()
            raise

    def _run(self, job: Job) -> str | None:
        import cloudpickle

        if Ticket.read(self.folder).stopped is not None:
            return None
        with tempfile.TemporaryDirectory(prefix="spkexp-job-") as folder:
            file = Path(folder, "job.pkl")
            file.write_bytes(cloudpickle.dumps(job))
            command = [sys.executable, "-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()", str(file)]
            with self._lock:  # the thread ends with its process, so that the process may end with its thread
                process = subprocess.Popen(command)
                self._processes.append(process)
            code = process.wait()
        return end_of(code)


def end_of(code: int) -> str:
    """How a process ended, from its exit code, negative for a signal."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
