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
from spkexp.embedding.outputs import check_audio, check_output
from spkexp.embedding.run import Request, alone
from spkexp.embedding.segments import rows_of
from spkexp.embedding.words import counted, lasting
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
    check_output(output, request.input, request.segments, request.model)
    if distributed.world_size() > 1:
        raise UserError("diarize=true: is the work of one process; start it without torchrun")
    model, cfg, folder = build.trained_model(request.model, request.trust)
    model.to(device)
    threshold, why = threshold_of(folder, cfg)
    completed = settings.completed(None if threshold is None else threshold.value)
    if completed != settings:
        log.info("threshold %.3f, %s", completed.threshold, why)
    table = listed(request.input, request.root)
    check_audio(output, table["path"])
    if {"start", "offset"} & set(table.columns):
        raise UserError(f"input={request.input}: diarize=true takes whole files, and these rows are parts of files")
    speech = None if request.segments is None else _speech(request.segments, table)
    partial = durable.beside(output, "partial")
    with alone(output, partial):
        try:
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
    print(
        f"{output}: {counted(found.segments, 'turn')} of {counted(found.speakers, 'speaker')} in "
        f"{counted(found.recordings, 'recording')}, {lasting(found.seconds_of_speech)} of speech"
    )
    for kind, count in (("without speech", len(found.silent)), ("skipped", len(found.bad))):
        if count:
            log.warning("%s: %s of %s", kind, f"{count:,}", counted(len(table), "recording"))


def _speech(file: str, table: pl.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Where each recording of `table` has speech, as an RTTM says it."""
    turns = rttm.by_recording(rttm.read(file))
    if not turns:
        raise UserError(f"segments={file}: holds no segments")
    found = rows_of(pl.Series(list(turns), dtype=pl.String), table, file)
    speech: dict[str, list[tuple[float, float]]] = {}
    for name, row in found.select("name", "row").iter_rows():
        speech.setdefault(table["id"][row], []).extend((turn.start, turn.end) for turn in turns[name])
    return speech
