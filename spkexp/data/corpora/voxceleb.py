"""VoxCeleb1 (Nagrani et al. 2017) and VoxCeleb2 (Chung et al. 2018), in whichever layout the tree has been kept.

An utterance is SPEAKER/VIDEO/NUMBER, and that is its id: `id10270/x6uYqmx31kE/00001`, whatever its format. Where the
speakers' folders lie (`wav`, `dev/wav`, `dev/aac`, `vox1_test_wav/wav`, …) is found out.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from spkexp.data.corpora import tree
from spkexp.data.corpora.voxceleb_lists import lists_in, read_identification, read_meta
from spkexp.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = "…/SPEAKER/VIDEO/NUMBER, as in {} (wav, m4a, flac, opus, mp3 or ogg), also below dev/ and test/"
EXAMPLE = {"VoxCeleb1": "wav/id10001/1zcIwhmdeo4/00001.wav", "VoxCeleb2": "dev/aac/id00012/21Uxsk56VDQ/00001.m4a"}
WHOLE: Mapping[tuple[str, str], tree.Count] = {
    ("VoxCeleb1", "dev"): tree.Count(1_211, 148_642),
    ("VoxCeleb1", "test"): tree.Count(40, 4_874),
    ("VoxCeleb2", "dev"): tree.Count(5_994, 1_092_009),
    ("VoxCeleb2", "test"): tree.Count(118, 36_237),
}
# The speakers whose names begin with E.
VOXCELEB1_TEST = [f"id{number}" for number in range(10_270, 10_310)]
VOXCELEB1 = [f"id{number}" for number in range(10_001, 11_252)]
SUBSETS = ("dev", "test")
# Nobody reports figures on VoxCeleb2's own test speakers: they choose the checkpoint for the lists of VoxCeleb1.
SPLITS = {"VoxCeleb1": {"dev": "train", "test": "test"}, "VoxCeleb2": {"dev": "train", "test": "val"}}
# dev, vox2_dev_aac, VoxCeleb2-dev, …; not any name with 'test' in it, for a root may be called what it likes.
_SUBSET = re.compile(r"(?:vox(?:celeb)?[12]?[-_])?(dev|test)(?:[-_](?:aac|wav|m4a|flac|audio))*", re.IGNORECASE)
_FORMAT = re.compile(r"aac|wav|m4a|flac|opus|mp3|ogg|audio", re.IGNORECASE)
OBTAIN = (
    ". The authors no longer offer VoxCeleb for download: ask them at https://mm.kaist.ac.kr/datasets/voxceleb/ "
    "(request form), or look whether your institute or a mirror has it, by the names vox1_dev_wav, vox1_test_wav, "
    "vox2_dev_aac and vox2_test_aac; then give the unpacked folder as {}=DIR"
)


class VoxCeleb1:
    """The utterances of a VoxCeleb1 tree.

    `subsets`: dev (1,211 speakers, to train on) and test (the 40 speakers of list O). Who trains on dev must not
    evaluate on the lists E and H, whose trials are of dev.
    `protocol`: verification keeps the speakers of dev and test apart; identification (closed set) splits all 1,251
    speakers' utterances by the corpus's list iden_split.txt, for which `subsets` must name both.
    """

    def __init__(
        self, *, subsets: list[Literal["dev", "test"]], protocol: Literal["verification", "identification"]
    ) -> None:
        self.subsets = _checked(subsets)
        if protocol == "identification" and len(set(subsets)) < 2:
            raise UserError(
                "data.corpus.protocol=identification is of all speakers: set data.corpus.subsets=[dev,test]"
            )
        self.protocol = protocol

    def sources(self, root: Path) -> list[Path]:
        """The lists, which may also lie beside the root."""
        return lists_in(_lists(root))

    def table(self, root: Path) -> pl.DataFrame:
        """One row an utterance: id, path (absolute), speaker, video, split (train or test; with identification also
        val); and gender and nationality if vox1_meta.csv is there. Raises UserError."""
        found = _utterances("VoxCeleb1", root, "data.root")
        if self.protocol == "verification":
            table = _chosen(found, "VoxCeleb1", self.subsets, root)
        else:
            table = found.join(read_identification(_lists(root)), on="id", how="left", maintain_order="left")
            unlisted = table["split"].null_count()
            if unlisted == len(table):
                raise UserError(f"{root}: iden_split.txt names none of its {unlisted} utterances; is it VoxCeleb1's?")
            if unlisted:
                log.warning("VoxCeleb1: %d utterances are left out: not in iden_split.txt", unlisted)
            table = table.filter(pl.col("split").is_not_null()).drop("subset")
            tree.report("VoxCeleb1 (identification)", table, tree.Count(1_251, 153_516), VOXCELEB1)
        return _with_meta(table, "vox1_meta.csv", root)


class VoxCeleb2:
    """The utterances of a VoxCeleb2 tree.

    `subsets`: dev (5,994 speakers, split train) and test (118, split val). They are told apart by the folders `dev`
    and `test`, or by vox2_meta.csv where the two have been merged.
    `voxceleb1`: the root of a VoxCeleb1 tree, whose test part joins the table as split test, so that the trials of
    VoxCeleb1-O (veri_test2.txt) find their utterances; null: none.
    """

    def __init__(self, *, subsets: list[Literal["dev", "test"]], voxceleb1: str | None) -> None:
        self.subsets = _checked(subsets)
        self.voxceleb1 = voxceleb1

    PATHS = ("voxceleb1",)

    def sources(self, root: Path) -> list[Path]:
        """The lists, which may also lie beside the root; and the other tree with its own."""
        other = [] if self.voxceleb1 is None else [Path(self.voxceleb1).expanduser()]
        return other + [file for folder in (root, *other) for file in lists_in(_lists(folder))]

    def table(self, root: Path) -> pl.DataFrame:
        """One row an utterance: id, path (absolute), speaker, video, split; and gender if
        vox2_meta.csv is there. Raises UserError."""
        found = _utterances("VoxCeleb2", root, "data.root")
        table = _with_meta(_chosen(found, "VoxCeleb2", self.subsets, root), "vox2_meta.csv", root)
        if self.voxceleb1 is None:
            return table
        other = Path(self.voxceleb1).expanduser()
        test = _utterances("VoxCeleb1", other, "data.corpus.voxceleb1")
        test = _with_meta(_chosen(test, "VoxCeleb1", ["test"], other), "vox1_meta.csv", other)
        return pl.concat([table, test], how="diagonal")


def _checked(subsets: Sequence[str]) -> list[str]:
    if not subsets or set(subsets) - set(SUBSETS):
        raise UserError(f"data.corpus.subsets: expected some of dev, test, got {list(subsets)}")
    return list(subsets)


def _utterances(corpus: str, root: Path, key: str) -> pl.DataFrame:
    """Every utterance of `corpus` at `root`, wherever its speakers' folders lie: id, path, speaker, video, and subset
    (dev or test; null where it cannot be told yet)."""
    layout = LAYOUT.format(EXAMPLE[corpus])
    if tree.PERSON.fullmatch(root.name) and root.is_dir():
        raise UserError(f"{key}={root}: this is one speaker's folder; give the folder above it, {root.parent}")
    folders = tree.person_folders(root)
    pattern = rf"^(?P<speaker>{tree.PERSON.pattern})/(?P<video>[^/]+)/(?P<number>[^/]+)\.[^./]+$"
    parts, empty = [], []
    for folder in folders:
        files = tree.audio_files(folder)
        part = (
            files.str.extract_groups(pattern)
            .struct.unnest()
            .with_columns(
                path=pl.concat_str(pl.lit(os.path.abspath(folder) + "/"), files),
                subset=pl.lit(_subset_of(folder, root), dtype=pl.String),
            )
        )
        strange = part["number"].null_count()
        if strange:
            log.warning("%s: %d audio files are left out: not SPEAKER/VIDEO/NUMBER", folder, strange)
        part = part.filter(pl.col("number").is_not_null())
        people = {path.name for path in tree.subfolders(folder) if tree.PERSON.fullmatch(path.name)}
        empty += sorted(people - set(part["speaker"].unique()))
        parts.append(part)
    table = pl.concat(parts) if parts else pl.DataFrame()
    if len(table):
        # VoxCeleb1's numbers begin where VoxCeleb2's have ended.
        mine = (pl.col("speaker") > "id1") if corpus == "VoxCeleb1" else (pl.col("speaker") < "id1")
        others = len(table) - len(own := table.filter(mine))
        if others and len(own):
            log.warning("%s: %s utterances of %s are left out: of another corpus", corpus, f"{others:,}", root)
        table = own
    if len(table) == 0:
        raise _not_there(corpus, root, key, layout)
    if empty:
        log.warning("%s: %d speakers' folders are empty: %s", corpus, len(empty), tree.shortened(empty, 5))
    table = table.select(
        pl.concat_str("speaker", pl.lit("/"), "video", pl.lit("/"), "number").alias("id"),
        "path",
        "speaker",
        "video",
        "subset",
    )
    if corpus == "VoxCeleb1":
        is_test = pl.col("speaker").is_in(VOXCELEB1_TEST)
        table = table.with_columns(subset=pl.when(is_test).then(pl.lit("test")).otherwise(pl.lit("dev")))
    else:
        # A copy of the utterances may lie outside of dev/ and test/ (wav/, converted from both): their speakers tell.
        table = table.with_columns(pl.coalesce("subset", pl.col("subset").drop_nulls().first().over("speaker")))
    return tree.one_format(table, corpus).sort("id")


def _subset_of(folder: Path, root: Path) -> str | None:
    """dev or test, by the names of the folders from `root` on (from the one above it on, if `root` is only called wav
    or aac); the innermost that says so counts."""
    above = root.absolute()
    names = [above.name, *folder.relative_to(root).parts]
    if _FORMAT.fullmatch(above.name):
        names = [above.parent.name, *names]
    told = [match[1].lower() for name in names if (match := _SUBSET.fullmatch(name))]
    return told[-1] if told else None


def _chosen(table: pl.DataFrame, corpus: str, subsets: Sequence[str], root: Path) -> pl.DataFrame:
    """The rows of `subsets`, with the column split; how many there are is held against the known numbers."""
    known: dict[str, list[str]] = {}
    if corpus == "VoxCeleb1":
        known = {"dev": sorted(set(VOXCELEB1) - set(VOXCELEB1_TEST)), "test": VOXCELEB1_TEST}
    elif (meta := read_meta(_lists(root), "vox2_meta.csv")) is not None:
        known = {name: meta.filter(pl.col("subset") == name)["speaker"].to_list() for name in SUBSETS}
        found = table["speaker"].replace_strict(meta["speaker"], meta["subset"], default=None, return_dtype=pl.String)
        table = table.with_columns(subset=pl.coalesce("subset", found))
    untold = table["subset"].null_count()
    if untold:
        log.warning(
            "%s: %s utterances are neither below dev/ nor test/, and vox2_meta.csv, which would tell, is not in %s: "
            "they are taken for dev",
            corpus,
            f"{untold:,}",
            root,
        )
        table = table.with_columns(pl.col("subset").fill_null("dev"))
    for name in subsets:
        part = table.filter(pl.col("subset") == name)
        tree.report(f"{corpus} {name}", part, WHOLE[corpus, name], known.get(name, ()))
    chosen = table.filter(pl.col("subset").is_in(subsets))
    if len(chosen) == 0:
        there = ", ".join(table["subset"].unique().sort())
        raise UserError(f"{root}: holds no utterance of {corpus}'s {' or '.join(subsets)}, only of its {there}")
    return chosen.with_columns(split=pl.col("subset").replace_strict(SPLITS[corpus])).drop("subset")


def _lists(root: Path) -> list[Path]:
    """Where the corpus's text files may lie."""
    folders = [root, root / "meta", root.parent, root.parent / "meta"]
    people = tree.person_folders(root)
    return [*folders, *people, *(folder.parent for folder in people)]


def _with_meta(table: pl.DataFrame, name: str, root: Path) -> pl.DataFrame:
    meta = read_meta(_lists(root), name)
    if meta is None:
        return table
    return table.join(meta.drop("subset"), on="speaker", how="left", maintain_order="left")


def _not_there(corpus: str, root: Path, key: str, layout: str) -> UserError:
    names = [path.name for folder in (root, root / "wav", root / "dev" / "wav") for path in tree.subfolders(folder)]
    named = [name for name in names if re.match(r"[A-Z][^/]*_[A-Z]", name)]
    if corpus == "VoxCeleb1" and len(named) > len(names) / 2:
        return UserError(
            f"{key}={root}: its speakers' folders have names ({tree.shortened(named, 3)}), as VoxCeleb1's first "
            "release had; rename them to the ids of vox1_meta.csv (A.J._Buckley is id10001), which all lists use"
        )
    return tree.wrong_root(root, corpus, layout, key, OBTAIN.format(key))
