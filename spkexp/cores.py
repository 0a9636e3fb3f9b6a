"""How much of the machine is ours."""

import os


def cores() -> int:
    """Cores that this process may use: a container or a cluster may have given it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
