"""Uncertainty of metrics: intervals, and whether one system is better than another.

A standard error comes from the bootstrap over speakers (`resampling`), an interval from Student's t on a scale where
errors are about as likely upward as downward. benchmarks/coverage.py shows by simulation what these hold and what plain
percentiles of the replicates, bias-corrected ones and others hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.scoring.resampling import Draws

# Below this, the resamples are so few different ones that an interval would feign certainty.
MIN_SPEAKERS = 10
MIN_SPEAKERS_OF_A_MEAN = 5
# The number of speakers with which half of the pairs' excess variance is taken away; see `_spread`.
HALF_EXCESS = 20
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Of a metric between two systems on the same trials: the first less the second."""

    value: float
    low: float  # 95 % interval
    high: float
    p_value: float  # two-sided, that the two differ no more than chance has it


@dataclass(frozen=True)
class _Spread:
    variance: float
    freedom: float  # degrees of freedom that the variance is worth


def interval(value: float, draws: Draws) -> tuple[float, float] | None:
    """95 % interval of the metric on unlimited trials of unlimited speakers; None where there is too little to say so.

    It lies around the value less its optimism: the threshold of a minDCF is chosen on the very trials that it is
    measured on, and with few errors that flatters. The scale is that of `_around`, above 0: minDCF and minCllr are no
    more than cut off at 1, by rejecting everything. EER and AUC become 1 less that where all scores change their signs,
    so what optimises nothing and lies in [0, 1] is measured from the end nearer to it.

    With one seed it says nothing of other seeds; with several (`combine_seeds`) it holds for new ones.
    """
    spread = _spread(draws)
    if spread is None or spread.variance == 0:
        return None
    centre, step = value - draws.optimism, _quantile(spread) * np.sqrt(spread.variance)
    most = 1.0 if draws.bounded else np.inf
    centre = min(centre, most)
    if draws.bounded and draws.optimism == 0 and centre > 0.5:
        ends = _around(1 - centre, step, most)
        return ends and (1 - ends[1], 1 - ends[0])
    return _around(centre, step, most)


def _around(centre: float, step: float, most: float) -> tuple[float, float] | None:
    """`centre` ± `step` on the scale of log(x + pad), cut off at 0 and at `most`; None where `centre` is 0.

    The pad is next to nothing where the step is small. A step as large as the centre or larger, which a logarithm would
    blow up (e¹⁰ where it is ten times the centre), it brings near that of a linear scale; a tenth leaves small error
    rates the long upper tail that they need (benchmarks/coverage.py).
    """
    if centre <= 0:
        return None
    pad = step**2 / (10 * centre)
    ratio = np.exp(step / (centre + pad))
    return float(max((centre + pad) / ratio - pad, 0)), float(min((centre + pad) * ratio - pad, most))


def difference(value_a: float, draws_a: Draws, value_b: float, draws_b: Draws) -> Difference | None:
    """Of a metric of two systems on the same trials, both resampled together; None where there is too little to say so.

    Raises ValueError where the draws are not those of the same trials and replicates.
    """
    draws = _joint((draws_a, draws_b), (1.0, -1.0))
    draws = replace(draws, of_seeds=draws_a.of_seeds + draws_b.of_seeds, doubt=draws_a.doubt + draws_b.doubt)
    spread, value = _spread(draws, of_difference=True), value_a - value_b
    if spread is None or (spread.variance == 0 and value != 0):
        return None
    centre, step = value - draws.optimism, _quantile(spread) * np.sqrt(spread.variance)
    return Difference(value, float(centre - step), float(centre + step), _p_value(centre, spread))


