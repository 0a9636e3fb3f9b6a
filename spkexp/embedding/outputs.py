"""That nothing that `python -m spkexp.embed` reads is written over."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from spkexp import durable
from spkexp.data.manifest import IN_FOLDER
from spkexp.errors import UserError

# What is written beside an archive of Kaldi, by extension.
_OF_AN_ARCHIVE = {".scp": "its index", ".csv": "its table"}


def check_output(output: Path, source: str, segments: str | None, model: str) -> None:
    """Raise UserError where `output`, or a file that comes with it, is what input=, segments= or model= names."""
    places = [] if source == "-" else [(Path(source), "the input")]
    # Of a folder that lists utterances these are the input, and have extensions of outputs.
    places += [(place / name, f"the input's {name}") for place, _ in places for name in (IN_FOLDER, "wav.scp")]
    places += [(Path(model), "the model")]
    places += [] if segments is None else [(Path(segments), "the file of segments")]
    places = [(place.expanduser(), what) for place, what in places]
    for file, kind in _written(output):
        for place, what in places:
            if _is_same(file, place):
                raise _refusal(output, file, kind, what)
    _check_partial(output, (str(place) for place, _ in places))


def check_audio(output: Path, paths: pl.Series) -> None:
    """The same for the audio files `paths`, which may be archives or shards with such names."""
    for file, kind in _written(output):
        alike = paths.filter(paths.str.to_lowercase().str.ends_with(file.suffix.lower())).unique()
        if any(_is_same(file, Path(path)) for path in alike):
            raise _refusal(output, file, kind, "an audio file of the input")
    _check_partial(output, paths.filter(paths.str.contains(durable.beside(output, "partial").name, literal=True)))


def _written(output: Path) -> Iterator[tuple[Path, str | None]]:
    """Each file that will be written, and what it is of `output`; None: itself."""
    yield output, None
    if output.suffix.lower() == ".ark":
        for suffix, kind in _OF_AN_ARCHIVE.items():
            yield output.with_suffix(suffix), kind


def _is_same(file: Path, other: Path) -> bool:
    try:
        return os.path.samefile(file, other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _refusal(output: Path, file: Path, kind: str | None, what: str) -> UserError:
    written = "" if kind is None else f"{kind} would be written to {file}, which "
    return UserError(f"output={output}: {written}is {what}; name another output")


def _check_partial(output: Path, paths: Iterable[str]) -> None:
    """Raise UserError for what lies in the folder that is removed in the end."""
    partial = Path(os.path.abspath(durable.beside(output, "partial")))
    inside = next((path for path in paths if Path(os.path.abspath(path)).is_relative_to(partial)), None)
    if inside is not None:
        raise UserError(f"output={output}: {partial} is removed in the end, and {inside} is in it; name another output")
