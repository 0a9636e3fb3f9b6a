"""Any tree of audio files whose paths follow a pattern, such as `{speaker}/{session}/{utterance}`."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from spkexp.data.corpora import tree
from spkexp.errors import UserError

log = logging.getLogger(__name__)

# What the table means by these names is not the tree's to say.
RESERVED = ("id", "path", "duration", "offset", "bytes", "start", "stop", "speed")
_NAME = re.compile(r"\{[A-Za-z_]\w*\}")


class Folder:
    """The audio files below the root whose path, without its extension, is as `pattern` says.

    `pattern`: each `{name}` stands for text without '/' and becomes the column `name`. Where a file's name can be read
    in several ways (`{keyword}_{round}` of zoom_in_01) earlier pieces are as long as can be, and the log says so.
    `speaker` and `split` (train, dev or val, test or eval) mean what they mean elsewhere; any other, such as
    `language`, can be learnt with `data.label` or filtered by.
    `extensions`: of the files that are taken, without the dot.
    `speakers`: a file that names the speakers where the paths do not: CSV with the columns `id` or `utterance`, and
    `speaker`, or Kaldi's utt2spk (`utterance speaker` a line). An utterance is called by its id, or by `{utterance}`.
    """

    def __init__(self, *, pattern: str, extensions: list[str], speakers: str | None) -> None:
        self.pattern = pattern.strip("/")
        self.names = [name[1:-1] for name in _NAME.findall(pattern)]
        if not self.names or len(set(self.names)) < len(self.names) or re.search(r"[{}]", _NAME.sub("", pattern)):
            raise UserError(
                f"data.corpus.pattern: expected names in braces, each once, as in {{speaker}}/{{utterance}}, "
                f"got {pattern!r}"
            )
        reserved = [name for name in self.names if name in RESERVED]
        if reserved:
            raise UserError(f"data.corpus.pattern: {{{reserved[0]}}} is a name of the table's own; choose another")
        if ("speaker" in self.names) == (speakers is not None):
            raise UserError(
                f"data.corpus.pattern: {pattern!r} has no {{speaker}}; add it, or name a list of the speakers with "
                "data.corpus.speakers=FILE"
                if speakers is None
                else f"data.corpus.speakers: the pattern {pattern!r} has a {{speaker}} already; leave one of them out"
            )
        if not extensions:
            raise UserError("data.corpus.extensions: is empty; name some, such as [wav,flac]")
        self.extensions = [extension.lstrip(".") for extension in extensions]
        self.speakers = speakers

    PATHS = ("speakers",)

    def sources(self, root: Path) -> list[Path]:
        """What the table is made of besides the tree."""
        return [] if self.speakers is None else [Path(self.speakers).expanduser()]

    def table(self, root: Path) -> pl.DataFrame:
        """One row a file: id (its path below the root, without the extension), path (absolute), speaker, and the other
        names of the pattern. A file whose speaker the list does not know has none. Raises UserError."""
        if not root.is_dir():
            raise UserError(f"data.root={root}: no such folder; expected one with files as {self.pattern}")
        base = os.path.abspath(root)
        files = tree.audio_files(base, self.extensions)
        if len(files) == 0:
            names = sorted(name for name in os.listdir(base) if not name.startswith("."))
            raise UserError(
                f"data.root={root}: no file ends in {', '.join('.' + e for e in self.extensions)}; found "
                f"{tree.shortened(names)}; set data.corpus.extensions to those of your files"
            )
        stems = files.str.replace(r"\.[^./]+$", "")
        table = stems.str.extract_groups(_regex(self.pattern, "+")).struct.unnest()
        table = table.with_columns(id=stems, path=pl.concat_str(pl.lit(f"{base}/"), files))
        matching = table.filter(pl.col(self.names[0]).is_not_null())
        if len(matching) == 0:
            raise UserError(
                f"data.root={root}: none of the {len(files):,} audio files is as data.corpus.pattern={self.pattern}; "
                f"found {tree.shortened(files.head(3).to_list())}"
            )
        if len(matching) < len(files):
            strange = files.filter(table[self.names[0]].is_null())
            log.warning(
                "%s: %s of %s audio files are left out: not as %s, such as %s",
                root,
                f"{len(strange):,}",
                f"{len(files):,}",
                self.pattern,
                strange[0],
            )
        self._warn_if_ambiguous(matching)
        table = tree.one_format(matching, "data.root")
        if self.speakers is not None:
            table = _with_speakers(table, Path(self.speakers).expanduser())
        log.info("%s: %s utterances of %s speakers", root, f"{len(table):,}", f"{table['speaker'].n_unique():,}")
        return table.select("id", "path", "speaker", *(name for name in self.names if name != "speaker"))

    def _warn_if_ambiguous(self, table: pl.DataFrame) -> None:
        other = table["id"].str.extract_groups(_regex(self.pattern, "+?")).struct.unnest()
        differs = table.select(self.names).hash_rows() != other.select(self.names).hash_rows()
        if differs.any():
            log.warning(
                "data.corpus.pattern=%s: %s file names can be read in several ways: %s as %s is taken, not %s",
                self.pattern,
                f"{differs.sum():,}",
                table.filter(differs)["id"][0],
                *(
                    ", ".join(f"{n}={v}" for n, v in t.filter(differs).select(self.names).row(0, named=True).items())
                    for t in (table, other)
                ),
            )


def _regex(pattern: str, repeated: str) -> str:
    """The pattern as a regular expression with named groups, for paths without extension; `repeated` is + (as long as
    can be) or +? (as short as can be)."""
    literals = _NAME.split(pattern)
    groups = [f"(?P<{name[1:-1]}>[^/]{repeated})" for name in _NAME.findall(pattern)]
    pieces = [re.escape(literals[0])]
    for group, literal in zip(groups, literals[1:], strict=True):
        pieces += [group, re.escape(literal)]
    return f"^{''.join(pieces)}$"


def _with_speakers(table: pl.DataFrame, file: Path) -> pl.DataFrame:
    """`table` with the column speaker from the list `file`, by id or, where the pattern has it, by utterance."""
    known = _read_speakers(file)
    by_id = pl.col("id").replace_strict(known["id"], known["speaker"], default=None, return_dtype=pl.String)
    speaker = by_id
    if "utterance" in table.columns:
        by_name = pl.col("utterance").replace_strict(
            known["id"], known["speaker"], default=None, return_dtype=pl.String
        )
        speaker = pl.coalesce(by_id, by_name)
    table = table.with_columns(speaker=speaker)
    unknown = table.filter(pl.col("speaker").is_null())["id"]
    if len(unknown) == len(table):
        raise UserError(
            f"{file}: names none of the utterances; it has {tree.shortened(known['id'].head(3).to_list())}, "
            f"data.root has {tree.shortened(unknown.head(3).to_list())}"
        )
    if len(unknown):
        log.warning("%s: %d of %d utterances are not in it, such as %s", file, len(unknown), len(table), unknown[0])
    return table


def _read_speakers(file: Path) -> pl.DataFrame:
    """id and speaker, each id once. Raises UserError with file and line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"data.corpus.speakers: {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.corpus.speakers: {file}: cannot be read as text: {error}") from None
    is_csv = file.suffix.lower() == ".csv"
    rows = _csv_rows(file, lines) if is_csv else enumerate((line.split() for line in lines), 1)
    found: dict[str, str] = {}
    for number, fields in rows:
        if not fields:
            continue
        if len(fields) != 2 or not all(fields):
            expected = "an utterance and its speaker" if is_csv else "'utterance speaker'"
            raise UserError(f"{file}:{number}: expected {expected}, got {' '.join(fields)!r}")
        if found.setdefault(fields[0], fields[1]) != fields[1]:
            raise UserError(f"{file}:{number}: {fields[0]} is of {fields[1]} here and of {found[fields[0]]} above")
    if not found:
        raise UserError(f"{file}: names no utterance")
    return pl.DataFrame({"id": list(found), "speaker": list(found.values())})


def _csv_rows(file: Path, lines: Sequence[str]) -> list[tuple[int, list[str]]]:
    header = [name.strip() for name in lines[0].split(",")] if lines else []
    key = next((name for name in ("id", "utterance") if name in header), None)
    if key is None or "speaker" not in header:
        raise UserError(f"{file}:1: expected the columns id (or utterance) and speaker, found {', '.join(header)}")
    places = header.index(key), header.index("speaker")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        fields = [field.strip() for field in line.split(",")]
        if not line.strip():
            continue
        if len(fields) != len(header):
            raise UserError(f"{file}:{number}: expected {len(header)} fields, got {line.strip()!r}")
        rows.append((number, [fields[place] for place in places]))
    return rows
