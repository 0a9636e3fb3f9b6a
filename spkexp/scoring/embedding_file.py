"""Embeddings as files that other programs read: HDF5, NumPy's NPZ, Parquet, and archives of Kaldi.

emb.h5, .hdf5   datasets `id` (N,) UTF-8 text, `embedding` (N, D) float32, and one for each further column
emb.npz         arrays of the same names; none needs pickle
emb.parquet     columns of the same names; `embedding` holds arrays of D float32
emb.ark         Kaldi's binary vectors of float32, with emb.scp, which says where each is; further columns in emb.csv
"""

import logging
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError
from spkexp.foreign import open_zip, require_proportion
from spkexp.scoring import hdf5
from spkexp.whole_file import replacing

log = logging.getLogger(__name__)

Embeddings = NDArray[np.float32]
_ID, _EMBEDDING = "id", "embedding"
_VECTOR: dict[bytes, np.dtype[Any]] = {
    b"\0BFV \4": np.dtype("<f4"),
    b"\0BDV \4": np.dtype("<f8"),
}  # begin of a binary vector
_HEADER = len(b"\0BFV \4") + 4  # bytes of that, and of the number of its values


def write_embeddings(
    file: Path, ids: Sequence[str], embeddings: Embeddings, columns: Mapping[str, Sequence[Any] | NDArray[Any]] = {}
) -> int:
    """Write N embeddings under their names, in the format that the extension of `file` says; returns how many of them
    were left out, which a warning says too: those with NaN, of utterances that could not be read.

    embeddings: (N, D); ids: N different names; columns: N values each, text or numbers. Where HDF5 and NPZ have no
    word for a missing value, it is the empty text or NaN. Raises UserError that names the file, and the id that cannot
    be written: twice the same, or, in an archive of Kaldi, one with blanks.
    """
    writer = _format(file)[0]
    if embeddings.ndim != 2 or any(len(column) != len(embeddings) for column in (ids, *columns.values())):
        raise ValueError(f"{len(ids)} ids and columns of {len(embeddings)} embeddings of shape {embeddings.shape}")
    if taken := {_ID, _EMBEDDING} & set(columns):
        raise ValueError(f"columns: {', '.join(sorted(taken))} would be there twice")
    table = pl.DataFrame({_ID: pl.Series(ids, dtype=pl.String), **{n: pl.Series(c) for n, c in columns.items()}})
    readable = np.isfinite(embeddings).all(axis=1)
    left_out = int((~readable).sum())
    if left_out:
        table, embeddings = table.filter(pl.Series(readable)), embeddings[readable]
        log.warning("%s: %d embeddings are left out: their utterances could not be read", file, left_out)
    twice = table[_ID].is_duplicated()
    if twice.any():
        raise UserError(f"{file}: {table[_ID].filter(twice)[0]!r} is the name of more than one embedding")
    try:
        writer(file, table, np.ascontiguousarray(embeddings, dtype=np.float32))
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error}; make room, or choose another place") from error
    return left_out


def read_embeddings(file: Path) -> tuple[list[str], Embeddings]:
    """(N names, (N, D) embeddings) of what `write_embeddings` wrote, or another program did in the same way.

    Runs no code from the file. Raises UserError that names it.
    """
    reader = _format(file)[1]
    if not file.is_file():
        raise UserError(f"{file}: no such file of embeddings")
    try:
        ids, embeddings = reader(file)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file}: holds no embeddings ({reason}); expected `{_ID}`, N names, and `{_EMBEDDING}`, N x D numbers"
        ) from error
    if embeddings.ndim != 2 or len(ids) != len(embeddings):
        raise UserError(f"{file}: {len(ids)} names for embeddings of shape {embeddings.shape}; expected (names, D)")
    return ids, np.ascontiguousarray(embeddings, dtype=np.float32)


def check_format(file: Path) -> None:
    """Raise UserError where the extension of `file` is that of no format of embeddings."""
    _format(file)


UNREADABLE = (
    *(OSError, LookupError, ValueError, TypeError, RuntimeError, MemoryError, AttributeError, SyntaxError, EOFError),
    *(struct.error, zipfile.BadZipFile, zlib.error, pl.exceptions.PolarsError, pl.exceptions.PanicException),
)

Writer = Callable[[Path, pl.DataFrame, Embeddings], None]
Reader = Callable[[Path], tuple[list[str], NDArray[Any]]]


def _format(file: Path) -> tuple[Writer, Reader]:
    if file.suffix.lower() not in _FORMATS:
        raise UserError(f"{file}: embeddings are written as {', '.join(_FORMATS)}; choose one of these extensions")
    return _FORMATS[file.suffix.lower()]


def _filled(column: pl.Series) -> list[str] | NDArray[Any]:
    return column.fill_null("").to_list() if column.dtype == pl.String else column.to_numpy()


def _write_hdf5(file: Path, table: pl.DataFrame, embeddings: Embeddings) -> None:
    import h5py

    with replacing(file) as temporary, h5py.File(temporary, "w") as target:
        target.create_dataset(_EMBEDDING, data=embeddings)
        for column in table:
            kind = h5py.string_dtype() if column.dtype == pl.String else None
            target.create_dataset(column.name, data=_filled(column), dtype=kind)


