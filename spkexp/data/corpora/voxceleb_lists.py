"""The text files that come with VoxCeleb: vox1_meta.csv, vox2_meta.csv and iden_split.txt, wherever they lie."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from spkexp.errors import UserError

# The first column of iden_split.txt: 138,361, 6,904 and 8,251 utterances.
SPLIT_LIST = "iden_split.txt"
IDENTIFICATION = {"1": "train", "2": "val", "3": "test"}


def lists_in(folders: Sequence[Path]) -> list[Path]:
    """Where the text files are looked for, whether there or not."""
    return [folder / name for folder in folders for name in ("vox1_meta.csv", "vox2_meta.csv", SPLIT_LIST)]


def read_meta(folders: Sequence[Path], name: str) -> pl.DataFrame | None:
    """speaker, subset (dev or test), gender (m or f), and nationality where it is told, from the first file `name` in
    `folders`; None if there is none. Raises UserError.

    The official files are separated by tabs or by commas, and padded with blanks.
    """
    path = _first(folders, name)
    if path is None:
        return None
    lines = [line for line in _lines(path) if line.strip()]
    separator = "\t" if lines and "\t" in lines[0] else ","
    rows = [[field.strip() for field in line.split(separator)] for line in lines]
    header = [field.lower().replace(" ", "") for field in rows[0]] if rows else []
    wanted = {"speaker": f"voxceleb{name[3]}id", "subset": "set", "gender": "gender", "nationality": "nationality"}
    places = {column: header.index(title) for column, title in wanted.items() if title in header}
    if not {"speaker", "subset", "gender"} <= set(places):
        raise UserError(f"{path}: expected the columns 'VoxCeleb{name[3]} ID', Gender and Set; found {header}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header) or row[places["subset"]] not in ("dev", "test"):
            raise UserError(f"{path}:{number}: expected {len(header)} columns with Set dev or test, got {row}")
    table = pl.DataFrame({column: [row[place] for row in rows[1:]] for column, place in places.items()})
    return table.unique("speaker", keep="first", maintain_order=True)


def read_identification(folders: Sequence[Path]) -> pl.DataFrame:
    """id and split (train, val or test) from iden_split.txt, whose lines are `1 id10001/VIDEO/00001.wav`.
    Raises UserError."""
    path = _first(folders, SPLIT_LIST)
    if path is None:
        raise UserError(
            f"{folders[0]}: no iden_split.txt there, which data.corpus.protocol=identification needs; put it there "
            "(it is among the lists of https://mm.kaist.ac.kr/datasets/voxceleb/)"
        )
    ids, splits = [], []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[0] not in IDENTIFICATION:
            raise UserError(f"{path}:{number}: expected '1|2|3 SPEAKER/VIDEO/NUMBER.wav', got {line.strip()!r}")
        ids.append(fields[1].rpartition(".")[0] or fields[1])
        splits.append(IDENTIFICATION[fields[0]])
    return pl.DataFrame({"id": ids, "split": splits}, schema={"id": pl.String, "split": pl.String}).unique("id")


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
