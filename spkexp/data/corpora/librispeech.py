"""LibriSpeech (Panayotov et al. 2015, OpenSLR 12): its folder layout, subsets and closed-set pooling."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from spkexp.data import audio
from spkexp.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = "SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac, as in train-clean-100/103/1240/103-1240-0000.flac"
TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
HELD_OUT = ("dev-clean", "dev-other", "test-clean", "test-other")
# The names that papers give to sets of hours.
TRAIN_SETS: dict[str | int, tuple[str, ...]] = {
    100: TRAIN[:1],
    360: TRAIN[1:2],
    500: TRAIN[2:],
    460: TRAIN[:2],
    960: TRAIN,
}
POOLED = ("dev-clean", "test-clean")
SPLITS = {"train": "train", "dev": "val", "test": "test"}
UTTERANCE = re.compile(r"(\d+)-(\d+)-\d+\.flac")


class LibriSpeech:
    """The utterances of a LibriSpeech tree.

    `train` picks the training subsets by their hours: 100, 360 and 500 are one subset each, 460 is
    100 + 360, 960 is all three; `auto` is every training subset that is there.

    Without `closed_set` the corpus's own split stands: train-* trains, dev-* validates, test-* tests, with
    other speakers in each. With `closed_set` the training subsets are pooled with dev-clean and test-clean, and
    the table leaves the split open, to be made by utterance (`data.split.by=utterance`): 331 speakers for 100,
    1001 for 360, 1246 for 500, 1252 for 460 and 2418 for 960.
    """

    def __init__(self, *, train: Literal["auto", 100, 360, 460, 500, 960], closed_set: bool) -> None:
        if train != "auto" and train not in TRAIN_SETS:
            raise UserError(f"data.corpus.train: expected auto, 100, 360, 460, 500 or 960, got {train!r}")
        self.train = train
        self.closed_set = closed_set

    def table(self, root: Path) -> pl.DataFrame:
        """One row an utterance: id, path (absolute), duration (seconds), speaker, chapter; and split unless
        `closed_set`. `root` is the folder of the subsets, or the one that holds `LibriSpeech/`. The duration
        of a broken file is null. Raises UserError for a root of another layout or a subset that is missing.
        """
        folder = find_tree(root, (*TRAIN, *HELD_OUT))
        there = {name for name in (*TRAIN, *HELD_OUT) if (folder / name).is_dir()}
        wanted = [name for name in TRAIN if name in there] if self.train == "auto" else list(TRAIN_SETS[self.train])
        if self.closed_set:
            # With 'auto' the pool is what is there; with a number the count of classes is a promise.
            wanted += [name for name in POOLED if self.train != "auto" or name in there]
        else:
            wanted += [name for name in HELD_OUT if name in there]
        missing = [name for name in wanted if name not in there]
        if missing:
            why = " (closed_set pools dev-clean and test-clean with the training speakers)" if self.closed_set else ""
            raise UserError(
                f"{folder}: no folder {', '.join(missing)}, which data.corpus.train={self.train} needs{why}; put it "
                f"there (https://www.openslr.org/12), or set data.corpus.train=auto; found: {', '.join(sorted(there))}"
            )
        table = utterances(folder, wanted)
        if self.closed_set:
            table = table.drop("split")
        log.info(
            "LibriSpeech: %d utterances of %d speakers in %s",
            len(table),
            table["speaker"].n_unique(),
            ", ".join(wanted),
        )
        return table


def find_tree(root: Path, subsets: Sequence[str]) -> Path:
    """`root`, or `root/LibriSpeech`: whichever holds one of `subsets`. UserError says what is there instead."""
    for folder in (root, root / "LibriSpeech"):
        if any((folder / name).is_dir() for name in subsets):
            return folder
    if not root.is_dir():
        raise UserError(f"data.root={root}: no such folder; expected one with {', '.join(subsets)} in it")
    if root.name in subsets:
        raise UserError(f"data.root={root}: this is one subset; give the folder above it, {root.parent}")
    names = sorted(os.listdir(root))
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    raise UserError(
        f"data.root={root}: not a LibriSpeech tree; expected {LAYOUT}, with SUBSET one of {', '.join(subsets)}; "
        f"found {found}"
    )


def utterances(folder: Path, subsets: Sequence[str]) -> pl.DataFrame:
    """The rows of `subsets` below `folder`, in order of subset and folder, with the columns of `LibriSpeech.table`."""
    ids: list[str] = []
    paths: list[str] = []
    speakers: list[str] = []
    chapters: list[str] = []
    splits: list[str] = []
    strange: Counter[str] = Counter()
    base = os.path.abspath(folder)
    for subset in subsets:
        before = len(ids)
        # os.walk, sorted as it goes: the order of the table must not depend on the disk's.
        for where, folders, files in os.walk(os.path.join(base, subset)):
            folders.sort()
            parts = os.path.relpath(where, base).split(os.sep)
            for name in sorted(files):
                match = UTTERANCE.fullmatch(name)
                if match is None or parts[1:] != [match[1], match[2]]:
                    if name.endswith((".flac", ".wav", ".mp3", ".m4a", ".ogg", ".opus")):
                        strange[subset] += 1
                    continue
                ids.append(name[: -len(".flac")])
                paths.append(os.path.join(where, name))
                speakers.append(match[1])
                chapters.append(match[2])
                splits.append(SPLITS[subset.partition("-")[0]])
        if len(ids) == before:
            raise UserError(f"{os.path.join(base, subset)}: holds no utterance; expected {LAYOUT}")
    for subset, count in strange.items():
        log.warning("%s: %d audio files are left out: not %s", os.path.join(base, subset), count, LAYOUT)
    return pl.DataFrame(
        {
            "id": ids,
            "path": paths,
            "duration": audio.durations(paths),
            "speaker": speakers,
            "chapter": chapters,
            "split": splits,
        },
        schema_overrides={"duration": pl.Float64},
    )
