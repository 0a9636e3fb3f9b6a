"""Files of windows that `python -m spkexp.embed window=…` wrote, read back by recording."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from spkexp.errors import UserError
from spkexp.foreign import open_zip
from spkexp.scoring import embedding_file, hdf5
from spkexp.scoring.sliding import Windows

COLUMNS = ("recording", "start", "end")


def read_windows(file: str | Path) -> dict[str, Windows]:
    """The windows of each recording, by time, the recordings in the order of the file.

    Of an archive of Kaldi the .csv beside it is read as well. Windows of several segments of a recording are in one
    Windows: `crop` takes those of one. Runs no code from the file. Raises UserError that names it.
    """
    file = Path(file).expanduser()
    _, embeddings = embedding_file.read_embeddings(file)
    try:
        table = _READERS[file.suffix.lower()](file).cast(
            {"recording": pl.String, "start": pl.Float64, "end": pl.Float64}
        )
    except embedding_file.UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file}: holds no windows ({reason}); expected the columns {', '.join(COLUMNS)}, as spkexp.embed "
            "window=SECONDS writes them"
        ) from error
    if len(table) != len(embeddings) or any(column.has_nulls() for column in table):
        raise UserError(f"{file}: its columns {', '.join(COLUMNS)} are not of its {len(embeddings)} embeddings")
    found: dict[str, Windows] = {}
    for part in table.with_row_index("row").partition_by("recording", maintain_order=True):
        ordered = part.sort("start", "end")
        start, end = (ordered[name].to_numpy() for name in ("start", "end"))
        found[part["recording"][0]] = Windows(embeddings[ordered["row"].to_numpy()], start, end)
    return found


def _hdf5(file: Path) -> pl.DataFrame:
    import h5py

    heaps = hdf5.heaps_of(file)
    with h5py.File(file, "r") as source:
        if missing := [name for name in COLUMNS if name not in source]:
            raise KeyError(missing[0])
        recording, start, end = (hdf5.dataset(file, source, name, heaps) for name in COLUMNS)
        return pl.DataFrame({"recording": hdf5.texts(file, recording), "start": start[:], "end": end[:]})


def _npz(file: Path) -> pl.DataFrame:
    with open_zip(file) as archive:
        return pl.DataFrame({name: embedding_file.npy(file, archive, f"{name}.npy") for name in COLUMNS})


def _parquet(file: Path) -> pl.DataFrame:
    return pl.read_parquet(file, columns=list(COLUMNS), glob=False)


def _ark(file: Path) -> pl.DataFrame:
    return pl.read_csv(file.with_suffix(".csv"), columns=list(COLUMNS), infer_schema=False, glob=False)


_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".npz": _npz,
    ".parquet": _parquet,
    ".ark": _ark,
}
