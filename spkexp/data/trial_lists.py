"""Trial lists as corpora and toolkits write them; which form a file has is told by all of its lines."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spkexp.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialNames:
    """A list of N trials as it stands in a file: M different names, not yet looked up."""

    file: Path
    names: pl.Series  # (M,) text
    enroll: NDArray[np.int64]  # (N,) index into names
    test: NDArray[np.int64]  # (N,) index into names
    target: NDArray[np.bool_] | None  # (N,); None where the list is blind
    line: NDArray[np.int64]  # (N,) number of the trial's line

    def enrolled(self) -> pl.Series:
        """The different names of the enrolment side."""
        return self._among(self.enroll)

    def tested(self) -> pl.Series:
        """The different names of the test side."""
        return self._among(self.test)

    def _among(self, numbers: NDArray[np.int64]) -> pl.Series:
        return self.names.filter(pl.Series(np.bincount(numbers, minlength=len(self.names)) > 0))

    def first_of(self, some: pl.Series) -> tuple[str, int]:
        """The one of `some` of the names that stands first, and the number of its line."""
        wanted = self.names.is_in(some.implode()).to_numpy()
        trial = int((wanted[self.enroll] | wanted[self.test]).argmax())
        name = self.enroll[trial] if wanted[self.enroll[trial]] else self.test[trial]
        return self.names[int(name)], int(self.line[trial])


@dataclass(frozen=True)
class _Form:
    text: str
    enroll: str  # the fields are called first, second and third
    test: str
    label: str | None
    labels: Mapping[str, bool]

    def matches(self, fields: pl.DataFrame) -> pl.Series:
        """(lines,) whether each has this form."""
        if self.label is None:
            return fields["second"].is_not_null() & fields["third"].is_null()
        complete = fields["second"].is_not_null() & fields["third"].is_not_null()
        return complete & fields[self.label].is_in(list(self.labels))


_FORMS = (
    _Form("0|1 enroll test", "second", "third", "first", {"1": True, "0": False}),  # VoxCeleb, VoxSRC
    _Form("enroll test target|nontarget", "first", "second", "third", {"target": True, "nontarget": False}),  # Kaldi
    _Form("enroll test 0|1", "first", "second", "third", {"1": True, "0": False}),  # CN-Celeb
    _Form("enroll test tgt|imp", "first", "second", "third", {"tgt": True, "imp": False}),  # SITW
    _Form("enroll test", "first", "second", None, {}),  # blind: VoxSRC's test sets
)

# Lists that are known by their length.
PUBLISHED = {
    37_611: "VoxCeleb1-O (cleaned)",
    37_720: "VoxCeleb1-O (as first published, not cleaned)",
    579_818: "VoxCeleb1-E (cleaned)",
    581_480: "VoxCeleb1-E (as first published, not cleaned)",
    550_894: "VoxCeleb1-H (cleaned)",
    552_536: "VoxCeleb1-H (as first published, not cleaned)",
    3_484_292: "CN-Celeb's evaluation",  # 196 enrolled speakers × 17,777 test utterances
}


def read_lines(file: Path, what: str) -> pl.DataFrame:
    """Columns `line`, its number, and `text`, its words with one blank between them, of lines that are not empty.

    what: such as 'trial list', for errors. Raises UserError for a file that is missing, is no text or has a comment.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such {what}")
    try:
        lines = pl.read_lines(file, name="text", row_index_name="line", row_index_offset=1, glob=False)
    except pl.exceptions.ComputeError as error:
        raise UserError(f"{file}: is not text, so no {what}") from error
    # What Windows puts before the first line is no part of a name.
    lines = lines.with_columns(pl.col("text").str.strip_prefix("\ufeff").str.strip_chars(" \t\r"))
    lines = lines.filter(pl.col("text") != "")
    if lines["text"].str.contains_any(["\t", "  "]).any():
        lines = lines.with_columns(pl.col("text").str.replace_all(r"[ \t]+", " "))
    comments = lines.filter(pl.col("text").str.starts_with("#"))
    if len(comments):
        raise UserError(f"{file}:{comments['line'][0]}: a {what} has no comments; remove {comments['text'][0]!r}")
    if len(lines) == 0:
        raise UserError(f"{file}: the {what} is empty")
    return lines


