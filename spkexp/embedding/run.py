"""From inputs to a file of embeddings, resumable: list, measure, embed in batches, keep, merge."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from spkexp import build, checkpoint, distributed, durable
from spkexp.bar import Bar
from spkexp.cores import cores
from spkexp.data.dataset import Bad, Reading
from spkexp.data.part import OF_A_MANIFEST
from spkexp.embedding.inputs import Items, digest, listed, measured, state_of, whole
from spkexp.embedding.outputs import check_audio, check_output
from spkexp.embedding.partial import REMEDY, Merged, Partial, settle
from spkexp.embedding.segments import segments
from spkexp.embedding.words import counted, lasting
from spkexp.errors import UserError
from spkexp.interrupt import StopRequest
from spkexp.lock import hold
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.embedding_file import check_format, write_embeddings
from spkexp.scoring.extract import Interrupted, batches_of, run_batches

log = logging.getLogger(__name__)

OF_WINDOWS = ("recording", "start", "end")  # columns that this adds


@dataclass(frozen=True)
class Settings:
    """How audio becomes embeddings; another value of any gives others."""

    window: float | None  # s; None: whole
    step: float | None  # s, from one window to the next
    batch_seconds: float
    resample: bool
    mix_channels: bool


@dataclass(frozen=True)
class Request:
    """What to embed, and where to."""

    model: str
    input: str
    output: Path
    root: str | None
    segments: str | None  # an RTTM
    on_error: Literal["raise", "skip"]
    precision: Literal["fp32", "bf16"]
    num_workers: int | None
    trust: tuple[str, ...]


def embed(request: Request, settings: Settings, device: torch.device) -> None:
    """Write `request.output`; prints what it holds. By all processes together. Raises UserError, and Stopped."""
    output = request.output
    check_format(output)
    if output.is_dir():
        raise UserError(f"output={output}: is a folder; name a file in it, such as {output / 'embeddings.h5'}")
    check_output(output, request.input, request.segments, request.model)
    model, cfg, folder = build.trained_model(request.model, request.trust)
    model.to(device)
    partial = durable.beside(output, "partial")
    table = distributed.decided_by_main(lambda: _listed(request))
    with ExitStack() as held:
        distributed.decided_by_main(lambda: held.enter_context(alone(output, partial)))
        # Both are a matter of a call for each file, by which the others would only be slowed down.
        state = distributed.decided_by_main(lambda: state_of(table))
        table, unusable = distributed.main_first(lambda: measured(table, partial / "headers", state, REMEDY))
        if request.input == "-":
            unusable = [entry | {"reason": entry["reason"].removesuffix(OF_A_MANIFEST)} for entry in unusable]
        items = _items(table, unusable, request)
        _check_names(items, output, settings.window is not None)
        identity = {
            "spkexp": version("spkexp"),
            "model": durable.digest(folder / checkpoint.MODEL),
            "model config": hashlib.sha256(OmegaConf.to_yaml(cfg.model).encode()).hexdigest()[:16],
            "inputs": digest(pl.DataFrame({"state": [state]}), items.rows, items.columns),
            "device": device.type,
            "precision": request.precision,
            **asdict(settings),
        }
        distributed.decided_by_main(lambda: settle(partial, identity))
        bad = [Bad(entry["id"], entry["reason"]) for entry in unusable]
        _say(items, model, settings)
        _embed(model, items, request, settings, partial)
        if distributed.is_main():
            merged = Partial(partial, model.embedding_size, 0).merged(items.rows["id"])
            if len(merged.item) == 0:
                rmtree(partial / "parts")  # nothing but what could not be read
            _write(request, items, merged, bad, settings.window is not None, model.sample_rate)
            rmtree(partial, ignore_errors=True)


def _listed(request: Request) -> pl.DataFrame:
    table = listed(request.input, request.root)
    check_audio(request.output, table["path"])
    return table


@contextmanager
def alone(output: Path, partial: Path) -> Iterator[None]:
    """Be the only process that writes `output`. What is left in the folder `partial` is removed where a mistake of the
    user's ends it before a batch is done, or nothing is in it."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={output}: cannot be written: {error.strerror} ({partial}); choose another place for the output"
        ) from error
    busy = f"{output}: {{holder}} is writing it; wait for that, or choose another output"
    lock = partial / "lock"
    with hold(lock, busy, "choose another place for the output"):
        if not lock.exists():  # opened just before another process was done and removed it
            raise UserError(f"{output}: another process has just written it; start again if that is to be replaced")
        kept = ["parts", "headers"]  # an interrupted call goes on with both
        try:
            yield
        except UserError:
            kept = ["parts"]
            raise
        finally:
            if not any(path.is_file() for name in kept for path in (partial / name).rglob("*")):
                rmtree(partial, ignore_errors=True)


