"""Files that other processes may be writing too, and that a kill must not leave half written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from spkexp.errors import UserError


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """What fails in here is the disk: a UserError that names `path` and ends with `remedy`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; {remedy}") from None
    except pl.exceptions.ComputeError as error:  # what polars makes of a full disk
        raise UserError(f"{path}: cannot be written: {str(error).splitlines()[0]}; {remedy}") from None


@contextmanager
def whole(path: Path, temporary: Path, remedy: str) -> Iterator[Path]:
    """A name in the folder `temporary`, made if need be, to write to; what lies there at the end becomes `path`.

    Both are on one disk. What a kill leaves in `temporary` nobody needs. Raises UserError, which ends with `remedy`,
    if the disk is full or may not be written.
    """
    partial = temporary / f"{secrets.token_hex(6)}{path.suffix}"
    with writing(path, remedy):
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