def combine_seeds(values: Sequence[float], draws: Sequence[Draws]) -> tuple[float, Draws]:
    """Mean over the S seeds of one configuration on the same trials, and what is known of it.

    Other speakers would move all seeds together and each of them apart: the replicates of the mean have both. Other
    seeds would move the mean by a further σ²/S. The variance between the S values is σ² plus what chance moves each
    apart on these trials; the replicates tell the latter, which is taken away (a random-effects analysis of variance;
    Searle, Casella and McCulloch 1992, sec. 3.5). Of three seeds σ² is known badly: Satterthwaite 1946 ("An
    approximate distribution of estimates of variance components") turns that into degrees of freedom of Student's t.
    """
    if len(values) != len(draws) or not values:
        raise ValueError(f"expected as many draws as values, got {len(draws)} and {len(values)}")
    S = len(values)
    if S == 1:
        return float(values[0]), draws[0]
    mean = _joint(draws, [1.0 / S] * S)
    apart = [_spread(_joint((one, mean), (1.0, -1.0)), of_difference=True) for one in draws]
    by_chance = sum(spread.variance for spread in apart if spread is not None) / (S - 1)
    between = float(np.var(values, ddof=1))
    doubt = (between / S) ** 2 / (S - 1)
    return float(np.mean(values)), replace(mean, of_seeds=max(between - by_chance, 0.0) / S, doubt=doubt)


def _joint(several: Sequence[Draws], shares: Sequence[float]) -> Draws:
    """Of a weighted sum of metrics of the same trials."""
    sizes = {(draws.num_speakers, len(draws.speakers), len(draws.pairs)) for draws in several}
    if len(sizes) != 1:
        raise ValueError("only metrics of the same trials, resampled alike, can be combined or compared")
    speakers, pairs, optimism = (
        sum(share * getattr(draws, of) for share, draws in zip(shares, several, strict=True))
        for of in ("speakers", "pairs", "optimism")
    )
    misjudged = sum((share * draws.optimism) ** 2 for share, draws in zip(shares, several, strict=True)) / 4
    first = several[0]
    return Draws(speakers, pairs, float(optimism), first.num_speakers, first.bounded, misjudged=misjudged)


def _spread(draws: Draws, of_difference: bool = False) -> _Spread | None:
    """Variance of a metric over draws of new speakers (and seeds); None with too few speakers or usable replicates.

    Of n speakers, V the variance of the replicates with drawn speakers, in which the pairs' part comes thrice, and P
    that of the replicates with drawn pairs (SpeakerBootstrap), it is

        (V - 2P·n/(n+20))·n/(n-2) + optimism²

    In a large list that takes the superfluous two thirds away. In a small one the distribution of an error rate has
    long tails, for which some of them make up: 20 is what simulations say (benchmarks/coverage.py). P has a share of
    the speakers' variance in it, hence n-2 where a mean would have n-1. What optimising flatters by is only half known,
    hence its square, and in a difference, where most of that cancels, a quarter of either's.

    Few speakers make most of the errors (Doddington et al. 1998, "Sheep, goats, lambs and wolves"): the degrees of
    freedom are those of the variance of n values whose kurtosis is 5 rather than the normal distribution's 3, unless it
    is of a difference, whose tails are alike.
    """
    n, usable = draws.num_speakers, np.isfinite(draws.speakers)
    pairs = draws.pairs[np.isfinite(draws.pairs)]
    if n < MIN_SPEAKERS or usable.sum() < max(20, 0.9 * len(usable)) or len(pairs) < 20:
        return None
    freedom = n - 1 if of_difference else (n - 1) / 2
    total, excess = float(np.var(draws.speakers[usable])), 2 * n / (n + HALF_EXCESS) * float(np.var(pairs))
    of_speakers = max(total - excess, total / 3) * n / (n - 2) + draws.optimism**2 + draws.misjudged
    variance = of_speakers + draws.of_seeds
    doubt = of_speakers**2 / freedom + draws.doubt
    return _Spread(variance, variance**2 / doubt if doubt > 0 else freedom)


def _quantile(spread: _Spread) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, max(spread.freedom, 1.0)))


def _p_value(centre: float, spread: _Spread) -> float:
    from scipy.stats import t

    if spread.variance == 0:
        return 1.0
    return float(2 * t.sf(abs(centre) / np.sqrt(spread.variance), max(spread.freedom, 1.0)))


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
    if len(sizes) < MIN_SPEAKERS_OF_A_MEAN or replicates < 20:
        return None
    hits = np.bincount(codes, weights=correct)
    rng = generator(seed)
    values = []
    for _ in range(replicates):
        drawn = rng.integers(len(sizes), size=len(sizes))
        values.append(hits[drawn].sum() / sizes[drawn].sum())
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
