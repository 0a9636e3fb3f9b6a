"""CN-Celeb1 (Fan et al. 2020) and CN-Celeb2 (Li et al. 2022; both OpenSLR 82): Chinese celebrities in eleven genres."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import polars as pl

from spkexp.data.corpora import tree
from spkexp.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = (
    "CN-Celeb_flac/data/id00000/singing-01-001.flac, CN-Celeb_flac/eval/enroll and eval/test, "
    "CN-Celeb2_flac/data/id10000/… (or _wav), or one of these folders itself"
)
TREE = re.compile(r"cn-?celeb[12]?([-_].*)?", re.IGNORECASE)
# Lists in such a tree.
DEV, SPEAKERS, ENROLMENTS = "dev/dev.lst", "spk.lst", "eval/lists/enroll.map"
SUBSETS = ("cnceleb1", "cnceleb2", "eval", "enroll_map")
# 632,740 utterances to train on, of 2,793 speakers.
WHOLE: Mapping[str, tree.Count] = {
    "cnceleb1": tree.Count(797, 107_953),
    "cnceleb2": tree.Count(1_996, 524_787),
    "eval": tree.Count(200, 196 + 17_777),
}
OBTAIN = ". CN-Celeb is at https://www.openslr.org/82; unpack cn-celeb_v2.tar.gz and cn-celeb2_v2.tar.gz* there"


class CNCeleb:
    """The utterances of CN-Celeb1, CN-Celeb2 and of their evaluation set.

    `subsets`: cnceleb1 (797 speakers to train on, listed in dev/dev.lst), cnceleb2 (1,996) and eval (196 enrolment and
    17,777 test utterances of 200 other speakers of CN-Celeb1); and enroll_map, the recordings that the enrolments were
    joined from, for those who enrol with several of them (data.trials.models=…/eval/lists/enroll.map). What is chosen
    and not there is reported in the log.
    """

    def __init__(self, *, subsets: list[Literal["cnceleb1", "cnceleb2", "eval", "enroll_map"]]) -> None:
        if not subsets or set(subsets) - set(SUBSETS):
            raise UserError(f"data.corpus.subsets: expected some of {', '.join(SUBSETS)}, got {list(subsets)}")
        self.subsets = list(subsets)

    def sources(self, root: Path) -> list[Path]:
        """The lists, some of which lie deep."""
        return [folder / name for folder in _trees(root) for name in (DEV, SPEAKERS, ENROLMENTS)]

    def table(self, root: Path) -> pl.DataFrame:
        """One row an utterance: id, path (absolute), speaker, genre (null of an enrolment), split (train or test).

        Ids are `id00010/singing-01-001`, and of eval `enroll/id00800-enroll` and `test/id00800-singing-01-001`.
        Raises UserError.
        """
        trees = _trees(root)
        parts = [part for folder in trees for part in (_data(folder), _eval(folder)) if len(part)]
        if not parts:
            raise tree.wrong_root(root, "CN-Celeb", LAYOUT, remedy=OBTAIN)
        table = tree.one_format(pl.concat(parts), "CN-Celeb")
        dev = _listed(trees, DEV)
        # The last 200 speakers of CN-Celeb1 are evaluated on; their whole recordings lie in data/ as well.
        held_out = ~pl.col("speaker").is_in(dev) if dev else pl.col("speaker") >= "id00800"
        subset = pl.when(pl.col("subset") == "cnceleb1", held_out).then(pl.lit("enroll_map")).otherwise("subset")
        table = table.with_columns(subset=subset)
        joined = [word.rpartition(".")[0] for word in _words(trees, ENROLMENTS) if "/" in word]
        needless = pl.col("subset") == "enroll_map"
        if "enroll_map" in self.subsets and joined:
            needless &= ~pl.col("id").is_in(joined)
        elif "enroll_map" in self.subsets:
            needless = pl.lit(False)
        kept = table.filter(~needless)
        if len(kept) < len(table):
            unused = f"{len(table) - len(kept):,}"
            log.info("CN-Celeb: %s utterances of data/ are left out: of speakers of the evaluation set", unused)
        table = kept
        lists = {"cnceleb1": dev, "cnceleb2": _listed(trees, SPEAKERS)}
        for name in (name for name in self.subsets if name in WHOLE):
            part = table.filter(pl.col("subset") == name)
            tree.report(f"CN-Celeb {name}", part, WHOLE[name], lists.get(name, ()))
        chosen = table.filter(pl.col("subset").is_in(self.subsets))
        if len(chosen) == 0:
            there = tree.shortened(table["subset"].unique().sort().to_list())
            raise UserError(f"{root}: holds nothing of CN-Celeb's {', '.join(self.subsets)}, only {there}")
        split = pl.when(pl.col("subset").is_in(["eval", "enroll_map"])).then(pl.lit("test")).otherwise(pl.lit("train"))
        return chosen.with_columns(split=split).drop("subset").sort("split", "id", descending=[True, False])


def _trees(root: Path) -> list[Path]:
    return [folder for folder in (root, *tree.subfolders(root)) if _is_tree(folder)]


def _is_tree(folder: Path) -> bool:
    has_people = any(tree.PERSON.fullmatch(path.name) for path in tree.subfolders(folder / "data"))
    has_lists = (folder / "eval" / "enroll").is_dir() or (folder / "eval" / "test").is_dir()
    named = TREE.fullmatch(folder.name) is not None and any((folder / n).is_dir() for n in ("data", "eval", "dev"))
    return has_people or has_lists or named


def _data(folder: Path) -> pl.DataFrame:
    """The rows of `folder/data`, with the column subset: CN-Celeb2's speakers begin at id10000."""
    base = os.path.abspath(folder / "data")
    pattern = rf"^(?P<id>(?P<speaker>{tree.PERSON.pattern})/(?P<name>(?P<genre>[a-z_]+)[^/]*))\.[^./]+$"
    part = _rows(base, pattern)
    subset = pl.when(pl.col("speaker") >= "id10000").then(pl.lit("cnceleb2")).otherwise(pl.lit("cnceleb1"))
    return part.select("id", "path", "speaker", "genre", subset.alias("subset"))


def _eval(folder: Path) -> pl.DataFrame:
    base = os.path.abspath(folder / "eval")
    pattern = rf"^(?P<id>(?P<kind>enroll|test)/(?P<speaker>{tree.PERSON.pattern})-(?P<genre>[a-z_]+)[^/]*)\.[^./]+$"
    part = _rows(base, pattern)
    genre = pl.when(pl.col("kind") == "test").then("genre").alias("genre")
    return part.select("id", "path", "speaker", genre, pl.lit("eval").alias("subset"))


def _rows(base: str, pattern: str) -> pl.DataFrame:
    files = tree.audio_files(base) if os.path.isdir(base) else pl.Series("file", [], dtype=pl.String)
    part = files.str.extract_groups(pattern).struct.unnest().with_columns(path=pl.concat_str(pl.lit(f"{base}/"), files))
    strange = part["id"].null_count()
    if strange:
        log.warning("%s: %d audio files are left out: not as in %s", base, strange, LAYOUT)
    return part.filter(pl.col("id").is_not_null())


def _listed(trees: list[Path], name: str) -> list[str]:
    """The speakers of the list `name`; none where there is no list."""
    return [word for word in _words(trees, name) if tree.PERSON.fullmatch(word)]


def _words(trees: list[Path], name: str) -> list[str]:
    """The words of the first file `name` in `trees`; none where there is no such file."""
    for folder in trees:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8", errors="replace").split()
    return []
