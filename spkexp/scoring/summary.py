"""The figures of scored trials, as results.json and metrics.jsonl hold them; rates are fractions."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spkexp.scoring.conditions import breakdown
from spkexp.scoring.measures import Measures
from spkexp.scoring.metrics import Ranking, eer_threshold
from spkexp.scoring.resampling import SpeakerBootstrap, resample
from spkexp.scoring.statistics import MIN_SPEAKERS, interval
from spkexp.scoring.trial_scores import TrialScores
from spkexp.scoring.verification import Scored
from spkexp.sections import Scoring

log = logging.getLogger(__name__)
# What a validation says: EER, minDCF, and Cllr with the best of calibrations, in which every score has a part.
WHILE_TRAINING = ("eer", "min_dcf", "min_cllr")


def error_rates_of(scored: Scored, settings: Scoring) -> dict[str, Any]:
    """WHILE_TRAINING, without intervals; {} where there are no trials or they have no labels."""
    if scored.trials is None or scored.scores is None or scored.trials.target is None:
        return {}
    measures = Measures(scored.scores.values, scored.trials.target, settings.p_targets, llr=False)
    measures = measures.only([key for key in measures.keys if key.partition(".")[0] in WHILE_TRAINING])
    return nested(dict(zip(measures.keys, measures().tolist(), strict=True)))


def entry_of(scores: TrialScores, settings: Scoring, llr: bool) -> dict[str, Any]:
    """The entry of results.json for one trial list; without rates where it has no labels.

    llr: the scores are log-likelihood ratios, so that actual DCF and Cllr mean something. Intervals are there where all
    speakers are known and are enough for one.
    """
    if scores.target is None:
        return {"num_trials": len(scores)}
    if settings.bootstrap and scores.speakers is None:
        log.info("no intervals: it is not known who speaks in all of the utterances; a manifest with speakers says it")
    elif settings.bootstrap and scores.speakers is not None:
        count = len(np.unique(np.concatenate(scores.speakers)))
        if count < MIN_SPEAKERS:
            log.info("no intervals: the trials are of %d speakers, and of fewer than %d they would feign certainty",
                     count, MIN_SPEAKERS)  # fmt: skip
    entry = {
        "num_trials": len(scores),
        "num_targets": int(scores.target.sum()),
        "eer_threshold": eer_threshold(Ranking(scores.score, scores.target)),
        **rates(scores, settings.p_targets, llr, settings.bootstrap),
    }
    if settings.conditions:
        entry["conditions"] = breakdown(
            scores, settings.conditions, lambda some: rates(some, settings.p_targets, llr, settings.bootstrap)
        )
    return entry


def rates(scores: TrialScores, p_targets: Sequence[float], llr: bool, replicates: int) -> dict[str, Any]:
    """Every metric, `KEY_ci95` beside it: null where there is no interval.

    replicates: resamplings of the speakers; 0: no intervals.
    """
    assert scores.target is not None
    measures = Measures(scores.score, scores.target, p_targets, llr)
    values = measures()
    speakers, intervals = scores.speakers, dict.fromkeys(measures.keys)
    if replicates and speakers is not None:
        drawn = resample(measures, SpeakerBootstrap(*speakers, replicates))
        intervals = {
            key: interval(value, drawn.of(key)) for key, value in zip(measures.keys, values.tolist(), strict=True)
        }
    found = nested(dict(zip(measures.keys, values.tolist(), strict=True)))
    bounds = nested({_ci95(key): list(pair) if pair else None for key, pair in intervals.items()})
    return {name: value for key in found for name, value in ((key, found[key]), (f"{key}_ci95", bounds[f"{key}_ci95"]))}


def _ci95(key: str) -> str:
    """eer_ci95, min_dcf_ci95.0.01"""
    name, dot, rest = key.partition(".")
    return f"{name}_ci95{dot}{rest}"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"min_dcf": {"0.01": …}} of {"min_dcf.0.01": …}."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        name, dot, rest = key.partition(".")
        if dot:
            found.setdefault(name, {})[rest] = value
        else:
            found[name] = value
    return found
