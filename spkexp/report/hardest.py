"""The trials that a system gets most wrong, with the files to listen to."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.scoring.trial_scores import TrialScores
from spkexp.whole_file import replacing, write_text

_SIDES = ("speaker", "path", "duration")  # what of a side is shown, as far as it is known


def hardest_trials(scores: TrialScores, threshold: float, count: int) -> pl.DataFrame:
    """Of either kind the `count` trials that are hardest, the worst first: the non-targets with the highest scores,
    then the targets with the lowest.

    Columns: kind (nontarget, target), wrong (whether a decision at `threshold` is; higher scores are accepted), score,
    enroll, test (the names), and for either side enroll_speaker, test_speaker, …_path and …_duration (s) as far as the
    tables of `scores` have them. Of equal scores, the first in the list comes first. Raises ValueError for trials
    without labels.
    """
    if scores.target is None:
        raise ValueError("trials without labels: nothing tells which are hard")
    nontargets = _lowest(-scores.score, ~scores.target, count)
    targets = _lowest(scores.score, scores.target, count)
    rows = np.concatenate([nontargets, targets])
    kind = ["nontarget"] * len(nontargets) + ["target"] * len(targets)
    accepted, target = scores.score[rows] > threshold, scores.target[rows]
    sides: list[pl.Series] = []
    for side, table, numbers in (
        ("enroll", scores.enrolled, scores.enroll[rows]),
        ("test", scores.tested, scores.test[rows]),
    ):
        sides.append(table["name"].gather(numbers).alias(side))
        sides += [table[name].gather(numbers).alias(f"{side}_{name}") for name in _SIDES if name in table.columns]
    sides.sort(key=lambda column: "_" in column.name)  # the names of both sides first
    facts = {"kind": kind, "wrong": accepted != target, "score": scores.score[rows]}
    return pl.DataFrame([*pl.DataFrame(facts), *sides])


def _lowest(values: NDArray[np.float32], among: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Places of the `count` lowest of `values`, of those that are `among`; of equal ones the first."""
    places = np.flatnonzero(among)
    if len(places) > count:  # a partition first: sorting half a million trials for twenty takes its time
        limit = np.partition(values[places], count - 1)[count - 1] if count else -np.inf
        places = places[values[places] <= limit]
    return places[np.argsort(values[places], kind="stable")][:count]


def write_hardest(file: Path, name: str, hardest: pl.DataFrame, threshold: float) -> None:
    """Write what `hardest_trials` found, of the list `name`: a table where `file` is called .csv, and where it is
    called .txt, text with each path in a line of its own, to be opened from a terminal."""
    if file.suffix == ".csv":
        with replacing(file) as temporary:
            hardest.write_csv(temporary)
    elif file.suffix == ".txt":
        write_text(file, _text(name, hardest, threshold))
    else:
        raise UserError(f"{file}: the hardest trials are written as .csv or .txt")


def _text(name: str, hardest: pl.DataFrame, threshold: float) -> str:
    parts = [f"{name}: the hardest trials, at the threshold {threshold:.4f}\n"]
    for kind, title, wrong in (
        ("nontarget", "Different speakers, the most alike first", "accepted"),
        ("target", "Same speaker, the least alike first", "rejected"),
    ):
        parts.append(f"\n{title}\n")
        for number, row in enumerate(hardest.filter(pl.col("kind") == kind).iter_rows(named=True), 1):
            mark = f"  {wrong}, which is wrong" if row["wrong"] else ""
            parts.append(f"{number:4d}  score {row['score']:.4f}{mark}\n")
            parts += [_side(row, side) for side in ("enroll", "test")]
    return "".join(parts)


def _side(row: dict[str, object], side: str) -> str:
    """A side's line, its path last; the name stands for a path that is not known, such as a model's."""
    speaker, seconds = row.get(f"{side}_speaker"), row.get(f"{side}_duration")
    known = [str(speaker)] if speaker else []
    known += [f"{seconds:.1f} s"] if isinstance(seconds, float) else []
    return f"      {side:6s}  {'  '.join([*known, str(row.get(f'{side}_path') or row[side])])}\n"
