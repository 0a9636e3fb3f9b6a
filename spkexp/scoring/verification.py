"""From an encoder and trials to scores and error rates."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.data.dataset import Bad, Reading
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.trials import Models, Trials
from spkexp.data.utterances import Strings, Utterances
from spkexp.errors import UserError
from spkexp.json_file import replacing
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.extract import embed
from spkexp.scoring.metrics import Ranking, eer, eer_threshold, min_dcf
from spkexp.scoring.statistics import eer_interval
from spkexp.sections import Scoring

log = logging.getLogger(__name__)
# Trials scored at once: bounds the memory of scoring to some tens of MB whatever the length of the list.
BLOCK = 65_536


@dataclass(frozen=True)
class Scored:
    """The trials of an evaluation set that could be scored, and their scores; both None where the set has none."""

    set: EvaluationSet
    embeddings: NDArray[np.float32]  # (utterances, embedding_size), NaN where unreadable
    trials: Trials | None
    scores: NDArray[np.float32] | None  # (N,) cosine, in [-1, 1]
    skipped: int  # trials left out because an utterance could not be read


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


def _unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def model_embeddings(embeddings: NDArray[np.float32], models: Models) -> NDArray[np.float32]:
    """(M, size) for each model the mean of its utterances' embeddings, each of length one first.

    Utterances with NaN, which could not be read, are left out; a model of which none is left is NaN.
    """
    rows = _unit(embeddings)[models.utterance]
    readable = np.asarray(np.isfinite(rows).all(axis=1))
    total = np.add.reduceat(np.where(readable[:, None], rows, 0), models.start, axis=0)
    count = np.add.reduceat(readable.astype(np.float32), models.start)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count[:, None], dtype=np.float32)


def cosine_scores(embeddings: NDArray[np.float32], trials: Trials) -> NDArray[np.float32]:
    """(N,) cosine of the two sides of each trial."""
    unit = _unit(embeddings)
    enrolled = unit if trials.models is None else _unit(model_embeddings(embeddings, trials.models))
    scores = np.empty(len(trials), dtype=np.float32)
    for start in range(0, len(trials), BLOCK):
        block = slice(start, start + BLOCK)
        scores[block] = np.einsum("nd,nd->n", enrolled[trials.enroll[block]], unit[trials.test[block]])
    return scores


def score(
    model: SpeakerModel,
    evaluation: EvaluationSet,
    reading: Reading,
    settings: Scoring,
    policy: Policy,
    num_workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scored:
    """Embed the utterances of `evaluation` and score its trials. Raises UserError by `policy`."""
    utterances, trials = evaluation.utterances, evaluation.trials
    embeddings, bad = embed(model, utterances, reading, settings.batch_seconds, num_workers, should_stop)
    policy.apply(bad, len(utterances))
    readable = np.asarray(np.isfinite(embeddings).all(axis=1))
    if (~readable).sum() > len(bad):
        unreadable = {entry.id for entry in bad}
        item = next(i for i in np.flatnonzero(~readable).tolist() if utterances.id[i] not in unreadable)
        raise UserError(
            f"{evaluation.name}: the embedding of {utterances.id[item]} is not finite; did training diverge?"
        )
    for entry in bad:
        log.warning("%s: skipped %s: %s", evaluation.name, entry.id, entry.reason)
    if not readable.any():
        raise UserError(f"{evaluation.name}: none of its {len(utterances)} utterances can be read")
    if trials is None:
        return Scored(evaluation, embeddings, None, None, 0)
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
    return Scored(evaluation, embeddings, trials, cosine_scores(embeddings, trials), int((~usable).sum()))


def summarise(scored: Scored, settings: Scoring, interval: bool) -> dict[str, Any]:
    """The entry of results.json for one trial list; rates are fractions. Empty where there are no trials, and without
    rates where they have no labels."""
    trials, label = scored.trials, scored.set.utterances.label.astype(np.int64)
    if trials is None or scored.scores is None:
        return {}
    if trials.target is None:
        return {"num_trials": len(trials), "skipped_trials": scored.skipped}
    ranking = Ranking(scored.scores, trials.target)
    rates = ranking.error_rates()
    bounds = None
    if interval and settings.bootstrap and scored.set.speakers_known:
        bounds = eer_interval(ranking, label[trials.enrolled()], label[trials.test], settings.bootstrap)
    return {
        "num_trials": len(trials),
        "num_targets": int(trials.target.sum()),
        "skipped_trials": scored.skipped,
        "eer": eer(rates),
        "eer_ci95": list(bounds) if bounds else None,
        "eer_threshold": eer_threshold(ranking),
        "min_dcf": {str(p): min_dcf(rates, p) for p in settings.p_targets},
    }


def closed_set_accuracy(
    predicted: NDArray[np.int64], readable: NDArray[np.bool_], utterances: Utterances, names: list[str]
) -> float:
    """Share of the readable utterances whose predicted index into the training speakers `names` is right.

    All speakers of `utterances` must be among those.
    """
    index = {name: position for position, name in enumerate(names)}
    expected = np.array([index[name] for name in utterances.label_names])[utterances.label]
    return float(np.mean((predicted == expected)[readable]))


def write_scores(file: Path, scored: Scored) -> None:
    """'enroll test score label' a line, the label 1 for a target; without it where the list has none.

    Names are those of the list: of models where it enrols models.
    """
    trials, scores = scored.trials, scored.scores
    assert trials is not None
    assert scores is not None
    utterances = _texts(scored.set.utterances.id)
    enrolled = utterances if trials.models is None else _texts(trials.models.name)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for start in range(0, len(trials), BLOCK):
            block = slice(start, start + BLOCK)
            label = [] if trials.target is None else [pl.Series("label", trials.target[block]).cast(pl.UInt8)]
            lines = pl.DataFrame(
                [
                    enrolled.gather(trials.enroll[block]).alias("enroll"),
                    utterances.gather(trials.test[block]).alias("test"),
                    pl.Series("score", scores[block]),
                    *label,
                ]
            )
            stream.write(lines.write_csv(include_header=False, separator=" ", quote_style="never", float_precision=6))


def _texts(column: Strings) -> pl.Series:
    return pl.Series([column[index] for index in range(len(column))], dtype=pl.String)
