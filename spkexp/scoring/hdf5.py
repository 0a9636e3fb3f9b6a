"""Datasets of HDF5 files that may be somebody else's: of this file alone, no larger than it, and whole where libhdf5
takes a file's word for it.

Texts lie in heaps, to which a dataset refers (HDF5 File Format Specification 3.0, III.E and VIII.A). libhdf5 walks from
object to object of a heap and follows every reference: an object without a size, or a heap that is none, keeps it there
for ever. Both were found by `make fuzz`, so they are looked at first.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from spkexp.errors import UserError
from spkexp.foreign import require_proportion

_REFERENCE = np.dtype([("bytes", "<u4"), ("heap", "<u8"), ("index", "<u4")])
_PIECE = 1024  # texts that are read at once

Heaps = dict[int, dict[int, int]]  # by the byte that it begins at: bytes of each object, by its number


def heaps_of(file: Path) -> Heaps:
    """The heaps of texts in an HDF5 file. Raises ValueError for a damaged one."""
    found: Heaps = {}
    with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = -1
        while (start := content.find(b"GCOL\1\0\0\0", start + 1)) >= 0:
            objects = found.setdefault(start, {})
            place, end = start + 16, start + int.from_bytes(content[start + 8 : start + 16], "little")
            while place + 16 <= min(end, len(content)):
                index, _, size = struct.unpack("<HH4xQ", content[place : place + 16])
                step = size if index == 0 else 16 + (size + 7) // 8 * 8  # what is free counts its own 16 bytes
                if step < 16 or place + step > end:
                    raise ValueError(f"byte {place} begins an object of {size} bytes in a heap")
                if index != 0:
                    objects[index] = size
                place += step
    return found


def dataset(file: Path, source: Any, name: str, heaps: Heaps) -> Any:
    """The dataset `name` of the open `source`, if its values lie in this file: a link could lead to any other.

    Raises UserError that names `file`, KeyError and ValueError.
    """
    import h5py

    found = source[name] if isinstance(source.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise UserError(f"{file}: refused: its `{name}` is no dataset of this file")
    if not found.shape:
        raise ValueError(f"`{name}` is no list")
    require_proportion(file, found.size * found.dtype.itemsize)
    place = found.id.get_offset()
    if h5py.check_string_dtype(found.dtype) is not None and found.dtype.kind == "O" and place is not None:
        _check_references(file, place, found.size, name, heaps)
    return found


def _check_references(file: Path, place: int, count: int, name: str, heaps: Heaps) -> None:
    """Those of a dataset that lies in one piece, from byte `place` on."""
    with file.open("rb") as source:
        source.seek(place)
        references = np.frombuffer(source.read(count * _REFERENCE.itemsize), dtype=_REFERENCE)
    for number, (size, heap, index) in enumerate(references.tolist()):
        if size > 0 and size > heaps.get(heap, {}).get(index, 0):
            raise ValueError(f"text {number} of `{name}` is not in the file")


def texts(file: Path, names: Any) -> list[str]:
    """The values of a dataset of texts. Raises UserError where they are more than `file` can have."""
    found: list[str] = []
    total = 0
    for start in range(0, names.shape[0], _PIECE):  # each of a million texts could be the same, long one
        found += names.asstr()[start : start + _PIECE].tolist()
        total += sum(map(len, found[start:]))
        require_proportion(file, total)
    return found
