"""LibriSpeech (Panayotov et al. 2015, OpenSLR 12): its folder layout, subsets and closed-set pooling."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from spkexp.data.corpora import tree
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
# Panayotov et al. 2015, table 1, and the utterances of the published archives.
WHOLE: Mapping[str, tree.Count] = {
    "train-clean-100": tree.Count(251, 28_539),
    "train-clean-360": tree.Count(921, 104_014),
    "train-other-500": tree.Count(1_166, 148_688),
    "dev-clean": tree.Count(40, 2_703),
    "dev-other": tree.Count(33, 2_864),
    "test-clean": tree.Count(40, 2_620),
    "test-other": tree.Count(33, 2_939),
}


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
        """One row an utterance: id, path (absolute), speaker, chapter; and split unless `closed_set`. `root` is the
        folder of the subsets, or the one that holds `LibriSpeech/`. Raises UserError for a root of another layout or a
        subset that is missing.
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
    if root.name in subsets and root.is_dir():
        raise UserError(f"data.root={root}: this is one subset; give the folder above it, {root.parent}")
    raise tree.wrong_root(root, "LibriSpeech", f"{LAYOUT}, with SUBSET one of {', '.join(subsets)}")


def utterances(folder: Path, subsets: Sequence[str]) -> pl.DataFrame:
    """The rows of `subsets` below `folder`, in order of subset and folder, with the columns of `LibriSpeech.table`."""
    parts = []
    for subset in subsets:
        base = os.path.join(os.path.abspath(folder), subset)
        files = tree.audio_files(base)
        # speaker/chapter/, and an id that repeats both.
        names = files.str.extract_groups(r"^(?P<speaker>\d+)/(?P<chapter>\d+)/(?P<id>(\d+)-(\d+)-\d+)\.flac$")
        part = names.struct.unnest().with_columns(path=pl.concat_str(pl.lit(f"{base}/"), files))
        part = part.filter((pl.col("speaker") == pl.col("4")) & (pl.col("chapter") == pl.col("5")))
        if len(part) == 0:
            raise UserError(f"{base}: holds no utterance; expected {LAYOUT}")
        if len(part) < len(files):
            log.warning("%s: %d audio files are left out: not %s", base, len(files) - len(part), LAYOUT)
        if subset in WHOLE and (part["speaker"].n_unique(), len(part)) != WHOLE[subset]:
            tree.report(f"LibriSpeech {subset}", part, WHOLE[subset])
        split = pl.lit(SPLITS[subset.partition("-")[0]]).alias("split")
        parts.append(part.select("id", "path", "speaker", "chapter", split))
    return pl.concat(parts)
