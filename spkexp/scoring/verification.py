"""From an encoder and trials to scores and error rates."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkexp.data.dataset import Bad, Reading
from spkexp.data.load import EvaluationSet
from spkexp.data.manifest import Utterances
from spkexp.data.trials import Trials
from spkexp.errors import UserError
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


def cosine_scores(embeddings: NDArray[np.float32], trials: Trials) -> NDArray[np.float32]:
    """(N,) cosine of the two sides of each trial."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    scores = np.empty(len(trials), dtype=np.float32)
    for start in range(0, len(trials), BLOCK):
        block = slice(start, start + BLOCK)
        scores[block] = np.einsum("nd,nd->n", unit[trials.enroll[block]], unit[trials.test[block]])
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
    usable = readable[trials.enroll] & readable[trials.test]
    if not usable.all():
        log.warning("%s: skipped %d of %d trials", evaluation.name, (~usable).sum(), len(trials))
        trials = Trials(trials.enroll[usable], trials.test[usable], trials.target[usable])
        if trials.target.all() or not trials.target.any():
            raise UserError(f"{evaluation.name}: without the unreadable files, trials of one kind only are left")
    return Scored(evaluation, embeddings, trials, cosine_scores(embeddings, trials), int((~usable).sum()))


def summarise(scored: Scored, settings: Scoring, interval: bool) -> dict[str, Any]:
    """The entry of results.json for one trial list; rates are fractions. Empty where there are no trials."""
    trials, label = scored.trials, scored.set.utterances.label
    if trials is None or scored.scores is None:
        return {}
    ranking = Ranking(scored.scores, trials.target)
    rates = ranking.error_rates()
    bounds = None
    if interval and settings.bootstrap and scored.set.speakers_known:
        bounds = eer_interval(ranking, label[trials.enroll], label[trials.test], settings.bootstrap)
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
) -> float | None:
    """Share of the readable utterances whose predicted index into the training speakers `names` is right.

    None where some speaker of `utterances` was not trained on, so that the question has no meaning.
    """
    index = {name: position for position, name in enumerate(names)}
    if not all(name in index for name in utterances.label_names):
        return None
    expected = np.array([index[name] for name in utterances.label_names])[utterances.label]
    return float(np.mean((predicted == expected)[readable]))


def write_scores(file: Path, scored: Scored) -> None:
    """'enroll test score label' a line, the label 1 for a target."""
    assert scored.trials is not None
    assert scored.scores is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    names, trials = scored.set.utterances.id, scored.trials
    temporary = file.with_name(f".{file.name}.partial")
    with temporary.open("w", encoding="utf-8") as stream:
        for enroll, test, value, target in zip(trials.enroll, trials.test, scored.scores, trials.target, strict=True):
            stream.write(f"{names[enroll]} {names[test]} {value:.6f} {int(target)}\n")
    temporary.replace(file)
