"""What an evaluation leaves of scored trials: figures, scores, embeddings and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spkexp.data.evaluation_set import EvaluationSet
from spkexp.errors import UserError
from spkexp.report.embeddings import check_method
from spkexp.report.pictures import write_pictures
from spkexp.scoring.calibrate import Calibration, calibrate
from spkexp.scoring.embedding_file import write_embeddings
from spkexp.scoring.summary import entry_of
from spkexp.scoring.trial_scores import TrialScores
from spkexp.scoring.verification import Scored
from spkexp.sections import Scoring


def check_reports(settings: Scoring, evaluation: Mapping[str, EvaluationSet]) -> None:
    """Raise UserError where `write_trials` could not do what the settings ask for: before hours of work, not after."""
    if settings.projection is not None:
        check_method(settings.projection)
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
                "calibration on the speakers under test flatters; data.split.by=speaker keeps them apart"
            )


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
