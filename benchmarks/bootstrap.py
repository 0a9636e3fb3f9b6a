"""Metrics and the bootstrap over speakers at the size of VoxCeleb1-H: seconds and memory.

    python benchmarks/bootstrap.py [--replicates 1000] [--repeats 5] [--output FILE]

552,536 trials, half of them targets, of 1,190 speakers; synthetic scores at an EER of about 1.8 %.
"""

import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from common import parser, write
from numpy.typing import NDArray

from spkexp.scoring.measures import Measures
from spkexp.scoring.metrics import eer, error_rates, min_dcf
from spkexp.scoring.resampling import SpeakerBootstrap, resample
from spkexp.scoring.statistics import interval

TRIALS, SPEAKERS = 552_536, 1_190
P_TARGETS = (0.01, 0.05)


def trials() -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Scores like natural-log likelihood ratios, a quarter of their variance of the speakers."""
    rng = np.random.default_rng(0)
    target = rng.permutation(np.arange(TRIALS) < TRIALS // 2)
    enroll = rng.integers(0, SPEAKERS, TRIALS)
    test = np.where(target, enroll, (enroll + rng.integers(1, SPEAKERS, TRIALS)) % SPEAKERS)
    speaker = rng.normal(size=SPEAKERS)
    shared = np.where(target, speaker[enroll], (speaker[enroll] + speaker[test]) / np.sqrt(2))
    noise = 0.5 * shared + np.sqrt(0.75) * rng.normal(size=TRIALS)
    return (4.2 * (np.where(target, 2.1, -2.1) + noise)).astype(np.float32), target, enroll, test


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    arguments = parser(__doc__, "bootstrap")
    arguments.add_argument("--replicates", type=int, default=1000)
    arguments.add_argument("--repeats", type=int, default=5)
    given = arguments.parse_args()
    score, target, enroll, test = trials()

    def rates() -> None:
        found = error_rates(score, target)
        eer(found)
        for p in P_TARGETS:
            min_dcf(found, p)

    once = [seconds(rates) for _ in range(given.repeats)]
    before = peak_mb()
    bootstrap = SpeakerBootstrap(enroll, test, given.replicates)
    measures = Measures(score, target, P_TARGETS, llr=True)
    plain = [key for key in measures.keys if key == "eer" or key.startswith("min_dcf")]
    few = seconds(lambda: resample(measures, bootstrap, plain))
    every = seconds(lambda: resample(measures, bootstrap))
    peak = peak_mb()
    draws = resample(measures, bootstrap)
    values = dict(zip(measures.keys, measures().tolist(), strict=True))
    write(
        given.output,
        f"{TRIALS:,} trials of {SPEAKERS:,} speakers; all cores",
        {
            "asked_at_most_seconds": {"eer and min_dcf": 0.3, "bootstrap": 30},
            "eer_and_min_dcf_seconds": round(median(once), 3),
            "replicates": given.replicates,
            "bootstrap_of_eer_and_min_dcf_seconds": round(few, 2),
            "bootstrap_of_all_metrics_seconds": round(every, 2),
            "peak_memory_mb": round(peak),
            "peak_memory_before_the_bootstrap_mb": round(before),
            "metrics": {key: [value, interval(value, draws.of(key))] for key, value in values.items()},
        },
        "numpy",
        "scipy",
    )


if __name__ == "__main__":
    main()
