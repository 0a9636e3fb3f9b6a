"""Scoring at the size of VoxCeleb1-H: cosine, AS-norm, error rates; beside SpeechBrain's minDCF.

    python benchmarks/scoring.py [--repeats 5] [--output FILE]

552,536 trials over 145,160 utterances of 256 numbers, cohort of 5,994, the 300 highest; embeddings and trials at
random, half of the trials targets. Each measurement is a process of its own, which makes its data, then imports and
measures. "seconds" are of the work named alone, after a small round of it to warm up; "peak_mb" is the most memory that
the whole process had, its data and imports included. SpeechBrain's minDCF, whose memory grows with the square of the
trials, has 16,000 of them.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from common import parser, write

UTTERANCES, SIZE, TRIALS, COHORT, TOP_N, FEW_TRIALS = 145_160, 256, 552_536, 5_994, 300, 16_000
ASKED = {
    "cosine": {"seconds": 2, "peak_mb": 600},
    "as_norm": {"seconds": 25, "peak_mb": 2000},
    "eer_min_dcf": {"seconds": 0.3},
}


def embeddings(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, SIZE), dtype=np.float32)


def pairs(share: int) -> tuple[np.ndarray, np.ndarray]:
    """One in `share` of the trials, over one in `share` of the utterances."""
    enroll, test = np.random.default_rng(2).integers(UTTERANCES // share, size=(2, TRIALS // share))
    return enroll, test


def scores(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal, those of targets 3 deviations higher, and whether they are of targets."""
    rng = np.random.default_rng(3)
    target = rng.random(count) < 0.5
    return (rng.standard_normal(count) + 3 * target).astype(np.float32), target


def cosine() -> Callable[[int], Any]:
    given = embeddings(UTTERANCES, 0)
    from spkexp.scoring.projection import Cosine, pair_scores

    def work(share: int) -> Any:
        sides = Cosine().project(given[: UTTERANCES // share])
        return pair_scores(sides, sides, *pairs(share))

    return work


def as_norm() -> Callable[[int], Any]:
    """From the embeddings of trials and cohort to normalised scores; the cosine is part of it."""
    given, cohort = embeddings(UTTERANCES, 0), embeddings(COHORT, 1)
    from spkexp.scoring.normalise import ScoreNormalisation
    from spkexp.scoring.projection import Cosine, pair_scores

    def work(share: int) -> Any:
        sides = Cosine().project(given[: UTTERANCES // share])
        trials = pairs(share)
        normalisation = ScoreNormalisation("as", Cosine().project(cohort), TOP_N)
        of = normalisation.statistics(sides)
        return normalisation.normalise(pair_scores(sides, sides, *trials), *trials, of, of)

    return work


def eer_min_dcf() -> Callable[[int], Any]:
    score, target = scores(TRIALS)
    from spkexp.scoring.metrics import Ranking, eer, min_dcf

    def work(share: int) -> Any:
        count = TRIALS // share
        rates = Ranking(score[:count], target[:count]).error_rates()
        return eer(rates), min_dcf(rates, 0.01)

    return work


def few_eer_min_dcf() -> Callable[[int], Any]:
    """At SpeechBrain's size."""
    score, target = scores(FEW_TRIALS)
    from spkexp.scoring.metrics import Ranking, min_dcf

    return lambda share: min_dcf(Ranking(score[::share], target[::share]).error_rates(), 0.01)


def speechbrain_min_dcf() -> Callable[[int], Any]:
    score, target = scores(FEW_TRIALS)
    import torch
    from speechbrain.utils.metric_stats import minDCF

    sides = torch.from_numpy(score[target]), torch.from_numpy(score[~target])
    return lambda share: minDCF(sides[0][::share], sides[1][::share], p_target=0.01)


def plda() -> Callable[[int], Any]:
    """Training of the two-covariance model, whitened and length-normalised: 20 utterances a speaker, 20 iterations."""
    rng = np.random.default_rng(4)
    speaker = np.repeat(np.arange(COHORT), 20)
    given = embeddings(len(speaker), 5)
    given += rng.standard_normal((COHORT, SIZE), dtype=np.float32)[speaker]
    from spkexp.scoring.plda import Plda

    def work(share: int) -> Any:
        count = len(speaker) // share
        return Plda.fit(given[:count], speaker[:count], "two_covariance", None, 20, None, True, True)

    return work


CASES = {case.__name__: case for case in (cosine, as_norm, plda, eer_min_dcf, few_eer_min_dcf, speechbrain_min_dcf)}
REPEATS_AT_MOST = {"as_norm": 3, "plda": 3}


def measure(case: str) -> None:
    work = CASES[case]()
    work(50)
    began = time.perf_counter()
    work(1)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    arguments = parser(__doc__, "scoring")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--measure", choices=CASES, help="for the processes that this one starts")
    given = arguments.parse_args()
    if given.measure:
        return measure(given.measure)
    results: dict[str, dict[str, Any]] = {}
    for case in CASES:
        turns = []
        for _ in range(min(given.repeats, REPEATS_AT_MOST.get(case, given.repeats))):
            command = [sys.executable, __file__, "--measure", case]
            turns.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        results[case] = {
            "seconds": round(median(turn["seconds"] for turn in turns), 3),
            "peak_mb": round(median(turn["peak_mb"] for turn in turns)),
            "repeats": len(turns),
        }
        print(case, results[case], flush=True)
    sizes = {"trials": TRIALS, "utterances": UTTERANCES, "size": SIZE, "cohort": COHORT, "top_n": TOP_N}
    write(
        given.output,
        "scoring at the size of VoxCeleb1-H",
        {"sizes": sizes | {"few_trials": FEW_TRIALS}, "asked_at_most": ASKED, "results": results},
        "numpy",
        "speechbrain",
    )
    return None


if __name__ == "__main__":
    main()
