"""Mini LibriSpeech (OpenSLR 31): 5 hours of LibriSpeech's clean speech for trials, fetched on demand."""

import logging
from pathlib import Path

import polars as pl

from spkexp.data.corpora import tree
from spkexp.data.corpora.download import Archive, fetch, unpack
from spkexp.data.corpora.librispeech import utterances
from spkexp.errors import UserError
from spkexp.lock import hold

log = logging.getLogger(__name__)

# Checksums of https://www.openslr.org/resources/31/md5sum.txt
MD5 = {
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
}
WHOLE = {"train-clean-5": tree.Count(28, 1_519), "dev-clean-2": tree.Count(38, 1_089)}


class MiniLibriSpeech:
    """The utterances of Mini LibriSpeech.

    `subsets` are train-clean-5 (28 speakers, 333 MB to download) and dev-clean-2 (126 MB). A subset that is not
    below the root is unpacked from SUBSET.tar.gz in the root, which is fetched from `mirror` (a URL) first where
    it is not there and `download` allows it. Archives are kept.
    """

    def __init__(self, *, subsets: list[str], download: bool, mirror: str) -> None:
        unknown = [name for name in subsets if name not in MD5]
        if unknown or not subsets:
            raise UserError(f"data.corpus.subsets: expected some of {', '.join(MD5)}, got {list(subsets)}")
        self.subsets = list(subsets)
        self.download = download
        self.mirror = mirror

    def table(self, root: Path) -> pl.DataFrame:
        """One row an utterance: id, path (absolute), speaker, chapter; and split, train or
        val, if subsets of both are chosen: one subset alone is split by `data.split`. Raises UserError.
        """
        folder = root if any((root / name).is_dir() for name in MD5) else root / "LibriSpeech"
        missing = [name for name in self.subsets if not (folder / name).is_dir()]
        if missing:
            self._provide(root, folder, missing)
        parts = [utterances(folder, [name]) for name in self.subsets]
        for name, part in zip(self.subsets, parts, strict=True):
            tree.report(f"Mini LibriSpeech {name}", part, WHOLE[name])
        table = pl.concat(parts)
        if table["split"].n_unique() == 1:
            table = table.drop("split")
        return table

    def _provide(self, root: Path, folder: Path, missing: list[str]) -> None:
        archives = {
            name: Archive(f"{self.mirror.rstrip('/')}/{name}.tar.gz", root / f"{name}.tar.gz", MD5[name])
            for name in missing
        }
        absent = [archive for archive in archives.values() if not archive.path.exists()]
        if absent and not self.download:
            files = "; ".join(f"{a.url} (md5 {a.md5}) as {a.path}" for a in absent)
            raise UserError(
                f"data.root={root}: no {', '.join(missing)} there; set data.corpus.download=true, or put there {files}"
            )
        other = tree.recognise(root) if absent else None
        if other is not None and other[0] != "Mini LibriSpeech":
            raise UserError(
                f"data.root={root}: this is {other[0]}, and Mini LibriSpeech is not downloaded into it; choose another "
                f"data.root for that, or {other[1]}"
            )
        with hold(root / ".download.lock", None, "choose another data.root"):
            for name, archive in archives.items():
                if (folder / name).is_dir():  # by the process that had the lock before
                    continue
                if not archive.path.exists():
                    fetch(archive)
                log.info("unpacking %s", archive.path)
                unpack(archive, folder / name)
