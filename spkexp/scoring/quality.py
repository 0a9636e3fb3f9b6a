"""What is known of the two sides of a trial beside their score, for a calibration to take in."""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.scoring.trial_scores import TrialScores

log = logging.getLogger(__name__)
# Column of the tables -> how a user gets it. Lengths of time and of vectors are ratios: their logarithm is taken.
_SOURCE = {
    "duration": "the run's manifest gives it; score the run again: python -m spkexp.evaluate model=RUN",
    "magnitude": "it is the length of the embedding; score the run again: python -m spkexp.evaluate model=RUN",
    "cohort_mean": "scores that are normalised have it: scoring.normalise=as",
}
_RATIOS = ("duration", "magnitude")
# These say something of one system's embeddings, the others of the recordings.
_OF_SYSTEM = ("magnitude", "cohort_mean")


def quality(scores: TrialScores, measure: str) -> NDArray[np.float64]:
    """(T, 2) the lesser and the greater value of `measure` of the two sides of each trial.

    measure: `duration` (log seconds), `magnitude` (log length of the embedding, before it is made one) or `cohort_mean`
    (mean of the side's scores against the cohort). The measures are those of Thienpondt, Desplanques and Demuynck 2021,
    "The IDLab VoxSRC-20 submission"; minimum and maximum, so that it does not matter which of two recordings is
    the enrolment. Raises UserError where one is not known.
    """
    if measure not in _SOURCE:
        raise ValueError(f"{measure!r} is no quality measure; there are {', '.join(_SOURCE)}")
    sides = []
    for table, rows in ((scores.enrolled, scores.enroll), (scores.tested, scores.test)):
        if measure not in table.columns:
            raise UserError(f"quality={measure}: the scores come without a column {measure!r}; {_SOURCE[measure]}")
        values = table[measure].cast(pl.Float64, strict=False).to_numpy()[rows]  # null becomes NaN
        wrong = ~np.isfinite(values)
        if measure in _RATIOS:
            wrong |= ~(values > 0)
        if wrong.any():
            name = table["name"][int(rows[np.argmax(wrong)])]
            raise UserError(
                f"quality={measure}: {wrong.sum():,} of {len(scores):,} trials have none, such as that of {name!r}; "
                f"{_SOURCE[measure]}, or leave it out"
            )
        sides.append(np.log(values) if measure in _RATIOS else values)
    return np.stack([np.minimum(*sides), np.maximum(*sides)], axis=1)


def features(
    systems: Sequence[TrialScores], names: Sequence[str], measures: Sequence[str]
) -> tuple[NDArray[np.float64], list[str]]:
    """(T, F) what a calibration weighs, and the F names: the score of each system, then the quality measures.

    systems: scores of the same trials in the same order, called `names`. What only a system knows, as the magnitude of
    its embeddings, is taken of each of them, what a recording has of the first. Raises UserError.
    """
    columns = [system.score.astype(np.float64)[:, None] for system in systems]
    for name, column in zip(names, columns, strict=True):
        if bad := int((~np.isfinite(column)).sum()):
            raise UserError(f"{name}: {bad:,} scores are not finite; did training diverge?")
    labels = list(names)
    for measure in measures:
        chosen = list(zip(systems, names, strict=True)) if measure in _OF_SYSTEM else [(systems[0], "")]
        for system, name in chosen:
            prefix = f"{name} " if len(systems) > 1 and name else ""
            columns.append(quality(system, measure))
            labels += [f"{prefix}{measure} min", f"{prefix}{measure} max"]
    return np.concatenate(columns, axis=1), labels


def require_disjoint(
    calibration: TrialScores, evaluated: TrialScores, on: str = "calibration", trials: str = "evaluated"
) -> None:
    """Raise UserError where the two lists, called `on` and `trials`, have speakers or utterances in common.

    A calibration that has heard the voices that it is judged by looks better than it is. Where speakers are not known,
    utterances alone are compared, and a warning says so.
    """
    learnt, tested = _sides(calibration), _sides(evaluated)
    (heard, all_heard), (judged, all_judged) = _speakers(learnt), _speakers(tested)
    speakers = sorted(heard & judged)
    utterances = _shared_utterances(learnt, tested)
    if speakers or utterances:
        shared = [_counted(found, what) for found, what in ((speakers, "speaker"), (utterances, "utterance")) if found]
        raise UserError(
            f"on={on}: shares {' and '.join(shared)} with {trials}: a calibration that has heard them would look "
            "better than it is; calibrate on trials of other speakers"
        )
    unknown = [name for name, known in ((on, all_heard), (trials, all_judged)) if not known]
    if unknown:
        log.warning(
            "%s: not all speakers are known, so that %s and %s could share some; they have no utterance in common",
            " and ".join(unknown),
            on,
            trials,
        )


def _sides(scores: TrialScores) -> list[pl.DataFrame]:
    """Of each table the rows that the trials have; of models only who speaks, for their names are no utterances'."""
    # np.unique of half a million rows would take a second.
    tested, enrolled = (
        table[np.flatnonzero(np.bincount(rows, minlength=len(table)))]
        for table, rows in ((scores.tested, scores.test), (scores.enrolled, scores.enroll))
    )
    return [tested, enrolled if scores.enrolled is scores.tested else enrolled.select("speaker")]


def _speakers(sides: list[pl.DataFrame]) -> tuple[set[str], bool]:
    """Those that are known, and whether these are all."""
    names = pl.concat([side["speaker"] for side in sides])
    return set(names.drop_nulls().unique()), names.null_count() == 0


def _shared_utterances(first: list[pl.DataFrame], second: list[pl.DataFrame]) -> list[str]:
    """By path where every one is known, else by name."""

    def known(sides: list[pl.DataFrame], column: str) -> list[pl.Series]:
        return [side[column] for side in sides if column in side.columns]

    by_path = all(
        found and not any(paths.null_count() for paths in found)
        for found in (known(first, "path"), known(second, "path"))
    )
    column = "path" if by_path else "name"
    heard, judged = (pl.concat(known(sides, column)).unique() for sides in (first, second))
    return sorted(set(heard) & set(judged))


def _counted(found: list[str], what: str) -> str:
    """'12 speakers (id1, id2, …)'."""
    shown = ", ".join([*found[:2], *["…"] * (len(found) > 2)])
    return f"{len(found):,} {what}{'s' * (len(found) != 1)} ({shown})"