def read_trials(file: str | Path) -> TrialNames:
    """Read a list in any of the forms above, told by content; what is strange about it is logged.

    Raises UserError that names file and line.
    """
    file = Path(file).expanduser()
    lines = read_lines(file, "trial list")
    words = lines["text"].str.split(" ")
    fields = pl.DataFrame(
        [words.list.get(n, null_on_oob=True).alias(name) for n, name in enumerate(("first", "second", "third"))]
    )
    form = _form_of(file, lines, fields.with_columns(second=pl.when(words.list.len() <= 3).then("second")))
    line = lines["line"].cast(pl.Int64).to_numpy()
    del lines, words  # each as long as the file
    names, numbers = _numbered(pl.concat([fields[form.enroll], fields[form.test]]))
    target = None
    if form.label is not None:
        target = fields[form.label].is_in([text for text, same in form.labels.items() if same]).to_numpy()
    enroll, test = numbers[: len(fields)], numbers[len(fields) :]
    found = TrialNames(file, names, enroll, test, target, line)
    if found.target is not None and (found.target.all() or not found.target.any()):
        kind = "targets" if found.target[0] else "non-targets"
        raise UserError(f"{file}: all trials are {kind}; error rates need both")
    _log(found)
    return found


def _numbered(texts: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
    """The different ones of `texts`, and for each text which of them it is."""
    # With categories of its own, a series is hashed once: the quickest way to numbers for a million texts.
    codes = texts.cast(pl.Categorical(pl.Categories.random())).to_physical().cast(pl.Int64).to_numpy()
    last = np.zeros(codes.max() + 1, dtype=np.int64)
    last[codes] = np.arange(len(codes))
    return texts.gather(last).alias("name"), codes


def _form_of(file: Path, lines: pl.DataFrame, fields: pl.DataFrame) -> _Form:
    """The form that all lines have. Raises UserError where there is none, or more than one."""
    matches = [form.matches(fields) for form in _FORMS]
    complete = [form for form, match in zip(_FORMS, matches, strict=True) if match.all()]
    if len(complete) > 1:
        raise UserError(
            f"{file}: every line reads as '{complete[0].text}' and as '{complete[1].text}'; "
            f"write the labels as target|nontarget in the third column"
        )
    if complete:
        return complete[0]
    # The form of most lines, or else that of the first, is what was meant.
    best = max(range(len(_FORMS)), key=lambda n: (matches[n].sum(), matches[n][0]))
    wrong = int((~matches[best]).arg_max() or 0)
    line, text = lines.row(wrong)
    if not matches[best].any():
        raise UserError(f"{file}:{line}: expected {', '.join(repr(form.text) for form in _FORMS)}, got {text!r}")
    raise UserError(f"{file}:{line}: expected {_FORMS[best].text!r}, got {text!r}")


def _log(found: TrialNames) -> None:
    """Say which list it is, and what in it is listed twice or compares a name with itself."""
    count = len(found.line)
    if count in PUBLISHED:
        log.info("%s: %s trials, as many as %s", found.file, f"{count:,}", PUBLISHED[count])
    if found.target is None:
        log.info("%s: the list has no labels: there will be scores, but no error rates", found.file)
    pairs = found.enroll * len(found.names) + found.test
    order = np.sort(pairs)
    again = order[1:][order[1:] == order[:-1]]
    if len(again):
        log.warning("%s: %d of %d trials repeat an earlier one; they are kept", found.file, len(again), count)
    if len(again) and found.target is not None:
        suspect = np.isin(pairs, again)
        both = np.intersect1d(pairs[suspect & found.target], pairs[suspect & ~found.target])
        if len(both):
            enroll, test = (found.names[int(n)] for n in divmod(both[0], len(found.names)))
            log.warning(
                "%s: %d pairs are listed as target and as non-target, such as %s %s",
                found.file, len(both), enroll, test,
            )  # fmt: skip
    same = int((found.enroll == found.test).sum())
    if same:
        log.warning("%s: %d of %d trials compare an utterance with itself; they are kept", found.file, same, count)
