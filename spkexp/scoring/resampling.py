"""Metrics of resampled speakers: what a test with other speakers might have found.

The trials of a speaker rise and fall together, so it is speakers that are drawn, each with all of its trials: Bolle,
Ratha and Pankanti 2004, "Error analysis of pattern recognition systems - the subsets bootstrap", show intervals over
trials to be several times too narrow. A non-target trial belongs to two speakers, as an edge of a graph does to two
vertices: Snijders and Borgatti 1999, "Non-parametric standard errors and tests for network statistics", draw vertices.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkexp.cores import cores
from spkexp.counter import generator
from spkexp.scoring.measures import Measures
from spkexp.scoring.metrics import Array

# Weights that a thread holds at once: bounds its memory to tens of MB, and takes many replicates of a short list.
BLOCK = 200_000
MIN_PAIR_REPLICATES = 200
LEAST_ERRORS = 20.0  # of the dearer kind that a detection cost of 1 stands for, for it to be resampled
SPEAKERS, PAIRS = 0, 1  # what a generator draws


class SpeakerBootstrap:
    """Draws of the speakers of a list of trials: a function of (seed, replicate) and of who speaks in each trial.

    A replicate draws as many speakers as there are, with replacement. A trial of one speaker drawn c times counts c
    times, one of two speakers drawn c and c′ times c·c′ times.

    That counts something in excess. A score varies with its two speakers and with the chances of the pair itself, and
    under the product of two draws the variance of the pair's part comes three times over: once with either speaker and
    once more (Owen 2007, "The pigeonhole bootstrap"). So there are replicates of the pairs, too, in which each two
    different speakers count 0 or 2 times by chance: there it comes once, so that two of the three can be taken away.

    enroll_speaker, test_speaker: (N,) numbers of the speakers.
    """

    def __init__(
        self, enroll_speaker: NDArray[np.int64], test_speaker: NDArray[np.int64], replicates: int, seed: int = 0
    ) -> None:
        if replicates < 1:
            raise ValueError(f"replicates must be at least 1, got {replicates}")
        self.replicates, self.pair_replicates, self.seed = replicates, max(MIN_PAIR_REPLICATES, replicates // 5), seed
        present = np.zeros(int(max(enroll_speaker.max(), test_speaker.max())) + 1, dtype=bool)
        present[enroll_speaker] = present[test_speaker] = True
        self.num_speakers = S = int(present.sum())
        code = np.cumsum(present) - 1
        first, second = code[enroll_speaker], code[test_speaker]
        same = first == second
        pairs = np.minimum(first, second) * S + np.maximum(first, second)
        used, place = np.unique(pairs[~same], return_inverse=True)
        self.num_pairs = len(used)
        self._first, self._second, self._pair = first, np.where(same, S, second), np.full(len(same), len(used))
        self._pair[~same] = place  # the place behind the last, as S among the speakers, always counts once

    def __len__(self) -> int:
        """Number of trials."""
        return len(self._first)

    def places(self, trials: NDArray[np.int64]) -> "Places":
        """Where the weights of `trials` are found among those of the speakers and of the pairs."""
        second = self._second[trials]
        return Places(self._first[trials], second if (second < self.num_speakers).any() else None, self._pair[trials])

    def counts(self, replicates: range) -> Array:
        """(B, S+1) how often each speaker is drawn; 1 in the last column."""
        S = self.num_speakers
        counts = np.ones((len(replicates), S + 1))
        for row, replicate in enumerate(replicates):
            drawn = generator(self.seed, SPEAKERS, replicate).integers(S, size=S)
            counts[row, :S] = np.bincount(drawn, minlength=S)
        return counts

    def pair_counts(self, replicates: range) -> Array:
        """(B, P+1) how often each pair of different speakers counts; 1 in the last column."""
        counts = np.ones((len(replicates), self.num_pairs + 1))
        for row, replicate in enumerate(replicates):
            drawn = generator(self.seed, PAIRS, replicate).integers(2, size=self.num_pairs, dtype=np.uint8)
            counts[row, :-1] = 2 * drawn
        return counts


@dataclass(frozen=True)
class Places:
    """Where T trials find their weights, as columns of the two tables of counts."""

    first: NDArray[np.int64]  # (T,)
    second: NDArray[np.int64] | None  # (T,) None where each trial has one speaker
    pair: NDArray[np.int64]  # (T,)

    def by_speakers(self, counts: Array) -> Array:
        """(B, T) from the counts (B, S+1)."""
        weights = counts.take(self.first, axis=1)
        if self.second is not None:
            weights *= counts.take(self.second, axis=1)
        return weights

    def by_pairs(self, counts: Array) -> Array:
        """(B, T) from the counts (B, P+1)."""
        return counts.take(self.pair, axis=1)


@dataclass(frozen=True)
class Draws:
    """What a bootstrap says of one metric on one list of trials, or of several metrics' mean or difference there."""

    speakers: Array  # (R,) replicates with drawn speakers, NaN without targets or non-targets; see Measures.held
    pairs: Array  # (Q,) replicates with drawn pairs of speakers
    optimism: float  # by how much optimising on the trials themselves moves the metric: at most 0 for costs
    num_speakers: int
    bounded: bool = True  # whether the metric lies in [0, 1] by its nature
    misjudged: float = 0.0  # variance of the optimism beside its square
    of_seeds: float = 0.0  # variance that training with other seeds adds
    doubt: float = 0.0  # variance of `of_seeds`, halved


