"""Freed memory is kept for the next step instead of going back to the system: for training and scoring on a CPU.

An activation of a 2-D network has tens of megabytes. glibc asks the system for each such block and returns it when it
is freed, so that every step touches all its memory for the first time, page by page: a third of a ResNet34's step.
"""

import ctypes
import sys

# mallopt(3): parameters of glibc's malloc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let this process's malloc hold on to what it once had. Does nothing where the C library is not glibc.

    After about ten equal steps nothing is asked of the system any more; until then some blocks find no place that fits,
    and the process has by so much more than it uses.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(_MMAP_MAX, 0)  # large blocks come from the heap, too
    library.mallopt(_TRIM_THRESHOLD, -1)  # the heap never shrinks
    library.mallopt(_TOP_PAD, 64 * 2**20)  # and grows in large steps