def _read_hdf5(file: Path) -> tuple[list[str], NDArray[Any]]:
    import h5py

    heaps = hdf5.heaps_of(file)
    with h5py.File(file, "r") as source:
        names, embeddings = (hdf5.dataset(file, source, name, heaps) for name in (_ID, _EMBEDDING))
        if embeddings.dtype.kind not in "fiu":
            raise ValueError(f"`{_EMBEDDING}` holds {embeddings.dtype}, no numbers")
        return hdf5.texts(file, names), embeddings[:]


def _write_npz(file: Path, table: pl.DataFrame, embeddings: Embeddings) -> None:
    arrays: dict[str, Any] = {column.name: np.asarray(_filled(column)) for column in table}
    arrays[_ID] = np.asarray(table[_ID].to_list(), dtype=np.str_)  # of none, it would be numbers
    with replacing(file) as temporary, temporary.open("wb") as stream:  # a name without .npz would be given one
        np.savez(stream, embedding=embeddings, **arrays)


def _read_npz(file: Path) -> tuple[list[str], NDArray[Any]]:
    with open_zip(file) as archive:
        ids, embeddings = (npy(file, archive, f"{name}.npy") for name in (_ID, _EMBEDDING))
    if ids.dtype.kind != "U" or ids.ndim != 1 or embeddings.dtype.kind not in "fiu":
        raise ValueError(f"`{_ID}` holds {ids.dtype} and `{_EMBEDDING}` {embeddings.dtype}")
    return ids.tolist(), embeddings


def npy(file: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of a NPZ; of no more values than the file can have."""
    require_proportion(file, archive.getinfo(name).file_size)
    with archive.open(name) as source:
        version = np.lib.format.read_magic(source)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(source)
    # Before the memory is asked for
    require_proportion(file, math.prod(shape) * dtype.itemsize)
    with archive.open(name) as source:
        return np.lib.format.read_array(source, allow_pickle=False)


def _write_parquet(file: Path, table: pl.DataFrame, embeddings: Embeddings) -> None:
    kind = pl.Array(pl.Float32, embeddings.shape[1])
    with replacing(file) as temporary:
        table.insert_column(1, pl.Series(_EMBEDDING, embeddings, dtype=kind)).write_parquet(temporary)


def _read_parquet(file: Path) -> tuple[list[str], NDArray[Any]]:
    require_proportion(file, pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())
    table = pl.read_parquet(file, columns=[_ID, _EMBEDDING], glob=False)
    column = table[_EMBEDDING]
    if isinstance(column.dtype, pl.List):  # as other programs write them
        column = column.list.to_array(int(column.list.len().to_numpy().max(initial=0)))
    return table[_ID].to_list(), column.to_numpy()


def _write_ark(file: Path, table: pl.DataFrame, embeddings: Embeddings) -> None:
    ids = table[_ID].to_list()
    blank = next((name for name in ids if not name or name.split() != [name]), None)
    if blank is not None:
        raise UserError(f"{file}: {blank!r}: a name in an archive of Kaldi has no blanks; write .h5, .npz or .parquet")
    header = b"\0BFV \4" + struct.pack("<i", embeddings.shape[1])
    index, place = file.with_suffix(".scp"), file.absolute()
    names = [f"{name} ".encode() for name in ids]
    sizes = [len(name) + len(header) + embeddings.shape[1] * 4 for name in names]
    # Kaldi has it that an entry is found behind its name.
    starts = [end - size + len(name) for end, size, name in zip(np.cumsum(sizes).tolist(), sizes, names, strict=True)]
    with replacing(index) as listed:
        lines = (f"{name} {place}:{start}\n" for name, start in zip(ids, starts, strict=True))
        listed.write_text("".join(lines), encoding="utf-8")
        with replacing(file) as temporary:
            with temporary.open("wb") as stream:
                for name, row in zip(names, embeddings, strict=True):
                    stream.write(name + header + row.tobytes())
            index.unlink(missing_ok=True)  # it says where things are in the archive of before
    if table.width > 1:
        with replacing(file.with_suffix(".csv")) as temporary:
            table.write_csv(temporary)


def _read_ark(file: Path) -> tuple[list[str], NDArray[Any]]:
    # Not by kaldiio, which unpickles what an archive has to be unpickled.
    with file.open("rb") as source:
        if file.stat().st_size == 0:  # which cannot be mapped
            return [], np.empty((0, 0), dtype=np.float32)
        content = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    ids, rows = list[str](), list[NDArray[Any]]()
    place = 0
    while place < len(content):
        begin = content.find(b" ", place) + 1
        kind = _VECTOR.get(content[begin : begin + _HEADER - 4])
        if begin == 0 or kind is None:
            raise ValueError(f"byte {max(begin, place)} is not the beginning of a binary vector")
        (size,) = struct.unpack("<i", content[begin + _HEADER - 4 : begin + _HEADER])
        if size < 0:
            raise ValueError(f"byte {begin} begins a vector of {size} values")
        ids.append(content[place : begin - 1].decode())
        rows.append(np.frombuffer(content, kind, size, begin + _HEADER))
        place = begin + _HEADER + size * kind.itemsize
    return ids, np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)


_HDF5: tuple[Writer, Reader] = (_write_hdf5, _read_hdf5)
_FORMATS: dict[str, tuple[Writer, Reader]] = {
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".npz": (_write_npz, _read_npz),
    ".parquet": (_write_parquet, _read_parquet),
    ".ark": (_write_ark, _read_ark),
}
