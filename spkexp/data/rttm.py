"""Who speaks when, as RTTM files say it (NIST, RT-09 evaluation plan, appendix A): a line for every turn.

    SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>

Fields are parted by blanks or tabs, so a name cannot hold one. Here a white-space character in a name, and the percent
sign, is written as in an address (`my%20talk`, `100%25`) and read back as what it was.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from spkexp.errors import UserError
from spkexp.whole_file import write_text

log = logging.getLogger(__name__)

FORM = "SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>"
FIELDS = (9, 10)  # the last one, a time of look-ahead, came in 2009
# What else the format has, and diarization does not need.
OTHER_TYPES = (
    *("SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH"),
    *("FILLER", "EDIT", "IP", "SU", "CB", "A/P", "SPKR-INFO"),
)
COMMENTS = (";;", "#")
LONGEST_LINE = 10_000  # bytes: more is no RTTM, and is not read into memory to find that out
_ESCAPES = {quote(letter, safe=""): letter for letter in map(chr, range(0x3001)) if letter.isspace() or letter == "%"}
_ESCAPED = re.compile("|".join(_ESCAPES))
_TO_ESCAPE = re.compile(r"[\s%]")


class Segment(NamedTuple):
    """A stretch of a recording in which somebody speaks."""

    recording: str
    start: float  # s
    end: float  # s
    speaker: str


def read(file: str | Path) -> list[Segment]:
    """The turns of `file` in its order; none where it has no SPEAKER line.

    Comments and empty lines are left out; lines of other types and turns that last 0 s are too, and counted in the log.
    The channel is not kept. Raises UserError that names the file and the line.
    """
    file = Path(file).expanduser()
    segments: list[Segment] = []
    skipped: Counter[str] = Counter()
    for number, line in _lines(file):
        fields = line.split()
        if not fields or line.lstrip().startswith(COMMENTS):
            continue
        if fields[0] in OTHER_TYPES:
            skipped[fields[0]] += 1
            continue
        segment = _segment(fields, f"{file}:{number}")
        if segment.end > segment.start:
            segments.append(segment)
        else:
            skipped["SPEAKER of 0 s"] += 1
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in skipped.most_common())
        log.warning("%s: skipped %s lines that are no turns: %s", file, f"{skipped.total():,}", kinds)
    return segments


def write(file: str | Path, segments: Iterable[Segment]) -> None:
    """One line each, in their order, times in milliseconds; the file appears whole.

    Turns that follow one another without a pause still do so in the file. Raises ValueError for a turn that starts
    before 0 or is shorter than a millisecond, and for one without names; UserError where the file cannot be written.
    """
    lines = [_line(segment) for segment in segments]
    file = Path(file).expanduser()
    try:
        write_text(file, "".join(lines))
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        line = error.object[: error.start].count("\n")
        raise UserError(f"{file}: would hold a name that is not UTF-8: {lines[line]!r}") from error


def by_recording(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    """The segments of each recording, in the order of first appearance."""
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.recording, []).append(segment)
    return found


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text and their numbers."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    text = "\0"
                if "\0" in text or len(line) == LONGEST_LINE:
                    raise UserError(f"{file}:{number}: is not UTF-8 text, so no RTTM; expected lines like {FORM!r}")
                yield number, text
    except FileNotFoundError:
        raise UserError(f"{file}: no such RTTM file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


def _segment(fields: list[str], place: str) -> Segment:
    if fields[0] != "SPEAKER":
        raise UserError(f"{place}: {fields[0]!r} is no line of an RTTM; expected {FORM!r}")
    if len(fields) not in FIELDS:
        raise UserError(
            f"{place}: {len(fields)} fields, expected 9 or 10 as in {FORM!r}; write a blank in a name as %20"
        )
    start, duration = (
        _seconds(text, what, place) for what, text in zip(("start", "duration"), fields[3:5], strict=True)
    )
    return Segment(_name(fields[1]), start, start + duration, _name(fields[7]))


def _seconds(text: str, what: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{place}: {what} {text!r}: expected seconds, at least 0 (is a name with a blank before it?)")
    return value


def _name(text: str) -> str:
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0]], text)


def _line(segment: Segment) -> str:
    recording, speaker = (_TO_ESCAPE.sub(lambda found: quote(found[0]), name) for name in (segment[0], segment[3]))
    if not recording or not speaker:
        raise ValueError(f"{segment}: a turn needs the names of its recording and its speaker")
    if not 0 <= segment.start < segment.end < math.inf:
        raise ValueError(f"{segment}: expected 0 <= start < end")
    # Both ends are rounded, not the duration, which would open gaps of a millisecond and close others.
    start, end = round(segment.start * 1000), round(segment.end * 1000)
    if start == end:
        raise ValueError(f"{segment}: shorter than the millisecond that an RTTM is written to")
    return f"SPEAKER {recording} 1 {start / 1000:.3f} {(end - start) / 1000:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
