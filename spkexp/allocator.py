"""When freed memory goes back to the system: that of activations on a CPU never, that of tables at once.

An activation of a 2-D network has tens of megabytes. glibc asks the system for each such block and returns it when it
is freed, so that every step touches all its memory for the first time, page by page: a third of a ResNet34's step.
polars has jemalloc, which keeps what it once had for seconds, and without further calls for good: of a table of a
million utterances that is more than what training holds of it.
"""

import ctypes
import os
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


def return_memory_of_tables() -> None:
    """Let polars return freed memory after a tenth of a second. Takes effect if called before polars is imported."""
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:100,muzzy_decay_ms:0")
