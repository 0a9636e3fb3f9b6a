"""The exit codes of what a signal stopped, and the signals that announce a cluster's patience running out."""

import os
import signal

# Ends that were asked for.
STOPPED = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGHUP, os.EX_TEMPFAIL})


def warnings() -> set[int]:
    """Signals by which a cluster announces that it will take the machine back: the job is to be started again.

    SIGUSR1 is what people ask of Slurm (`--signal=USR1@120`); submitit asks for SIGUSR2 or what its variable names.
    """
    chosen = signal.Signals.__members__.get("SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
    return {signal.SIGUSR1, signal.SIGUSR2, *([chosen] if chosen is not None else [])}


def of_signal(number: int) -> int:
    """75 (EX_TEMPFAIL: start it again) after a cluster's warning, else 128 and the signal, as shells have it."""
    return os.EX_TEMPFAIL if number in warnings() else 128 + number
