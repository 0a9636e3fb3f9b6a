"""From the names in a trial list to utterances: rows of a table, or files.

Lists and trees disagree about details: VoxCeleb's lists say `.wav` where the tree has `.m4a`, others put the name of
the corpus in front. Each name is tried in this order, and what is found is logged by how:

1. the id of a row; 2. that id but for the extension of an audio file;
3. a file below one of the folders, 4. the same with another audio extension;
5. and 6. as 2 and 4, without one or more of the name's leading folders;
7. the id of one row without one or more of the id's leading folders.

From 5 on only what no other name of the list leads to is taken.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from spkexp.data.corpora.tree import EXTENSIONS

log = logging.getLogger(__name__)

_RANK = {f".{extension}": rank for rank, extension in enumerate(EXTENSIONS)}
_EXTENSION = rf"(?i)\.({'|'.join(EXTENSIONS)})$"


def look_up(names: pl.Series, ids: pl.Series, folders: Sequence[Path]) -> pl.DataFrame:
    """Columns `name`, `row` and `path`, a row for each of the different `names`: where in `ids` (also all different)
    it is, else its file; both null where neither is found.
    """
    found = pl.DataFrame({"name": names}).with_columns(
        row=_positions(names, ids), path=pl.lit(None, dtype=pl.String), how=pl.lit("id")
    )
    for how, search in (
        ("id without the extension", _by_stem),
        ("file", _as_file),
        ("id without leading folders of the name", _by_tail_of_name),
        ("file without leading folders of the name", _as_file_by_tail),
        ("id without its leading folders", _by_tail_of_id),
    ):
        missing = found["row"].is_null() & found["path"].is_null()
        if not missing.any():
            break
        more = search(found.filter(missing)["name"], ids, folders)
        column = "row" if more.dtype == pl.Int64 else "path"
        # `more` has a value for each missing name, in their order.
        spread = pl.DataFrame({"name": found.filter(missing)["name"], "more": more})
        found = found.join(spread, on="name", how="left", maintain_order="left")
        found = found.with_columns(
            pl.coalesce(column, "more").alias(column),
            pl.when(pl.col("more").is_not_null()).then(pl.lit(how)).otherwise("how").alias("how"),
        ).drop("more")
    hits = found.filter(pl.col("row").is_not_null() | pl.col("path").is_not_null())
    counts = hits.group_by("how", maintain_order=True).len()
    if len(counts) > 1 or (len(counts) and counts["how"][0] != "id"):
        log.info("names in the list: %s", "; ".join(f"{count:,} by {how}" for how, count in counts.iter_rows()))
    return found.drop("how")


def tried(ids: pl.Series, folders: Sequence[Path]) -> str:
    """For an error: where names were looked for."""
    rows = f"ids of the data (such as {ids[0]!r}), also without extension or leading folders, and " if len(ids) else ""
    return f"{rows}files below {', '.join(map(str, folders))}"


def _positions(names: pl.Series, keys: pl.Series) -> pl.Series:
    """Where in `keys` each of `names` stands; null where it does not, or in more than one place."""
    # Only those that are wanted are counted: the rest of a million is never touched twice.
    table = pl.DataFrame({"key": keys}).with_row_index("row").filter(pl.col("key").is_in(names.implode()))
    table = table.filter(pl.col("key").is_unique())
    joined = pl.DataFrame({"key": names}).join(table, on="key", how="left", maintain_order="left")
    return joined["row"].cast(pl.Int64)


def _stems(names: pl.Series) -> pl.Series:
    return names.str.replace(_EXTENSION, "")


def _unless_shared(found: pl.Series) -> pl.Series:
    """`found`, with null for what stands there more than once."""
    return found.set(found.is_duplicated(), None)


def _by_stem(names: pl.Series, ids: pl.Series, folders: Sequence[Path]) -> pl.Series:
    return _positions(_stems(names), _stems(ids))


def _by_tail_of_name(names: pl.Series, ids: pl.Series, folders: Sequence[Path]) -> pl.Series:
    stems, keys = _stems(names), _stems(ids)
    found = pl.Series([None] * len(names), dtype=pl.Int64)
    while stems.str.contains("/", literal=True).any():
        stems = stems.str.replace("^[^/]*/?", "")
        found = found.zip_with(found.is_not_null() | (stems == ""), _positions(stems, keys))
    return _unless_shared(found)


def _by_tail_of_id(names: pl.Series, ids: pl.Series, folders: Sequence[Path]) -> pl.Series:
    stems, keys = _stems(names), _stems(ids)
    found = pl.Series([None] * len(names), dtype=pl.Int64)
    depths = stems.str.count_matches("/", literal=True)
    for depth in depths.unique().sort():
        tails = keys.str.extract(rf"/((?:[^/]*/){{{depth}}}[^/]*)$")
        found = found.zip_with(depths != depth, _positions(stems, tails))
    return _unless_shared(found)


class _Files:
    """The audio files of folders, each folder listed once: a list of trials names many files of few folders."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str | None:
        """`path`, if it is a file, or else the file of that name with another audio extension."""
        folder, name = os.path.split(path)
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        files = self._listed[folder]
        stem, extension = os.path.splitext(name)
        if extension.lower() not in _RANK:
            stem = name
        found = files.get(name) or files.get(f"{stem}/")
        return os.path.join(folder, found) if found else None

    @staticmethod
    def _list(folder: str) -> dict[str, str]:
        """Name to name for every file; and for audio files, `stem/` to the name with the extension that comes first."""
        try:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if not entry.is_dir()]
        except (OSError, ValueError):  # there is no such folder
            return {}
        files = {name: name for name in names}
        audio = [(*os.path.splitext(name), name) for name in names]
        audio = sorted(
            (part for part in audio if part[1].lower() in _RANK), key=lambda part: (_RANK[part[1].lower()], part[2])
        )
        for stem, _, name in reversed(audio):
            files[f"{stem}/"] = name
        return files


def _as_file(names: pl.Series, ids: pl.Series, folders: Sequence[Path]) -> pl.Series:
    files = _Files()
    bases = [str(folder) for folder in folders]
    paths = [next((p for base in bases if (p := files.find(os.path.join(base, name)))), None) for name in names]
    return pl.Series(paths, dtype=pl.String)


def _as_file_by_tail(names: pl.Series, ids: pl.Series, folders: Sequence[Path]) -> pl.Series:
    files = _Files()
    bases = [str(folder) for folder in folders]
    paths = []
    for name in names:
        parts = name.split("/")
        tails = ["/".join(parts[start:]) for start in range(1, len(parts))]
        paths.append(next((p for t in tails if t for base in bases if (p := files.find(os.path.join(base, t)))), None))
    shared = Counter(paths)
    return pl.Series([path if shared[path] == 1 else None for path in paths], dtype=pl.String)
