"""`python -m tests.fuzz.coverage_guided TARGET [-runs=N] [-max_total_time=S]`: the same targets, led by coverage.

Needs atheris (pip install atheris, Python 3.11 to 3.13), whose other options are those of libFuzzer.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["spkexp"]):
    from tests.fuzz.targets import TARGETS, seeds, try_one


def main() -> None:
    """Until an input brings the target down, which is then kept as crash-*."""
    name, options = sys.argv[1], sys.argv[2:]
    if name not in TARGETS:
        sys.exit(f"{name}: expected one of {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as place:
        corpus, work = Path(place, "corpus"), Path(place, "work")
        corpus.mkdir()
        work.mkdir()
        for number, content in enumerate(seeds(name)):
            (corpus / str(number)).write_bytes(content)
        atheris.Setup(
            [sys.argv[0], "-rss_limit_mb=6144", "-timeout=10", *options, str(corpus)],
            lambda content: try_one(name, content, work),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
