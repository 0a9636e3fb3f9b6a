"""From embeddings to the scores of trials, as the section `scoring` of a config has it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkexp.data.trials import Trials
from spkexp.errors import UserError
from spkexp.scoring.identification import identification
from spkexp.scoring.normalise import CohortStatistics, ScoreNormalisation, cohort_of
from spkexp.scoring.plda import Plda
from spkexp.scoring.projection import Backend, Cosine, Projected, enrol, pair_scores
from spkexp.scoring.transforms import centred
from spkexp.sections import Scoring


@dataclass(frozen=True)
class Background:
    """Utterances beside those of the trials, mostly of training: the cohort, and what PLDA is trained on."""

    embeddings: NDArray[np.float32]  # (N, size)
    speaker: NDArray[np.int64]  # (N,)

    @staticmethod
    def readable(embeddings: NDArray[np.float32], speaker: NDArray[np.int64]) -> "Background":
        """Without the rows of utterances that could not be read. Raises UserError where none is left."""
        kept = np.isfinite(embeddings).all(axis=1)
        if not kept.any():
            raise UserError("scoring.cohort: none of its utterances can be read")
        return Background(embeddings[kept], speaker[kept])


@dataclass(frozen=True)
class Scores:
    """Of T trials; what the cohort says of either side is there where scores are normalised."""

    values: NDArray[np.float32]  # (T,)
    of_enrolled: CohortStatistics | None  # a row for each utterance or model
    of_tested: CohortStatistics | None  # a row for each utterance


class System:
    """A back end with enrolment and normalisation, fitted on a background."""

    def __init__(self, settings: Scoring, background: Background | None) -> None:
        """background: None where settings.needs_background is false. Raises UserError where it is too small."""
        self.settings = settings
        self.mean: NDArray[np.float32] | None = None
        self.backend: Backend = Cosine()
        self.normalisation: ScoreNormalisation | None = None
        if background is None:
            return
        if settings.subtract_mean:
            self.mean = background.embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
        embeddings = self._prepared(background.embeddings)
        if settings.backend == "plda":
            plda = settings.plda
            self.backend = Plda.fit(
                embeddings,
                background.speaker,
                kind=plda.kind,
                rank=plda.rank,
                lda_size=plda.lda_size,
                whiten=plda.whiten,
                length_norm=plda.length_norm,
                iterations=plda.iterations,
            )
        if settings.normalise is not None:
            cohort = self.backend.project(cohort_of(embeddings, background.speaker))
            self.normalisation = ScoreNormalisation(settings.normalise, cohort, settings.cohort.top_n)

    @property
    def gives_llr(self) -> bool:
        """Whether the scores are log-likelihood ratios (natural logarithm) as they are."""
        return self.backend.gives_llr and self.normalisation is None

    def score(self, embeddings: NDArray[np.float32], trials: Trials) -> Scores:
        """embeddings: (N, size) of the utterances that the trials are over, NaN where one could not be read."""
        prepared = self._prepared(embeddings)
        tested = self.backend.project(prepared)
        enrolled = tested
        if trials.models is not None:
            enrolled = enrol(prepared, trials.models, self.backend, self.settings.enrol)
        values = pair_scores(enrolled, tested, trials.enroll, trials.test)
        if self.normalisation is None:
            return Scores(values, None, None)
        of_tested = self._statistics(tested, trials.test, trials.enroll if trials.models is None else None)
        of_enrolled = of_tested if trials.models is None else self._statistics(enrolled, trials.enroll, None)
        values = self.normalisation.normalise(values, trials.enroll, trials.test, of_enrolled, of_tested)
        return Scores(values, of_enrolled, of_tested)

    def identification(self, embeddings: NDArray[np.float32], speaker: NDArray[np.int64]) -> dict[str, Any] | None:
        """How often each utterance is nearest to its own speaker, by the back end's scores; see `identification`."""
        return identification(self._prepared(embeddings), speaker, self.backend)

    def _prepared(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        return embeddings if self.mean is None else centred(embeddings, self.mean)

    def _statistics(
        self, sides: Projected, rows: NDArray[np.int64], more: NDArray[np.int64] | None
    ) -> CohortStatistics:
        """A row for each of `sides`, NaN for those that occur in no trial: they need not be compared with anybody."""
        assert self.normalisation is not None
        used = np.zeros(len(sides.vector), dtype=bool)
        used[rows] = True
        if more is not None:
            used[more] = True
        found = self.normalisation.statistics(Projected(sides.vector[used], sides.offset[used]))
        mean, deviation = (np.full(len(used), np.nan, dtype=np.float32) for _ in range(2))
        mean[used], deviation[used] = found.mean, found.deviation
        return CohortStatistics(mean, deviation)