def _items(table: pl.DataFrame, unusable: list[dict[str, str]], request: Request) -> Items:
    """What is to be embedded; `unusable` gets the segments that are not to be had."""
    if unusable and request.on_error == "raise":
        raise UserError(
            f"{unusable[0]['reason']} ({counted(len(unusable), 'such file')} of {len(table) + len(unusable):,}; "
            "on_error=skip leaves them out)"
        )
    if len(table) == 0:
        raise UserError(f"input={request.input}: none of its {len(unusable):,} files can be read")
    if request.segments is None:
        return whole(table)
    items, outside = segments(table, request.segments, request.on_error)
    unusable += outside
    if len(items.rows) == 0:
        raise UserError(f"segments={request.segments}: none of its segments can be used; {outside[0]['reason']}")
    return items


def _check_names(items: Items, output: Path, windows: bool) -> None:
    """Raise UserError for names and columns that could not be written: now, not after hours of work."""
    ids, columns = items.rows["id"], items.columns.columns
    added = OF_WINDOWS if windows and "recording" not in columns else ()
    if taken := [name for name in columns if name in ("id", "embedding", *added)]:
        raise UserError(f"the column {taken[0]} of the manifest has the name of one that embed writes; rename it")
    if output.suffix.lower() == ".ark" and (blank := ids.filter(ids.str.contains(r"\s"))).len():
        raise UserError(
            f"{output}: {blank[0]!r}: a name in an archive of Kaldi has no blanks; write .h5, .npz or .parquet"
        )
    of_a_window = ids.str.contains(r"/\d{6,}$") & ids.str.replace(r"/\d{6,}$", "").is_in(ids.implode())
    if windows and of_a_window.any():
        name = ids.filter(of_a_window)[0]
        raise UserError(f"{name}: would be the name of a recording and of a window of another; rename the recording")


def _say(items: Items, model: SpeakerModel, settings: Settings) -> None:
    if not distributed.is_main():
        return
    what = "whole" if settings.window is None else f"in windows of {settings.window:g} s, {settings.step:g} s apart"
    log.info("%s, %s, %s", counted(len(items.rows), items.kind), lasting(float(items.rows["duration"].sum())), what)
    done = [f"other rates than {model.sample_rate} Hz are resampled"] if settings.resample else []
    done += ["several channels averaged"] if settings.mix_channels else []
    if done:
        log.info("%s", ", ".join(done))


