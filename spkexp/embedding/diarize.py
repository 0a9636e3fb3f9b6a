"""Who speaks when in each of the inputs: from `python -m spkexp.embed diarize=true` to `spkexp.diarization`."""

import logging
from pathlib import Path
from shutil import rmtree

import polars as pl
import torch

from spkexp import build, distributed, durable
from spkexp.data import rttm
from spkexp.diarization.pipeline import diarize_files
from spkexp.diarization.settings import Settings
from spkexp.embedding.inputs import listed
from spkexp.embedding.run import Request, alone
from spkexp.embedding.segments import rows_of
from spkexp.errors import UserError
from spkexp.inference.threshold import threshold_of

log = logging.getLogger(__name__)


def diarize(request: Request, settings: Settings, batch_seconds: float, device: torch.device) -> None:
    """Write the RTTM `request.output`; prints what it holds. Raises UserError.

    request.segments: an RTTM of where there is speech, whoever speaks; None: that is found.
    """
    output = request.output
    if output.suffix.lower() != ".rttm":
        raise UserError(f"output={output}: diarize=true writes an RTTM; choose a name that ends in .rttm")
    if output.is_dir():
        raise UserError(f"output={output}: is a folder; name a file in it")
    if distributed.world_size() > 1:
        raise UserError("diarize=true: is the work of one process; start it without torchrun")
    model, cfg, folder = build.trained_model(request.model, request.trust)
    model.to(device)
    threshold, why = threshold_of(folder, cfg)
    completed = settings.completed(None if threshold is None else threshold.value)
    if completed != settings:
        log.info("threshold %.3f, %s", completed.threshold, why)
    partial = durable.beside(output, "partial")
    with alone(output, partial):
        try:
            table = listed(request.input, request.root)
            if {"start", "offset"} & set(table.columns):
                raise UserError(
                    f"input={request.input}: diarize=true takes whole files, and these rows are parts of files"
                )
            speech = None if request.segments is None else _speech(request.segments, table)
            found = diarize_files(
                model,
                {name: Path(path) for name, path in table.select("id", "path").iter_rows()},
                completed,
                output,
                speech=speech,
                on_error=request.on_error,
                batch_seconds=batch_seconds,
                precision=request.precision,
            )
        finally:
            rmtree(partial, ignore_errors=True)
    hours = found.seconds_of_speech / 3600
    print(
        f"{output}: {found.segments:,} turns of {found.speakers:,} speakers in {found.recordings:,} recordings, "
        f"{hours:.2f} h of speech"
    )
    for kind, count in (("without speech", len(found.silent)), ("skipped", len(found.bad))):
        if count:
            log.warning("%s: %s of %s recordings", kind, f"{count:,}", f"{len(table):,}")


def _speech(file: str, table: pl.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Where each recording of `table` has speech, as an RTTM says it."""
    turns = rttm.by_recording(rttm.read(file))
    found = rows_of(pl.Series(list(turns), dtype=pl.String), table, file)
    speech: dict[str, list[tuple[float, float]]] = {}
    for name, row in found.select("name", "row").iter_rows():
        if row is None:
            log.warning("segments=%s: speaks of %s, which is no recording of the input", file, name)
        else:
            speech.setdefault(table["id"][row], []).extend((turn.start, turn.end) for turn in turns[name])
    return speech
