"""What the corpora share: list a tree of audio files fast, tell which corpus a folder is, and count what is missing."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from spkexp.errors import UserError

log = logging.getLogger(__name__)

# Of an utterance that is there twice the first of these is taken: the cheapest to read comes first.
EXTENSIONS = ("wav", "flac", "m4a", "opus", "mp3", "ogg")
# Folders of people in VoxCeleb and CN-Celeb.
PERSON = re.compile(r"id\d{5}")
THREADS = 8


class Count(NamedTuple):
    """How much a whole corpus, or a part of it, holds."""

    speakers: int
    utterances: int


def audio_files(folder: str | Path, extensions: Sequence[str] = EXTENSIONS) -> pl.Series:
    """Audio files below `folder`, as text relative to it with '/' between the folders; in an order of their own, the
    same on every disk: a folder's files by name, then its folders by name.

    Links to folders are followed. Hidden files and folders (`.DS_Store`, `._x.wav`) are left out, as is, with a line
    in the log, a name that is not UTF-8. No file is looked at, and its name alone says that it is audio.
    Raises UserError for a folder that cannot be listed.
    """
    base = os.path.abspath(folder)
    endings = tuple(f".{extension}" for extension in extensions)
    endings += tuple(ending.upper() for ending in endings)
    names, folders, links = _listed(base, "", endings)
    # Threads, for on a network file system it is the waiting that takes the time.
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(lambda inner: list(_below(base, inner, endings, inner in links, ())), folders):
            names += part
    try:
        return pl.Series("file", names, dtype=pl.String)
    except UnicodeEncodeError:
        usable = [name for name in names if _is_utf8(name)]
        log.warning("%s: %d audio files are left out: their names are not UTF-8", base, len(names) - len(usable))
        return pl.Series("file", usable, dtype=pl.String)


def _below(base: str, folder: str, endings: tuple[str, ...], is_link: bool, above: tuple[str, ...]) -> Iterator[str]:
    """Files below `base/folder`, relative to `base`. `above`: where the links that led here point to."""
    if is_link:
        where = os.path.join(base, folder)
        target, place = os.path.realpath(where), os.path.realpath(os.path.dirname(where))
        if target in above or f"{place}/".startswith(f"{target}/"):
            log.warning("%s: is a link to a folder above it, and is left out", where)
            return
        above = (*above, target)
    names, folders, links = _listed(base, folder, endings)
    yield from names
    for inner in folders:
        yield from _below(base, inner, endings, inner in links, above)


def _listed(base: str, folder: str, endings: tuple[str, ...]) -> tuple[list[str], list[str], set[str]]:
    """Audio files and folders in `base/folder`, both sorted and relative to `base`; and which folders are links."""
    names: list[str] = []
    folders: list[str] = []
    links: set[str] = set()
    prefix = f"{folder}/" if folder else ""
    where = f"{base}/{folder}" if folder else base
    try:
        with os.scandir(where) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(prefix + name)
                    if entry.is_symlink():
                        links.add(prefix + name)
                elif name.endswith(endings):
                    names.append(prefix + name)
    except OSError as error:
        raise UserError(f"{where}: cannot be listed: {error.strerror}") from None
    return sorted(names), sorted(folders), links


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_format(table: pl.DataFrame, corpus: str) -> pl.DataFrame:
    """`table` with one row an id: of an utterance that is there more than once, the format that is cheapest to read.
    The number of the others goes to the log."""
    extension = pl.col("path").str.extract(r"\.([^.]+)$").str.to_lowercase()
    rank = extension.replace_strict(list(EXTENSIONS), list(range(len(EXTENSIONS))), default=99)
    if not table["id"].is_duplicated().any():
        return table
    best = table.with_columns(rank.alias("_rank")).sort("id", "_rank", maintain_order=True)
    best = best.unique("id", keep="first", maintain_order=True).drop("_rank")
    formats = table.filter(pl.col("id").is_duplicated()).select(extension.alias("format"))["format"].unique().sort()
    log.warning(
        "%s: %s of the files hold an utterance that is there twice (%s); of each, one is taken: the first of %s",
        corpus,
        f"{len(table) - len(best):,}",
        ", ".join(formats),
        ", ".join(EXTENSIONS),
    )
    return best


def report(part: str, table: pl.DataFrame, whole: Count, speakers: Iterable[str] = ()) -> None:
    """Say in the log how much of `part`, whose known size is `whole`, the table holds; `speakers` are those that it
    should have, as far as known, so that the first missing ones can be named."""
    found = Count(table["speaker"].n_unique(), len(table))
    counts = (
        f"{found.speakers:,} of {whole.speakers:,} speakers, {found.utterances:,} of {whole.utterances:,} utterances"
    )
    if found == whole:
        log.info("%s: %s: complete", part, counts)
    elif found.speakers > whole.speakers or found.utterances > whole.utterances:
        log.warning("%s: %s: more than it should have; is another corpus among it?", part, counts)
    else:
        missing = sorted(set(speakers) - set(table["speaker"].unique()))
        names = f" missing are {shortened(missing, 5)};" if missing else ""
        log.warning("%s: %s;%s partly extracted?", part, counts, names)


def count_files(part: str, found: int, whole: int) -> None:
    """The same for a corpus that is only files."""
    (log.info if found == whole else log.warning)(
        "%s: %s of %s files%s", part, f"{found:,}", f"{whole:,}", "" if found == whole else "; partly extracted?"
    )


def shortened(names: Sequence[str], length: int = 8) -> str:
    """`names` for an error: the first few, and how many more."""
    rest = f" and {len(names) - length} more" if len(names) > length else ""
    return ", ".join(names[:length]) + rest if names else "nothing"


def wrong_root(root: Path, name: str, expected: str, key: str = "data.root", remedy: str = "") -> UserError:
    """Why `root` is not a tree of the corpus `name`, whose layout is `expected`: it is not there, it is another corpus
    (which is named, with the config to use), or something else (what is in it is shown)."""
    if not root.is_dir():
        return UserError(f"{key}={root}: no such folder; expected {name}: {expected}{remedy}")
    other = recognise(root)
    if other is not None and other[0] == name:
        return UserError(f"{key}={root}: this is only a part of {name}; give the folder above it, {root.parent}")
    if other is not None:
        return UserError(f"{key}={root}: this is {other[0]}, expected {name}: {expected}; {other[1]}{remedy}")
    try:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except OSError as error:
        return UserError(f"{key}={root}: cannot be listed: {error.strerror}")
    archives = [n for n in names if re.search(r"\.(zip|tar|tgz|tar\.gz)$|_part[a-z]{1,2}$", n)]
    unpack = f"; unpack the archives first ({shortened(archives, 3)})" if archives else ""
    return UserError(f"{key}={root}: not a {name} tree; expected {expected}; found {shortened(names)}{unpack}{remedy}")


def recognise(root: Path) -> tuple[str, str] | None:
    """The known corpus that `root`, or a folder in it, seems to be, and how to use it; else None."""
    for folder in (root, *subfolders(root)):
        names = {path.name for path in subfolders(folder)}
        if any(re.fullmatch(r"(train|dev|test)-(clean|other)(-\d00)?", name) for name in names):
            return "LibriSpeech", "use data=librispeech"
        if names & {"train-clean-5", "dev-clean-2"}:
            return "Mini LibriSpeech", "use data=mini_librispeech"
        if names & {"simulated_rirs", "real_rirs_isotropic_noises", "pointsource_noises"}:
            return "RIRS_NOISES", "it serves the augmentation (augment=...), not as data"
        if len(names & {"music", "noise", "speech"}) >= 2:
            return "MUSAN", "it serves the augmentation (augment=...), not as data"
    for person in (path for folder in person_folders(root) for path in subfolders(folder)):
        if PERSON.fullmatch(person.name) is None:
            continue
        # VoxCeleb has a folder a video in between; VoxCeleb1's numbers begin where VoxCeleb2's have ended.
        if subfolders(person):
            return ("VoxCeleb1", "use data=voxceleb1") if person.name > "id1" else ("VoxCeleb2", "use data=voxceleb2")
        if person.is_dir() and len(audio_files(person)):
            return "CN-Celeb", "use data=cnceleb"
    return None


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder`, by name, hidden ones left out; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            # A folder of a million files is not searched to its end.
            found = [entry.name for entry in islice(entries, 20_000) if entry.name[0] != "." and entry.is_dir()]
    except OSError:
        return []
    return [folder / name for name in sorted(found)]


def person_folders(root: Path, depth: int = 4) -> list[Path]:
    """Folders at most `depth` levels below `root`, or `root` itself, that hold speakers' folders (id10001, …)."""
    level, found = [root], []
    for _ in range(depth):
        inside = [(folder, subfolders(folder)) for folder in level[:2_000]]
        found += [folder for folder, names in inside if any(PERSON.fullmatch(path.name) for path in names)]
        level = [path for folder, names in inside if folder not in found for path in names]
    return found
