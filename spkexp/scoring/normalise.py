"""Scores relative to those with a cohort of other speakers, so that one threshold suits all speakers and conditions."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spkexp.cores import cores
from spkexp.errors import UserError
from spkexp.scoring.projection import Projected, blocks, mean_embeddings

log = logging.getLogger(__name__)

Kind = Literal["z", "t", "s", "as"]

# Rows of the matrix of scores at once: 100 MB with a cohort of 5,994.
ROWS = 4096
# Of scores of a size, the share below which their deviation is rounding (float32) of what is really 0.
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class CohortStatistics:
    """How each of N embeddings scores against the cohort. NaN where the embedding is."""

    mean: NDArray[np.float32]  # (N,)
    deviation: NDArray[np.float32]  # (N,) > 0


def cohort_of(embeddings: NDArray[np.float32], speaker: NDArray[np.int64]) -> NDArray[np.float32]:
    """(C, size) an embedding for each speaker, in the order of the sorted codes: see `mean_embeddings`.

    Speakers of whom no embedding is finite are left out, which is logged. embeddings: (N, size); speaker: (N,) codes.
    """
    order = np.argsort(speaker, kind="stable")
    codes, start = np.unique(speaker[order], return_index=True)
    cohort = mean_embeddings(embeddings, order, start)
    readable = np.isfinite(cohort).all(axis=1)
    if not readable.all():
        log.warning("cohort: %d of %d speakers left out: no utterance can be read", (~readable).sum(), len(codes))
    return cohort[readable]


def overlap(cohort: Iterable[str], speakers: Iterable[str]) -> list[str]:
    """Names of the cohort's speakers that are in the trials too, sorted.

    A cohort stands for other speakers: one's own mean among the highest scores would make one's targets look ordinary.
    """
    return sorted(set(cohort) & set(speakers))


@dataclass(frozen=True)
class ScoreNormalisation:
    """Z-, T-, S- or adaptive S-norm (AS-norm) of scores against a cohort.

    z: (score - mean) / deviation, of the scores of the enrolled side with the cohort; t: of the tested side
    (Auckenthaler, Carey and Lloyd-Thomas 2000 for both); s: the mean of the two (Kenny 2010); as: the same with each
    side's `top_n` highest scores alone (Matejka et al. 2017, "adaptive S-norm1"). The deviation is that of the
    population, divided by n. Divided by n - 1 it would make all scores smaller by one factor, √(1 - 1/n).

    kind: z, t, s or as; cohort: C speakers; top_n: for "as" alone; of a smaller cohort all count.
    """

    kind: Kind
    cohort: Projected
    top_n: int

    def __post_init__(self) -> None:
        if self.kind not in ("z", "t", "s", "as"):
            raise ValueError(f"score normalisation is 'z', 't', 's' or 'as', got {self.kind!r}")
        if self.kind == "as" and self.top_n < 2:
            raise UserError(f"scoring.cohort.top_n={self.top_n}: a deviation needs at least 2 cohort speakers")
        speakers = len(self.cohort)
        if speakers < 2:
            raise UserError(f"score normalisation needs a cohort of at least 2 speakers, got {speakers}")
        sides = np.column_stack([self.cohort.vector, self.cohort.offset])
        if not np.isfinite(sides).all():
            wrong = (~np.isfinite(sides).all(axis=1)).sum()
            raise UserError(f"score normalisation: {wrong} of {speakers} cohort embeddings are not finite")
        if (np.ptp(sides, axis=0) <= NEGLIGIBLE * np.abs(sides).max()).all():
            raise UserError(f"score normalisation: the {speakers} cohort embeddings are all the same")

    def statistics(self, sides: Projected) -> CohortStatistics:
        """Of the scores of each of N embeddings with the cohort: all of them, or for "as" the `top_n` highest.

        Raises UserError where an embedding scores the same with all, as one of length 0 does.
        """
        if self.kind == "as" and self.top_n < len(self.cohort):
            mean, deviation = self._of_highest(sides)
        else:
            mean, deviation = self._of_all(sides)
        # Of offsets alike on both sides, which move all of an embedding's scores by one amount, scores are as large.
        size = np.abs(mean) + np.abs(sides.offset)
        if (flat := np.flatnonzero(deviation <= NEGLIGIBLE * size)).size:
            raise UserError(
                f"score normalisation: {len(flat)} of {len(sides)} embeddings (the first: row {flat[0]}) score the "
                "same with the whole cohort; are they of length 0, or the cohort's speakers all alike?"
            )
        return CohortStatistics(mean.astype(np.float32), deviation.astype(np.float32))

    def normalise(
        self,
        scores: NDArray[np.float32],
        enroll: NDArray[np.int64],
        test: NDArray[np.int64],
        of_enrolled: CohortStatistics,
        of_tested: CohortStatistics,
    ) -> NDArray[np.float32]:
        """(T,) scores less mean over deviation. enroll, test: (T,) row of the statistics of either side."""
        exact = scores.astype(np.float64)
        sides = {"z": [(of_enrolled, enroll)], "t": [(of_tested, test)]}
        both = sides["z"] + sides["t"]
        normalised = [(exact - of.mean[rows]) / of.deviation[rows] for of, rows in sides.get(self.kind, both)]
        return np.asarray(np.mean(normalised, axis=0), dtype=np.float32)

    def _of_all(self, sides: Projected) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Without the scores: a score is linear in the cohort, so its mean and variance are those of the cohort's
        vectors and offsets. Exact, and for a cohort of thousands far less work."""
        cohort = np.column_stack([self.cohort.vector, self.cohort.offset]).astype(np.float64)
        center = cohort.mean(axis=0)
        covariance = (cohort - center).T @ (cohort - center) / len(cohort)
        mean, deviation = np.empty(len(sides)), np.empty(len(sides))
        for block in blocks(len(sides), ROWS):
            vector = sides.vector[block].astype(np.float64)
            own = np.column_stack([vector, np.ones(len(vector))])
            mean[block] = own @ center + sides.offset[block]
            deviation[block] = np.sqrt(np.maximum(np.einsum("nd,nd->n", own @ covariance, own), 0))
        return mean, deviation

    def _of_highest(self, sides: Projected) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Block by block: a matrix product on all cores, then the highest of each row, by a thread for each core."""
        lowest = len(self.cohort) - self.top_n
        scores = np.empty((min(ROWS, len(sides)), len(self.cohort)), dtype=np.float32)
        mean, deviation = np.empty(len(sides)), np.empty(len(sides))

        def highest(rows: slice, block: NDArray[np.float32]) -> None:
            block += self.cohort.offset
            block.partition(lowest, axis=1)
            # On the side of a row alone, its own offset shifts all of its scores and so their mean.
            mean[rows] = block[:, lowest:].mean(axis=1, dtype=np.float64) + sides.offset[rows]
            deviation[rows] = block[:, lowest:].std(axis=1, dtype=np.float64)

        threads = cores()
        with ThreadPoolExecutor(threads) as pool:
            for block in blocks(len(sides), ROWS):
                found = scores[: block.stop - block.start]
                np.matmul(sides.vector[block], self.cohort.vector.T, out=found)
                part = -(-len(found) // threads)
                parts = [slice(rows.start, rows.stop) for rows in blocks(len(found), part)]
                places = [slice(block.start + rows.start, block.start + rows.stop) for rows in parts]
                list(pool.map(highest, places, [found[rows] for rows in parts]))
        return mean, deviation
