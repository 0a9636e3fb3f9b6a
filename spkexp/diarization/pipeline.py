"""Speaker diarization of recordings: speech, windows over it, clusters of their embeddings, turns.

One speaker at a time: where two speak at once, the one whom the window is more like has it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spkexp.bar import Bar
from spkexp.data import rttm
from spkexp.data.dataset import Bad
from spkexp.data.rttm import Segment
from spkexp.diarization.clustering import cluster
from spkexp.diarization.settings import Settings
from spkexp.diarization.speech import Stretch, levels, merged, stretches
from spkexp.diarization.turns import turns
from spkexp.errors import AudioError, UserError
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.sliding import embed_sliding, reader_of

log = logging.getLogger(__name__)

# s; of a shorter stretch of speech a window takes in what is around it: less says too little about a voice.
SHORTEST_WINDOW = 0.5

Wave = NDArray[np.float32]


@dataclass
class Summary:
    """What `diarize_files` found."""

    recordings: int = 0  # that were diarized
    segments: int = 0
    speakers: int = 0  # of all recordings together: those of two are told apart
    seconds_of_speech: float = 0.0
    silent: list[str] = field(default_factory=list)  # recordings without speech
    bad: list[Bad] = field(default_factory=list)  # recordings that could not be read


class Parts(NamedTuple):
    """Windows over the speech of a recording; N in all."""

    embeddings: NDArray[np.float32]  # (N, D)
    start: NDArray[np.float64]  # (N,) s
    end: NDArray[np.float64]  # (N,) s
    stretch: NDArray[np.int64]  # (N,) index of the stretch of speech


def diarize(
    model: SpeakerModel,
    source: str | Path | Wave,
    settings: Settings,
    *,
    recording: str | None = None,
    speech: Sequence[Stretch] | None = None,
    batch_seconds: float = 240.0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[Segment]:
    """The turns of a recording, by time; none where it has no speech. Speakers are called speaker1, speaker2, ….

    source: an audio file, of any sample rate, whose channels are averaged; or samples (T,) float32 in [-1, 1] at
    model.sample_rate. recording: what the segments call it; None: the name of the file without its suffix.
    speech: (start, end) in s where somebody speaks, in any order; None: found by level (`spkexp.diarization.speech`).
    What is below a millisecond, as an RTTM counts, is left out with a warning.
    settings: completed, so that there is a threshold where one is needed. The rest as in `embed_sliding`.

    Raises AudioError, which names the file, if it cannot be read, or has no such speech.
    """
    name = recording or ("recording" if isinstance(source, np.ndarray) else Path(source).stem)
    settings = settings.completed(None)
    _, samples, read = reader_of(source, model.sample_rate, True, True)
    seconds = samples / model.sample_rate
    if speech is None:
        level = levels(read, samples, model.sample_rate)
        found = stretches(level, settings.min_speech, settings.min_silence)
    else:
        found = merged(list(speech))
    for start, end in found:
        if not 0 <= start < min(end, seconds):
            raise AudioError(f"{name}: has no speech from {start:g} s to {end:g} s; it is {seconds:.3f} s long")
    found = _of_a_millisecond([(start, min(end, seconds)) for start, end in found], name)
    if not found:
        return []
    parts = _embed(model, source, settings, found, seconds, batch_seconds, precision)
    if not np.isfinite(parts.embeddings).all():
        raise UserError(f"{name}: the model gives embeddings that are not finite")
    length = np.array([end - start for start, end in found])
    weight = (length / np.bincount(parts.stretch))[parts.stretch]
    label = cluster(parts.embeddings, weight, settings)
    segments = []
    for number, stretch in enumerate(found):
        own = slice(*np.searchsorted(parts.stretch, [number, number + 1]))
        for start, end, speaker in turns(stretch, parts.start[own], parts.end[own], label[own], settings.min_turn):
            segments.append(Segment(name, start, end, f"speaker{speaker + 1}"))
    return segments


def diarize_files(
    model: SpeakerModel,
    recordings: Mapping[str, Path],
    settings: Settings,
    output: Path,
    *,
    speech: Mapping[str, Sequence[Stretch]] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    batch_seconds: float = 240.0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Summary:
    """Diarize `recordings` (name -> file) one after the other and write the RTTM `output`, whole, at the end.

    speech: of each recording, as in `diarize`. A recording in which nobody speaks has no line in the RTTM; it is listed
    and logged, and so is, with on_error=skip, one that cannot be read. Raises UserError where `speech` does not know a
    recording, and with on_error=raise AudioError.
    """
    unknown = [name for name in recordings if speech is not None and name not in speech]
    if unknown:
        raise UserError(
            f"{unknown[0]}: nothing says where it has speech ({len(unknown):,} of {len(recordings):,} recordings are "
            f"missing there); a recording is called as its file without the suffix"
        )
    summary, segments = Summary(), list[Segment]()
    with Bar("recording", len(recordings)) as bar:
        for done, (name, file) in enumerate(recordings.items()):
            bar.update(done, f"diarizing {name}")
            own = None if speech is None else speech[name]
            try:
                found = diarize(
                    model,
                    file,
                    settings,
                    recording=name,
                    speech=own,
                    batch_seconds=batch_seconds,
                    precision=precision,
                )
            except AudioError as error:
                if on_error == "raise":
                    raise
                log.warning("skipped %s: %s", name, error)
                summary.bad.append(Bad(name, str(error)))
                continue
            if not found:
                log.warning("%s: no speech in it", file)
                summary.silent.append(name)
            summary.recordings += 1
            summary.segments += len(found)
            summary.speakers += len({segment.speaker for segment in found})
            summary.seconds_of_speech += sum(segment.end - segment.start for segment in found)
            segments += found
    rttm.write(output, segments)
    return summary


def _of_a_millisecond(found: list[Stretch], name: str) -> list[Stretch]:
    """Those of `found` that an RTTM can hold, whose times are in milliseconds; warns of the others."""
    kept = [(start, end) for start, end in found if round(end * 1000) > round(start * 1000)]
    if len(kept) < len(found):
        count, first = len(found) - len(kept), next(stretch for stretch in found if stretch not in kept)
        log.warning(
            "%s: left out %s of %s stretches of speech, shorter than the millisecond that an RTTM is written to; the "
            "first at %.4f s",
            name, f"{count:,}", f"{len(found):,}", first[0],
        )  # fmt: skip
    return kept


def _embed(
    model: SpeakerModel,
    source: str | Path | Wave,
    settings: Settings,
    speech: list[Stretch],
    seconds: float,
    batch_seconds: float,
    precision: Literal["fp32", "bf16"],
) -> Parts:
    """Windows over every stretch of speech in a recording of `seconds`, none of which reaches into another's."""
    embeddings, start, end, stretch = [], [], [], []
    for number, (first, last) in enumerate(speech):
        missing = max(0.0, SHORTEST_WINDOW - (last - first)) / 2
        windows = embed_sliding(
            model,
            source,
            settings.window,
            settings.step,
            segment=(max(0.0, first - missing), min(seconds, last + missing)),
            batch_seconds=batch_seconds,
            precision=precision,
        )
        embeddings.append(windows.embeddings)
        start.append(windows.start)
        end.append(windows.end)
        stretch.append(np.full(len(windows.start), number))
    return Parts(np.concatenate(embeddings), np.concatenate(start), np.concatenate(end), np.concatenate(stretch))
