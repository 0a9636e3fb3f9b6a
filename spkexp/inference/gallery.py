"""A small gallery of enrolled speakers, and who of them a recording is."""

import json
import os
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save_file

from spkexp.errors import UserError
from spkexp.scoring.projection import unit
from spkexp.whole_file import replacing

_SHOWN = 5  # names of a gallery that is printed


class Candidate(NamedTuple):
    """An enrolled speaker, and how like a recording is to it."""

    name: str
    score: float  # cosine, in [-1, 1]


class Enrolled(NamedTuple):
    """What is kept of a speaker: enough to add further recordings, and none of the recordings."""

    total: NDArray[np.float64]  # (D,) sum of the directions, each of length one, of its recordings
    recordings: int


class Gallery:
    """Speakers by name, each the mean of the directions of the embeddings of its recordings.

    May be used by several threads at once: what changes it puts a new table in the place of the old, which a search
    that is under way goes on with.
    """

    def __init__(self, embedding_size: int) -> None:
        self.embedding_size = embedding_size
        self._lock = Lock()
        self._table = _Table({}, embedding_size)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of enrolment."""
        return self._table.names

    def __len__(self) -> int:
        return len(self._table.names)

    def __repr__(self) -> str:
        names = self._table.names
        shown = f": {', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)}" if names else ""
        return f"Gallery({len(names):,} speaker{'s' * (len(names) != 1)}{shown})"

    def add(self, name: str, embeddings: NDArray[np.float32]) -> None:
        """Enrol `name` with embeddings (N, D), in addition to those that it has. Raises ValueError."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"name={name!r}: expected a text")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size or not len(embeddings):
            raise ValueError(
                f"{name}: embeddings of shape {embeddings.shape}, expected (N, {self.embedding_size}), N at least 1"
            )
        total = unit(embeddings).sum(axis=0)
        with self._lock:
            speakers = dict(self._table.speakers)
            before = speakers.get(name, Enrolled(np.zeros_like(total), 0))
            speakers[name] = Enrolled(before.total + total, before.recordings + len(embeddings))
            self._table = _Table(speakers, self.embedding_size)

    def forget(self, name: str) -> None:
        """Remove a speaker. Raises KeyError where nobody is called so."""
        with self._lock:
            speakers = dict(self._table.speakers)
            if name not in speakers:
                raise KeyError(f"{name}: nobody is enrolled under this name")
            del speakers[name]
            self._table = _Table(speakers, self.embedding_size)

    def search(self, embeddings: NDArray[np.float32], top: int) -> list[list[Candidate]]:
        """For each of embeddings (N, D) the `top` speakers that are nearest, the best first; all where there are fewer.

        Raises ValueError where nobody is enrolled.
        """
        if top < 1:
            raise ValueError(f"top={top}: expected 1 or more")
        table = self._table
        if not table.names:
            raise ValueError("nobody is enrolled yet; enroll(name, recordings) first")
        scores = unit(embeddings) @ table.directions.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return [
            [Candidate(table.names[index], float(row[index])) for index in chosen]
            for row, chosen in zip(scores, best.tolist(), strict=True)
        ]

    def save(self, file: str | os.PathLike[str], model: str) -> None:
        """Write it to a safetensors file. model: says of which weights the embeddings are. Raises UserError."""
        table = self._table
        totals = [one.total for one in table.speakers.values()]
        tensors = {
            "total": np.array(totals).reshape(len(totals), self.embedding_size),
            "count": np.array([one.recordings for one in table.speakers.values()], dtype=np.int64),
        }
        about = {"names": json.dumps(table.names, ensure_ascii=False), "model": model}
        try:
            with replacing(Path(file).expanduser()) as partial:
                save_file(tensors, partial, metadata=about)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file}: cannot be written: {error}; name another place") from error

    def load(self, file: str | os.PathLike[str], model: str) -> None:
        """Hold the speakers of what `save` wrote, and no others; runs no code from the file.

        Raises UserError, also where they were enrolled with another model: its embeddings mean nothing here.
        """
        path = Path(file).expanduser()
        try:
            with safetensors.safe_open(path, framework="numpy") as content:
                about = content.metadata() or {}
                total, count = content.get_tensor("total"), content.get_tensor("count")
            names, theirs = json.loads(about["names"]), about["model"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("its names are no list of texts")
            if total.shape != (len(names), self.embedding_size) or count.shape != (len(names),):
                raise ValueError(f"{len(names)} names, shapes {total.shape} and {count.shape}")
            if not np.isfinite(total).all():
                raise ValueError("it holds NaN or infinite numbers")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: is no gallery of this model, or is damaged ({error})") from error
        if theirs != model:
            raise UserError(
                f"{path}: its speakers were enrolled with other weights, whose embeddings mean nothing to this model; "
                "load that model, or enrol them again"
            )
        known = zip(names, total, count.tolist(), strict=True)
        speakers = {name: Enrolled(row.astype(np.float64), int(number)) for name, row, number in known}
        with self._lock:
            self._table = _Table(speakers, self.embedding_size)


class _Table:
    """A state of a gallery that never changes."""

    def __init__(self, speakers: dict[str, Enrolled], embedding_size: int) -> None:
        self.speakers, self.names = speakers, tuple(speakers)
        totals = [one.total for one in speakers.values()]
        self.directions = unit(np.stack(totals)) if totals else np.empty((0, embedding_size))
