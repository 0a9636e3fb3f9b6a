"""Train, val and test: from the table's own column, by speaker (disjoint), or by utterance (closed set)."""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.errors import UserError

log = logging.getLogger(__name__)

# Names that corpora give to the three.
_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "eval": "test",
}
SPLITS = ("train", "val", "test")


def split_table(
    table: pl.DataFrame, label: str, by: str, fractions: Sequence[float], seed: int
) -> dict[str, pl.DataFrame]:
    """{"train": …, "val": …, "test": …} of `table`; val or test may be empty. Raises UserError.

    Speakers are kept apart also where `label` is another column: a classifier of emotions that has heard the voice
    before is not asked the question that its users will ask.
    """
    if by == "auto":
        by = "column" if "split" in table.columns else "speaker" if "speaker" in table.columns else "utterance"
        if by == "utterance":
            log.warning(
                "data.split: without a column speaker, one voice may be in train and in test: split by utterance"
            )
    if by == "column":
        parts = _by_column(table)
    else:
        if abs(sum(fractions) - 1.0) > 1e-6:
            raise UserError(f"data.split.fractions: must add up to 1, got {list(fractions)}")
        column = "speaker" if by == "speaker" else label
        if column not in table.columns:
            raise UserError(f"data.split.by=speaker: the table has no column {column}; use data.split.by=utterance")
        if table[column].null_count():
            raise UserError(f"data.split.by={by}: {table[column].null_count()} utterances have no {column}")
        groups = table[column].to_numpy()
        if by == "utterance":
            parts = by_utterance(groups, fractions, seed, label)
        elif label == "speaker":
            parts = by_speaker(groups, fractions, seed)
        else:
            parts = by_speaker(groups, fractions, seed, table[label].to_numpy())
    tables = {name: table.filter(pl.Series(parts == name)) for name in SPLITS}
    if len(tables["train"]) == 0:
        raise UserError("data.split: no utterance is left for training; check data.filter and the split column")
    return tables


def _by_column(table: pl.DataFrame) -> NDArray[np.str_]:
    if "split" not in table.columns:
        raise UserError("data.split.by=column: the table has no column 'split'; use data.split.by=speaker or utterance")
    names = table["split"].str.to_lowercase().replace_strict(_NAMES, default=None)
    unknown = table.filter(names.is_null())["split"].unique().sort().to_list()
    if unknown:
        raise UserError(
            f"data.split: the split column holds {', '.join(map(repr, unknown))}, which is none of train, val, test; "
            "leave those rows out with data.filter, or use data.split.by=speaker"
        )
    return names.to_numpy().astype(str)


def by_speaker(
    speakers: NDArray[np.str_], fractions: Sequence[float], seed: int, classes: NDArray[np.str_] | None = None
) -> NDArray[np.str_]:
    """(N,) split of each utterance; no speaker is in two. Shares are of speakers, in a seeded order.

    A share above zero gets two speakers at least: one alone has no non-target trial.
    classes: (N,) what is to be learnt where it is not the speaker: then train keeps a speaker of every class, and val
    and test get speakers of as many classes as they can.
    """
    names, codes = np.unique(speakers, return_inverse=True)
    order = generator(seed).permutation(len(names))
    counts = [0 if share == 0 else max(2, round(share * len(names))) for share in fractions[1:]]
    if sum(counts) + 2 > len(names):
        raise UserError(
            f"data.split.by=speaker: {len(names)} speakers are too few to hold some out; give a split column, "
            "data.split.by=utterance, or data.split.fractions=[1,0,0]"
        )
    of_name = np.full(len(names), "train", dtype="<U5")
    if classes is None:
        of_name[order[: counts[0]]] = "val"
        of_name[order[counts[0] : counts[0] + counts[1]]] = "test"
    else:
        labels, label_codes = np.unique(classes, return_inverse=True)
        has = np.zeros((len(names), len(labels)), dtype=bool)  # speaker × class
        has[codes, label_codes] = True
        for split, count in zip(("val", "test"), counts, strict=True):
            _hold_out(split, count, of_name, order, has)
    return of_name[codes]


def _hold_out(
    split: str, count: int, of_name: NDArray[np.str_], order: NDArray[np.int64], has: NDArray[np.bool_]
) -> None:
    """Move `count` speakers of train to `split`, one after another, in `of_name`.

    Each time it is the speaker who brings the most classes that the split has the fewest speakers of, the first in
    `order` among equals, of those without whom train still has a speaker of every class.
    has: (speakers, classes) whether the speaker has utterances of the class.
    """
    left, held = has[of_name == "train"].sum(axis=0), np.zeros(has.shape[1], dtype=np.int64)
    for taken in range(count):
        spare = left > 1
        candidates = order[(of_name[order] == "train") & ~has[order][:, ~spare].any(axis=1)]
        if not len(candidates):
            if taken == 0:
                raise UserError(
                    f"data.split.by=speaker: every speaker is the only one of some class in training, so none can be "
                    f"held out for {split}; leave rare classes out with data.filter, or use data.split.by=utterance"
                )
            log.warning("data.split: %s has %d speakers, not %d: train would lose a class", split, taken, count)
            return
        rare = spare & (held == held[spare].min())
        chosen = candidates[int(has[candidates][:, rare].sum(axis=1).argmax())]
        of_name[chosen] = split
        left -= has[chosen]
        held += has[chosen]


def by_utterance(
    speakers: NDArray[np.str_], fractions: Sequence[float], seed: int, label: str = "speaker"
) -> NDArray[np.str_]:
    """(N,) split of each utterance; every speaker of val and test is in train. Shares are of each speaker's utterances.

    A speaker's utterances are shuffled by the seed; a speaker with too few keeps all of them in train.
    speakers: (N,) the speakers, or the classes of another `label`, for which the same holds.
    """
    names, codes = np.unique(speakers, return_inverse=True)
    parts = np.full(len(speakers), "train", dtype="<U5")
    order = np.lexsort((generator(seed).random(len(speakers)), codes))
    kept_whole = 0
    for members in np.split(order, np.cumsum(np.bincount(codes))[:-1]):
        counts = [round(share * len(members)) for share in fractions[1:]]
        if sum(counts) >= len(members):
            counts = [0, 0]
        kept_whole += sum(counts) == 0
        parts[members[: counts[0]]] = "val"
        parts[members[counts[0] : sum(counts)]] = "test"
    if kept_whole:
        log.info(
            "%d of %d %ss have too few utterances to hold any out and stay in train",
            kept_whole,
            len(names),
            label,
        )
    return parts