def _embed(model: SpeakerModel, items: Items, request: Request, settings: Settings, partial: Path) -> None:
    """Have all batches in parts of `partial`. Raises UserError, and Stopped with what there is kept."""
    utterances = items.utterances()
    reading = Reading(model.sample_rate, settings.resample, settings.mix_channels)
    source, batches = batches_of(utterances, reading, settings.batch_seconds, settings.window, settings.step)
    parts = Partial(partial, model.embedding_size, distributed.rank())
    done = distributed.decided_by_main(parts.done)
    left = [number for number in range(len(batches)) if number not in done]
    if done and distributed.is_main():
        log.info("going on: %s of %s batches are done", f"{len(done):,}", f"{len(batches):,}")
    mistakes: list[UserError] = []

    def take(number: int, batch: Any, rows: NDArray[np.float32]) -> None:
        item, start, stop = batch.item.numpy(), 0, 0
        if settings.window is not None:
            start = batch.start.numpy()
            stop = start + batch.lengths.numpy()
        bad = list(batch.bad)
        for place in dict.fromkeys(item[~np.isfinite(rows).all(axis=1)].tolist()):
            bad.append(Bad(utterances.id[place], f"{utterances.path[place]}: its embedding is not finite"))
        try:
            _forgive(bad, request.on_error)
            places = np.stack(np.broadcast_arrays(item, start, stop), axis=1).astype(np.int64)
            parts.add(left[number], places, rows, bad)
        except UserError as error:  # all processes end together
            mistakes.append(error)

    before = len(done) // distributed.world_size()
    bar = Bar("batch", before - (-len(left) // distributed.world_size()), before, shown=distributed.is_main())
    with StopRequest() as stop:
        with suppress(Interrupted):
            run_batches(
                model,
                source,
                [batches[number] for number in left],
                _workers(request.num_workers, next(model.parameters()).device),
                take,
                lambda: stop() or bool(mistakes),
                precision=request.precision,
                bar=bar,
                text=f"embedding {request.input}",
                first=before,
            )
        parts.flush()
        for mistake in [mistake for some in distributed.gather(mistakes) for mistake in some]:
            raise mistake
        if any(distributed.gather(stop())):
            log.warning("%s: keeps what is embedded so far; the same command goes on", partial)
            raise stop.stopped()
    if distributed.is_main() and (lost := len(batches) - len(parts.done())):
        raise UserError(
            f"{partial}: {lost} of {len(batches)} batches are not there; the output must be on a disk that all "
            "processes share, and the same command goes on"
        )


def _forgive(bad: Sequence[Bad], on_error: str) -> None:
    """Raise UserError unless what could not be read may be left out."""
    if bad and on_error == "raise":
        reason = bad[0].reason.replace("data.resample", "resample").replace("data.mix_channels", "mix_channels")
        raise UserError(f"{reason} (on_error=skip leaves such files out)")


def _workers(wanted: int | None, device: torch.device) -> int:
    """Processes that read; None: none where the model itself needs the cores."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else max(1, min(16, cores() // distributed.on_this_node()))


def _write(
    request: Request, items: Items, merged: Merged, unusable: list[Bad], windows: bool, sample_rate: int
) -> None:
    """The output, and a line about it."""
    _forgive(merged.bad, request.on_error)  # those of a call before this one, which was told to skip them
    skipped = unusable + merged.bad
    for entry in skipped:
        log.warning("skipped %s: %s", entry.id, entry.reason)
    total = len(items.rows) + len(unusable)
    if len(merged.item) == 0:
        raise UserError(f"input={request.input}: none of {total:,} can be embedded; {skipped[0].reason}")
    ids, columns = items.rows["id"].gather(merged.item), items.columns[merged.item]
    if windows:
        number = np.arange(len(ids)) - np.searchsorted(merged.item, merged.item)
        times = {"start": merged.start / sample_rate, "end": merged.stop / sample_rate}
        recording = columns["recording"] if "recording" in columns.columns else ids.alias("recording")
        rest = columns.drop("recording", "start", "end", "duration", strict=False)
        columns = pl.DataFrame([recording]).with_columns(**{k: pl.Series(v) for k, v in times.items()}).hstack(rest)
        names = pl.DataFrame({"id": ids, "number": pl.Series(number).cast(pl.String).str.zfill(6)})
        ids = names.select(pl.concat_str("id", pl.lit("/"), "number")).to_series()
    # A Series is a sequence in all but its type.
    write_embeddings(request.output, ids, merged.embeddings, columns.to_dict())  # type: ignore[arg-type]
    of = f" of {counted(len(np.unique(merged.item)), items.kind)}" if windows else ""
    print(f"{request.output}: {counted(len(ids), 'embedding')}{of}, {merged.embeddings.shape[1]} numbers each")
    if skipped:
        log.warning("skipped %s of %s", f"{len(skipped):,}", f"{total:,}")
