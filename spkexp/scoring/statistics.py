"""Uncertainty of error rates: trials share speakers, so it is speakers that are resampled, not trials."""

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.scoring.metrics import Ranking, eer

# Below this, the resamples are so few different ones that an interval would feign certainty.
MIN_SPEAKERS = 5


def eer_interval(
    ranking: Ranking,
    enroll_speaker: NDArray[np.int64],
    test_speaker: NDArray[np.int64],
    replicates: int,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % percentile interval of the EER under a bootstrap over speakers; None where they are too few for one.

    A replicate draws as many speakers as there are, with replacement. A speaker drawn c times brings its target
    trials c times, a non-target trial of speakers drawn c and c' times counts c·c' times (the vertex bootstrap of
    Snijders and Borgatti 1999; for verification: Bolle, Ratha and Pankanti 2004, "subset bootstrap"). Resampling
    trials as if they were independent would make the interval far too narrow.

    ranking: of the N trials; enroll_speaker, test_speaker: (N,) speaker index of either side.
    """
    speakers = int(max(enroll_speaker.max(), test_speaker.max())) + 1
    if speakers < MIN_SPEAKERS:
        return None
    rng = generator(seed)
    same = enroll_speaker == test_speaker
    values = []
    for _ in range(replicates):
        count = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers).astype(np.float64)
        weights = count[enroll_speaker] * np.where(same, 1.0, count[test_speaker])
        if weights[same].sum() > 0 and weights[~same].sum() > 0:
            values.append(eer(ranking.error_rates(weights)))
    if len(values) < max(20, replicates // 2):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def accuracy_interval(
    correct: NDArray[np.bool_], speaker: NDArray[np.int64], replicates: int, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of the mean of `correct` under a bootstrap over speakers; None where they are too few.

    A replicate draws as many speakers as there are, with replacement, each with all of its utterances (the cluster
    bootstrap: Davison and Hinkley 1997, sec. 3.8): what one voice gets wrong it gets wrong again and again.

    correct: (N,) whether each utterance was classified right; speaker: (N,) index of who speaks.
    """
    _, codes = np.unique(speaker, return_inverse=True)
    sizes = np.bincount(codes)
    if len(sizes) < MIN_SPEAKERS or replicates < 20:
        return None
    hits = np.bincount(codes, weights=correct)
    rng = generator(seed)
    values = []
    for _ in range(replicates):
        drawn = rng.integers(len(sizes), size=len(sizes))
        values.append(hits[drawn].sum() / sizes[drawn].sum())
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
