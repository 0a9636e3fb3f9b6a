"""A process that ends with the one that started it, however that ended."""

import ctypes
import os
import signal
import sys


def die_with(parent: int) -> None:
    """Let the kernel kill this process when process `parent`, which started it, ends. Does nothing outside Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)
