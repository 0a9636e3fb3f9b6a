"""From an encoder and trials to scores."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.data.dataset import Bad, Reading
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.trials import Trials
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.extract import embed, never
from spkexp.scoring.projection import mean_embeddings
from spkexp.scoring.system import Background, Scores, System
from spkexp.scoring.trial_scores import TrialScores
from spkexp.sections import Scoring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The trials of an evaluation set that could be scored, and their scores; both None where the set has none."""

    set: EvaluationSet
    embeddings: NDArray[np.float32]  # (utterances, embedding_size), NaN where unreadable
    trials: Trials | None
    scores: Scores | None
    skipped: int  # trials left out because an utterance could not be read
    system: System | None = None  # what made the scores of the embeddings

    @cached_property
    def trial_scores(self) -> TrialScores:
        """The scores with what is known of either side, for what looks at more than their order."""
        assert self.trials is not None
        assert self.scores is not None
        tested = _sides(self.set, self.embeddings)
        enrolled = tested
        if self.trials.models is not None:
            enrolled = _models(self.set, self.trials, tested, self.embeddings)
        if self.scores.of_tested is not None and self.scores.of_enrolled is not None:
            shared = enrolled is tested
            tested = tested.with_columns(cohort_mean=pl.Series(self.scores.of_tested.mean).fill_nan(None))
            means = pl.Series(self.scores.of_enrolled.mean).fill_nan(None)
            enrolled = tested if shared else enrolled.with_columns(cohort_mean=means)
        values, trials = self.scores.values, self.trials
        return TrialScores(enrolled, tested, trials.enroll, trials.test, values, trials.target)


def _sides(evaluation: EvaluationSet, embeddings: NDArray[np.float32]) -> pl.DataFrame:
    """A row for each utterance: name, speaker, path, duration, magnitude, and the other columns that are kept."""
    utterances = evaluation.utterances
    names = [name or None for name in utterances.label_names]
    speaker = pl.Series(names if evaluation.speakers_known else [None] * len(names), dtype=pl.String)
    table = pl.DataFrame(
        {
            "name": utterances.id.to_series(),
            "speaker": speaker.gather(utterances.label),
            "path": utterances.path.to_series(),
            "duration": utterances.duration.round(3),
            "magnitude": pl.Series(np.linalg.norm(embeddings, axis=1)).fill_nan(None),
        }
    )
    return table if evaluation.columns is None else table.hstack(evaluation.columns)


def _models(
    evaluation: EvaluationSet, trials: Trials, utterances: pl.DataFrame, embeddings: NDArray[np.float32]
) -> pl.DataFrame:
    """A row for each model: the seconds and paths of its readable utterances, and what they have in common."""
    models = trials.models
    assert models is not None
    sizes = np.diff(np.append(models.start, len(models.utterance)))
    members = utterances[models.utterance].with_columns(model=np.repeat(np.arange(len(sizes)), sizes))
    readable = members.filter(pl.col("magnitude").is_not_null())
    same = pl.all().exclude("model", "duration", "path", "name", "magnitude")
    found = readable.group_by("model", maintain_order=True).agg(
        pl.when(same.n_unique() == 1).then(same.first()).name.keep(),
        pl.col("path").str.join("; "),
        pl.col("duration").sum().round(3),
    )
    found = pl.DataFrame({"model": np.arange(len(sizes))}).join(found, on="model", how="left", maintain_order="left")
    magnitude = np.linalg.norm(mean_embeddings(embeddings, models.utterance, models.start), axis=1)
    return found.with_columns(
        pl.Series("name", models.name.to_series()), pl.Series("magnitude", magnitude).fill_nan(None)
    ).select(utterances.columns)


@dataclass(frozen=True)
class Policy:
    """What to do with utterances that cannot be read: data.on_error and data.max_bad_fraction."""

    on_error: str
    max_bad_fraction: float

    def apply(self, bad: list[Bad], total: int) -> None:
        """Raises UserError if `bad`, of `total` utterances, is more than is allowed."""
        if bad and self.on_error == "raise":
            raise UserError(f"{bad[0].reason} (utterance {bad[0].id}; data.on_error=skip leaves such files out)")
        if len(bad) > self.max_bad_fraction * total:
            raise UserError(
                f"{len(bad)} of {total} utterances cannot be used, more than "
                f"data.max_bad_fraction={self.max_bad_fraction}; the last: {bad[-1].reason}"
            )


@dataclass(frozen=True)
class Extraction:
    """How utterances become embeddings."""

    reading: Reading
    settings: Scoring
    policy: Policy
    num_workers: int

    def embeddings(
        self, model: SpeakerModel, name: str, utterances: Utterances, should_stop: Callable[[], bool] = never
    ) -> NDArray[np.float32]:
        """(N, embedding_size), NaN where the policy lets an utterance be skipped. Raises UserError, and Interrupted."""
        settings = self.settings
        embeddings, bad = embed(
            model,
            utterances,
            self.reading,
            settings.batch_seconds,
            self.num_workers,
            should_stop,
            window=settings.window,
            window_step=settings.window_step,
            precision=settings.precision,
        )
        self.policy.apply(bad, len(utterances))
        readable = np.asarray(np.isfinite(embeddings).all(axis=1))
        if (~readable).sum() > len(bad):
            unreadable = {entry.id for entry in bad}
            item = next(i for i in np.flatnonzero(~readable).tolist() if utterances.id[i] not in unreadable)
            raise UserError(f"{name}: the embedding of {utterances.id[item]} is not finite; did training diverge?")
        for entry in bad:
            log.warning("%s: skipped %s: %s", name, entry.id, entry.reason)
        if not readable.any():
            raise UserError(f"{name}: none of its {len(utterances)} utterances can be read")
        return embeddings

    def background(
        self, model: SpeakerModel, utterances: Utterances | None, should_stop: Callable[[], bool] = never
    ) -> Background | None:
        """What a System is fitted on; None where the settings need none. Raises as `embeddings` does."""
        if utterances is None:
            return None
        embeddings = self.embeddings(model, "scoring.cohort", utterances, should_stop)
        return Background.readable(embeddings, utterances.label.astype(np.int64))


def score(evaluation: EvaluationSet, embeddings: NDArray[np.float32], system: System) -> Scored:
    """Score the trials of `evaluation`. embeddings: of its utterances. Raises UserError where too few can be scored."""
    trials = evaluation.trials
    if trials is None:
        return Scored(evaluation, embeddings, None, None, 0)
    readable = np.asarray(np.isfinite(embeddings).all(axis=1))
    enrolled = readable
    if trials.models is not None:
        enrolled = np.logical_or.reduceat(readable[trials.models.utterance], trials.models.start)
    usable = enrolled[trials.enroll] & readable[trials.test]
    if not usable.all():
        log.warning("%s: skipped %d of %d trials", evaluation.name, (~usable).sum(), len(trials))
        target = None if trials.target is None else trials.target[usable]
        trials = replace(trials, enroll=trials.enroll[usable], test=trials.test[usable], target=target)
        if len(trials) == 0:
            raise UserError(f"{evaluation.name}: without the unreadable files, no trials are left")
        if target is not None and (target.all() or not target.any()):
            raise UserError(f"{evaluation.name}: without the unreadable files, trials of one kind only are left")
    scores = system.score(embeddings, trials)
    return Scored(evaluation, embeddings, trials, scores, int((~usable).sum()), system)
