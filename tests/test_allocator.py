"""Memory that was freed is there again without the system's help."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
if sys.argv[1] == "keep":
    from spkexp.allocator import keep_freed_memory
    keep_freed_memory()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(16):  # it takes a few until the blocks fit one another
    torch.ones(25_000_000)  # 100 MB
before = faults()
for _ in range(3):
    torch.ones(25_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_large_block_is_touched_for_the_first_time_once() -> None:
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 1000  # of some 25,000 pages each time
    assert faults["leave"] > 3 * faults["keep"]
