"""What is evaluated where the label is not the speaker but a language, an emotion, a keyword: the classifier itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError

SPEAKER = "speaker"  # the label whose models are verified on trials, and asked about speakers they were not trained on


@dataclass(frozen=True)
class LabelledSet(EvaluationSet):
    """Utterances whose class is to be told; without trials."""

    # (N,) index of who speaks, for intervals; None where the table does not say
    speaker: NDArray[np.int64] | None = field(kw_only=True)


def labelled_set(name: str, table: pl.DataFrame, label: str, classes: Sequence[str]) -> LabelledSet | None:
    """The utterances of `table`, all of them of the training `classes`; None where it is empty. Raises UserError."""
    if len(table) == 0:
        return None
    utterances = Utterances.of(table, label)
    require_trained(name, label, utterances.label_names, classes)
    speaker = None
    if SPEAKER in table.columns and table[SPEAKER].null_count() == 0:
        speaker = np.unique(table[SPEAKER].to_numpy(), return_inverse=True)[1].astype(np.int64)
    return LabelledSet(name=name, utterances=utterances, trials=None, speakers_known=False, speaker=speaker)


def require_trained(name: str, label: str, wanted: Sequence[str], classes: Sequence[str]) -> None:
    """Raise UserError where one of `wanted`, the classes of the set `name`, is none of the training `classes`."""
    unknown = sorted(set(wanted) - set(classes))
    if unknown:
        shown = ", ".join(map(repr, unknown[:8])) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise UserError(
            f"{name}: no training utterance is of the {label} {shown}, so no classifier can tell it; leave it out with "
            f"data.filter, or correct the split (speakers are verified, not classified: data.label={SPEAKER})"
        )


def require_no_lists(label: str, lists: Sequence[tuple[str, str | None]]) -> None:
    """Raise UserError where a trial list is to validate a classifier. lists: (key, file or None)."""
    for key, file in lists:
        if file is not None:
            raise UserError(
                f"{key}: trials compare speakers, and a run with data.label={label} is validated by what its "
                f"classifier answers; leave it out, and score the trained run: "
                f"python -m spkexp.evaluate model=RUN trials={file}"
            )
