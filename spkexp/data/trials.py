"""Verification trials: read from a list, or made from a split's own utterances."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spkexp.counter import generator
from spkexp.errors import UserError


@dataclass(frozen=True)
class Trials:
    """N trials over a list of utterances."""

    enroll: NDArray[np.int64]  # (N,) index of the utterance
    test: NDArray[np.int64]  # (N,)
    target: NDArray[np.bool_]  # (N,) same speaker

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class TrialNames:
    """A list as it stands in a file: names of utterances, not yet looked up."""

    file: Path
    line: list[int]
    enroll: list[str]
    test: list[str]
    target: list[bool]


def read_trials(file: str | Path) -> TrialNames:
    """Read `label enroll test` (VoxCeleb, label 0 or 1) or `enroll test target|nontarget` (Kaldi), told by content.

    Raises UserError that names file and line.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise UserError(f"{file}: no such trial list")
    names = TrialNames(file, [], [], [], [])
    kaldi = None
    for number, text in enumerate(_lines(file), 1):
        fields = text.split()
        if not fields:
            continue
        if kaldi is None:
            kaldi = len(fields) == 3 and fields[2] in _KALDI
        form = "'enroll test target|nontarget'" if kaldi else "'0|1 enroll test'"
        if len(fields) != 3:
            raise UserError(f"{file}:{number}: expected {form}, got {text.strip()!r}")
        enroll, test, label = fields if kaldi else (fields[1], fields[2], fields[0])
        labels = _KALDI if kaldi else _VOXCELEB
        if label not in labels:
            raise UserError(f"{file}:{number}: expected {form}, got {text.strip()!r}")
        names.line.append(number)
        names.enroll.append(enroll)
        names.test.append(test)
        names.target.append(labels[label])
    if not names.target:
        raise UserError(f"{file}: the trial list is empty")
    if len(set(names.target)) == 1:
        kind = "targets" if names.target[0] else "non-targets"
        raise UserError(f"{file}: all trials are {kind}; error rates need both")
    return names


_KALDI = {"target": True, "nontarget": False}
_VOXCELEB = {"1": True, "0": False}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not text, so no trial list") from error


def look_up(names: TrialNames, index: Mapping[str, int]) -> Trials:
    """Trials over the utterances of `index` (id -> position). Raises UserError with file and line of an unknown id."""
    columns = []
    for column in (names.enroll, names.test):
        found = [index.get(name, -1) for name in column]
        if -1 in found:
            position = found.index(-1)
            unknown = len({name for name in (*names.enroll, *names.test) if name not in index})
            raise UserError(
                f"{names.file}:{names.line[position]}: no utterance is called {column[position]!r} "
                f"({unknown} such names in the list); ids are those of the manifest, or paths below data.root"
            )
        columns.append(np.array(found, dtype=np.int64))
    return Trials(columns[0], columns[1], np.array(names.target))


def make_trials(label: NDArray[np.int64], max_pairs: int, seed: int) -> Trials | None:
    """All pairs of different utterances, or, where they are more than `max_pairs`, a seeded sample, half of it targets.

    label: (N,) speaker index. None where no pair is a target or none is a non-target.
    """
    order = np.argsort(label, kind="stable")
    sizes = np.bincount(label)
    sizes = sizes[sizes > 0].astype(np.int64)
    num_pairs = len(label) * (len(label) - 1) // 2
    num_targets = int((sizes * (sizes - 1) // 2).sum())
    if num_targets == 0 or num_targets == num_pairs:
        return None
    if num_pairs <= max_pairs:
        first, second = np.triu_indices(len(label), k=1)
        return Trials(first.astype(np.int64), second.astype(np.int64), label[first] == label[second])
    rng = generator(seed)
    wanted = min(max_pairs // 2, num_targets)
    targets = _nth_targets(np.sort(rng.choice(num_targets, wanted, replace=False)), order, sizes)
    nontargets = _sample_nontargets(rng, label, min(max_pairs - wanted, num_pairs - num_targets))
    pairs = np.concatenate([targets, nontargets])
    return Trials(pairs[:, 0], pairs[:, 1], np.arange(len(pairs)) < wanted)


def _nth_targets(nth: NDArray[np.int64], order: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 2) utterances of the nth target pairs, counted speaker by speaker without listing them all."""
    pairs_before = np.concatenate([[0], np.cumsum(sizes * (sizes - 1) // 2)])
    speaker = np.searchsorted(pairs_before, nth, side="right") - 1
    k = nth - pairs_before[speaker]
    # Pair k of a speaker is (i, j), i < j, at k = j (j - 1) / 2 + i.
    j = ((1 + np.sqrt(1 + 8 * k.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > k
    j += (j + 1) * j // 2 <= k
    i = k - j * (j - 1) // 2
    offset = np.concatenate([[0], np.cumsum(sizes)])[speaker]
    return np.sort(np.stack([order[offset + i], order[offset + j]], axis=1), axis=1)


def _sample_nontargets(rng: np.random.Generator, label: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count, 2) different pairs of utterances of different speakers."""
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        pairs = rng.integers(len(label), size=(2 * count + 16, 2))
        pairs = np.sort(pairs[label[pairs[:, 0]] != label[pairs[:, 1]]], axis=1)
        found = np.unique(np.concatenate([found, pairs[:, 0] * len(label) + pairs[:, 1]]))
    found = rng.choice(found, count, replace=False)
    return np.stack([found // len(label), found % len(label)], axis=1)