@dataclass(frozen=True)
class Resamples:
    """What a bootstrap says of K metrics."""

    keys: tuple[str, ...]
    speakers: Array  # (R, K)
    pairs: Array  # (Q, K)
    optimism: Array  # (K,)
    num_speakers: int

    def of(self, key: str) -> Draws:
        column = self.keys.index(key)
        bounded = not key.startswith(("cllr", "act_dcf"))
        optimism = float(self.optimism[column])
        return Draws(self.speakers[:, column], self.pairs[:, column], optimism, self.num_speakers, bounded)


def resample(
    measures: Measures, bootstrap: SpeakerBootstrap, keys: Sequence[str] | None = None, threads: int | None = None
) -> Resamples:
    """`measures`, or those of its metrics that `keys` names, of every replicate; the same with any number of threads.

    threads: by default one for each core that this process may use; numpy lets them run side by side.
    """
    measures = measures if keys is None else measures.only(keys)
    if len(measures.target) != len(bootstrap):
        raise ValueError(f"the bootstrap is of {len(bootstrap)} trials, the scores are of {len(measures.target)}")
    of_targets, of_nontargets = (bootstrap.places(trials) for trials in (measures.targets, measures.nontargets))

    size = len(measures.keys)

    def by_speakers(replicates: range) -> Array:
        """(B, 2, K) held and optimised."""
        counts = bootstrap.counts(replicates)
        targets, nontargets = of_targets.by_speakers(counts), of_nontargets.by_speakers(counts)
        usable = np.asarray(targets.any(axis=1) & nontargets.any(axis=1))
        values = np.full((len(usable), 2, size), np.nan)
        if usable.any():
            curve = measures.curve(targets[usable], nontargets[usable])
            values[usable, 0], values[usable, 1] = measures.held(curve), measures.optimised(curve)
        return values

    def by_pairs(replicates: range) -> Array:
        """(B, K) held; targets count as they are."""
        nontargets = of_nontargets.by_pairs(bootstrap.pair_counts(replicates))
        usable = np.asarray(nontargets.any(axis=1))
        values = np.full((len(usable), size), np.nan)
        if usable.any():
            targets = np.ones((int(usable.sum()), len(measures.targets)))
            values[usable] = measures.held(measures.curve(targets, nontargets[usable]))
        return values

    block = max(1, BLOCK // len(bootstrap))
    with ThreadPoolExecutor(threads or cores()) as pool:
        drawn = list(pool.map(by_speakers, _blocks(bootstrap.replicates, block)))
        pairs = list(pool.map(by_pairs, _blocks(bootstrap.pair_replicates, block)))
    held, optimised = np.concatenate(drawn).transpose(1, 0, 2)
    usable = np.isfinite(held).all(axis=1)
    optimism = (optimised - held)[usable].mean(axis=0) if usable.any() else np.full(size, np.nan)
    of_pairs = np.concatenate(pairs)
    coarse = [_is_coarse(key, len(measures.targets), len(measures.nontargets)) for key in measures.keys]
    held[:, coarse], of_pairs[:, coarse] = np.nan, np.nan
    return Resamples(measures.keys, held, of_pairs, optimism, bootstrap.num_speakers)


def _is_coarse(key: str, targets: int, nontargets: int) -> bool:
    """Whether a single error is so large a part of a detection cost that its replicates say nothing of it.

    At p_target .01 one false alarm among 400 non-targets costs .25, and the interval of minDCF holds 67 % where it
    should hold 95 (benchmarks/coverage.py).
    """
    name, _, prior = key.partition(".")
    if name not in ("min_dcf", "act_dcf"):
        return False
    odds = float(prior) / (1 - float(prior))
    return (nontargets * odds if odds <= 1 else targets / odds) < LEAST_ERRORS


def _blocks(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
