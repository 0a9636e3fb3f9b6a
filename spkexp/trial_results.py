"""What an evaluation leaves of scored trials: figures, scores, embeddings and pictures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spkexp.data.classes import SPEAKER
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.trials import Trials
from spkexp.errors import UserError
from spkexp.report.embeddings import check_method
from spkexp.report.pictures import write_pictures
from spkexp.scoring.calibrate import Calibration, calibrate
from spkexp.scoring.conditions import groups
from spkexp.scoring.embedding_file import write_embeddings
from spkexp.scoring.summary import entry_of
from spkexp.scoring.system import Scores
from spkexp.scoring.trial_scores import TrialScores
from spkexp.scoring.verification import Scored
from spkexp.sections import Scoring

log = logging.getLogger(__name__)


def check_reports(settings: Scoring, evaluation: Mapping[str, EvaluationSet], label: str) -> None:
    """Raise UserError where `write_trials` could not do what the settings ask for: before hours of work, not after.

    label: what was learnt; of another than the speaker nothing is verified, and a line says which settings have no use.
    """
    if settings.projection is not None:
        check_method(settings.projection)
    if label != SPEAKER and all(found.trials is None for found in evaluation.values()):
        asked = {
            "normalise": settings.normalise is not None,
            "calibration": settings.calibration is not None,
            "conditions": bool(settings.conditions),
            "save_embeddings": settings.save_embeddings is not None,
            "backend": settings.backend == "plda",
        }
        if unused := [f"scoring.{key}" for key, value in asked.items() if value]:
            log.warning("%s: no use with data.label=%s, whose classes no trials verify", ", ".join(unused), label)
        return
    for found in evaluation.values():
        if found.trials is not None and found.trials.target is not None and settings.conditions:
            _check_conditions(found, found.trials, settings.conditions)
    on = settings.calibration
    if on is None:
        return
    if on not in evaluation or evaluation[on].trials is None:
        raise UserError(f"scoring.calibration={on}: the run has no such trials; data.split or data.trials gives some")
    learnt = set(evaluation[on].utterances.label_names) - {""}
    for name, found in evaluation.items():
        both = sorted(learnt & set(found.utterances.label_names)) if name != on else []
        if both:
            raise UserError(
                f"scoring.calibration={on}: {len(both)} of its speakers are in {name}, too, such as {both[0]}, and a "
                "calibration on the speakers under test flatters; data.split.by=speaker keeps a run's own lists apart, "
                "scoring.calibration=null does without"
            )


def _check_conditions(evaluation: EvaluationSet, trials: Trials, columns: Sequence[str]) -> None:
    """Raise UserError where a column has more values than a report could list."""
    nothing = Scores(np.zeros(len(trials), dtype=np.float32), None, None)
    embeddings = np.ones((len(evaluation.utterances), 1), dtype=np.float32)
    scores = Scored(evaluation, embeddings, trials, nothing, 0).trial_scores
    for column in columns:
        groups(scores, column)


def write_trials(
    folder: Path, scored: Mapping[str, Scored], settings: Scoring, only: list[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, TrialScores]]:
    """Write what belongs to the lists `only` into `folder`; returns their entries of results.json and their scores.

    scored: these, and with scoring.calibration the list that it is learnt on. Raises UserError.
    """
    entries: dict[str, dict[str, Any]] = {}
    final: dict[str, TrialScores] = {}
    for name in only:
        found = scored[name]
        utterances = found.set.utterances
        if settings.save_embeddings is not None:
            file = folder / "embeddings" / f"{name}.{settings.save_embeddings}"
            names = utterances.label_names
            known = {"speaker": [names[code] for code in utterances.label]} if found.set.speakers_known else {}
            write_embeddings(file, utterances.id.to_series().to_list(), found.embeddings, known)
        if found.trials is None:
            entries[name] = {}
            continue
        assert found.system is not None
        scores, llr, calibration = found.trial_scores, found.system.gives_llr, {}
        if settings.calibration is not None and name != settings.calibration:
            scores, learnt = _calibrated(scored, name, settings)
            llr, calibration = True, {"calibration": {"on": settings.calibration, **learnt.description()}}
        final[name] = scores
        entries[name] = entry_of(scores, settings, llr) | {"skipped_trials": found.skipped} | calibration
        if found.set.speakers_known and scores.target is not None:
            speaker = utterances.label.astype(np.int64)
            entries[name]["identification"] = found.system.identification(found.embeddings, speaker)
        if settings.save_scores or scores.target is None:  # of a list without labels the scores are the result
            scores.write(folder / "scores" / f"{name}.txt")
        write_pictures(
            folder,
            name,
            scores,
            found.embeddings,
            found.trial_scores.tested,
            projection=settings.projection,
            colour_by=settings.colour_by,
            hardest=settings.hardest,
            unit="log-likelihood ratio" if llr else "score",
        )
    return entries, final


def _calibrated(scored: Mapping[str, Scored], name: str, settings: Scoring) -> tuple[TrialScores, Calibration]:
    on = str(settings.calibration)
    learnt_on, applied_to = scored[on].trial_scores, scored[name].trial_scores
    return calibrate([learnt_on], [applied_to], quality=settings.quality, on=on, trials=name)
