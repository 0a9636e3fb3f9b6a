"""One process of `python -m tests.fuzz`: TARGET SECONDS SEED FIRST FOLDER."""

import sys
from pathlib import Path

from tests.fuzz.__main__ import child

if __name__ == "__main__":
    name, seconds, seed, first, folder = sys.argv[1:]
    child(name, float(seconds), int(seed), int(first), Path(folder))
