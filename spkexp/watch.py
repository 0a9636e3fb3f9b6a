"""Validation of a run's checkpoints by another process, while the run goes on training.

RUN/watch/NAME/ has metrics.jsonl (a line a validation: epoch, step, and what was measured) and best/, the checkpoint of
the best of them, complete, with validation.json beside its weights. A watch that is started again goes on from there.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spkexp import checkpoint, distributed, durable
from spkexp.errors import UserError
from spkexp.lock import hold
from spkexp.report.validations import validations_table
from spkexp.resume import is_finished
from spkexp.validation import criterion
from spkexp.whole_file import write_json, write_text

log = logging.getLogger(__name__)

Measure = Callable[[Path], dict[str, Any]]
METRICS, VALIDATION = "metrics.jsonl", "validation.json"
SILENT_SECONDS = 60.0  # without a sign of the run before it is asked whether anybody trains it
_TRIES, _BETWEEN_TRIES = 5, 0.2  # to take a checkpoint that is being replaced meanwhile; s


def watch(run: Path, name: str, every: int, measure: Measure, poll_seconds: float = 5.0) -> None:
    """Validate the checkpoint that `run` has when it reaches epoch `every`, 2 `every`, … and the one that it ends with;
    prints a table of all at the end.

    measure: the metrics of a checkpoint folder, of which `validation.criterion` tells the best; all processes call it.
    Only what is in checkpoints/last counts, so that epochs pass by unseen where scoring takes longer than training.
    Returns once the run is at its end and its last checkpoint is measured; a run that was stopped is waited for.
    Raises UserError, also where another process watches the run under this `name`.
    """
    task = _Watch(run, run / "watch" / name, every)
    with ExitStack() as held:

        def begin() -> None:
            if every < 1:
                raise UserError(f"every: expected a number of epochs, at least 1, got {every}")
            if not (run / checkpoint.CONFIG).is_file() or (run / checkpoint.MODEL).is_file():
                raise UserError(f"{run}: is no run folder; give the one that the training writes to")
            busy = f"{task.folder} is being written by {{holder}}, which watches the run already"
            held.enter_context(hold(task.folder / ".lock", busy, "watching needs the right to write in the run folder"))
            task.load()

        distributed.decided_by_main(begin)
        log.info("%s: its checkpoint of every %s is validated on %s as it comes", run, _epochs(every), name)
        try:
            while True:
                candidate, over = distributed.decided_by_main(task.next)
                if over:
                    break
                if candidate is None:
                    time.sleep(poll_seconds)
                    continue
                begun = time.monotonic()
                metrics = measure(candidate)
                distributed.decided_by_main(partial(task.keep, metrics, time.monotonic() - begun))
        finally:
            if distributed.is_main():
                shutil.rmtree(task.candidate, ignore_errors=True)
            if distributed.is_main() and task.entries:
                print(validations_table(task.entries, task.best["step"] if task.best else None), flush=True)


def _epochs(every: int) -> str:
    return "epoch" if every == 1 else f"{every} epochs"


class _Position(NamedTuple):
    step: int
    epoch: float


class _Watch:
    """What has been validated so far; the main process's is the only one that is used."""

    def __init__(self, run: Path, folder: Path, every: int) -> None:
        self.run, self.folder, self.every = run, folder, every
        self.entries: list[dict[str, Any]] = []  # lines of metrics.jsonl
        self.best: dict[str, Any] | None = None  # the line of the checkpoint in best/
        self._measured: _Position | None = None  # of the candidate
        self._known: tuple[tuple[int, int] | None, _Position | None] = (None, None)  # what checkpoints/last was
        self._sign: tuple[object, ...] = ()  # of life
        self._sign_at = time.monotonic()
        self._said_dead = False

    @property
    def candidate(self) -> Path:
        return self.folder / "candidate"

    def load(self) -> None:
        """What an earlier watch of this name left."""
        best = self.folder / "best"
        if durable.beside(best, "new").exists():  # a kill fell between the renames
            durable.promote(best, None)
        with suppress(FileNotFoundError):
            lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
            self.entries = [self._parsed(number, line) for number, line in enumerate(lines, 1)]
        with suppress(FileNotFoundError):
            self.best = json.loads((best / VALIDATION).read_text(encoding="utf-8"))
        if self.best is not None and self.best["step"] not in {entry["step"] for entry in self.entries}:
            self._note(self.best)  # a kill fell between the two
        if self.entries:
            log.info("%s: going on after epoch %g", self.folder, self.entries[-1]["epoch"])

    def _parsed(self, number: int, line: str) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            return {**entry, "epoch": float(entry["epoch"]), "step": int(entry["step"])}
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self.folder / METRICS}:{number}"
            raise UserError(f"{where}: says nothing of a validation; remove that line") from error

    def next(self) -> tuple[Path | None, bool]:
        """(the copy of a checkpoint that is to be measured now, if any; whether there will be none any more)."""
        finished = is_finished(self.run)  # first: what lies in checkpoints/last after that is the last
        last = checkpoint.repaired(self.run / "checkpoints" / checkpoint.LAST)
        if last is None:
            if finished:
                raise UserError(f"{self.run}: is at its end and holds no checkpoint any more that could be measured")
            self._look_for_life(None)
            return None, False
        position = self._position_of(last)
        if position is None:
            return None, False
        if self.entries and position.step <= self.entries[-1]["step"]:
            self._look_for_life(position)
            return None, finished
        if not finished and self._reached(position.epoch) <= self._last_reached():
            self._look_for_life(position)
            return None, False
        if not self._take(last):
            return None, False
        taken = _read_position(self.candidate)
        self._report_missed(taken)
        self._measured = taken
        return self.candidate, False

    def keep(self, metrics: dict[str, Any], seconds: float) -> None:
        """Note what was measured of the candidate, which becomes the best if it is."""
        assert self._measured is not None
        step, epoch = self._measured
        entry = {"epoch": round(epoch, 3), "step": step, **metrics}
        words, value = criterion(metrics)
        best = self.best is None or value < criterion(self.best)[1]
        if best:  # before the line, so that a kill in between loses neither
            write_json(self.candidate / VALIDATION, entry)
            durable.flush(self.candidate / VALIDATION)
            durable.replace(self.candidate, self.folder / "best", None)
            self.best = entry
        else:
            shutil.rmtree(self.candidate)
        self._note(entry)
        log.info("epoch %g  %s%s  scored in %.0f s", entry["epoch"], words, " (best)" * best, seconds)

    def _note(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        lines = (json.dumps(one, ensure_ascii=False) for one in self.entries)
        write_text(self.folder / METRICS, "".join(f"{line}\n" for line in lines))

    def _reached(self, epoch: float) -> int:
        """The last epoch due; an epoch of 7 steps ends at 1.0000000000000002 of them for all that floats know."""
        return int(epoch / self.every + 1e-6) * self.every

    def _last_reached(self) -> int:
        return max((self._reached(entry["epoch"]) for entry in self.entries), default=0)

    def _report_missed(self, taken: _Position) -> None:
        missed = list(range(self._last_reached() + self.every, self._reached(taken.epoch), self.every))
        if missed:
            shown = ", ".join(map(str, missed[:8])) + (f" and {len(missed) - 8} more" if len(missed) > 8 else "")
            log.warning("not measured: the checkpoints of epoch %s were replaced before they could be", shown)

    def _position_of(self, last: Path) -> _Position | None:
        """None where it cannot be read, which a warning says once unless the run replaces the checkpoint just now."""
        identity = durable.identity(last)
        if identity is None or identity == self._known[0]:
            return self._known[1] if identity else None
        try:
            position = _read_position(last)
        except UserError as error:
            time.sleep(_BETWEEN_TRIES)
            if durable.identity(last) == identity:
                log.warning("%s; waiting for the next checkpoint", error)
                self._known = (identity, None)
            return None
        self._known = (identity, position)
        return position

    def _take(self, last: Path) -> bool:
        """Put the checkpoint `last` aside as `candidate`, so that the run may replace it; whether that succeeded."""
        wrong: str | None = None
        identity = durable.identity(last)
        for _ in range(_TRIES):
            shutil.rmtree(self.candidate, ignore_errors=True)
            self.candidate.mkdir(parents=True)
            try:
                for file in checkpoint.FILES:
                    _link(last / file, self.candidate / file)
                # A copy: what is sealed again must not write into the run's own.
                shutil.copyfile(last / durable.SUMS, self.candidate / durable.SUMS)
                wrong = checkpoint.verify(self.candidate)
            except FileNotFoundError as error:
                wrong = f"{Path(error.filename).name} is missing"
            if wrong is None:
                return True
            time.sleep(_BETWEEN_TRIES)
        shutil.rmtree(self.candidate, ignore_errors=True)
        if durable.identity(last) == identity:
            log.warning("%s: %s; waiting for the next checkpoint", last, wrong)
            self._known = (identity, None)
        return False

    def _look_for_life(self, position: _Position | None) -> None:
        """Say once where nobody trains the run any more, and it has not come to its end."""
        with suppress(OSError):
            sign = (position, (self.run / METRICS).stat().st_mtime_ns)
            if sign != self._sign:
                self._sign, self._sign_at, self._said_dead = sign, time.monotonic(), False
        if not self._said_dead and time.monotonic() - self._sign_at > SILENT_SECONDS and not _is_held(self.run):
            log.warning(
                "%s: nobody trains it now, and it is not at its end; waiting for it to go on, with resume=%s "
                "(Ctrl-C ends the watch)",
                self.run,
                self.run,
            )
            self._said_dead = True


def _read_position(folder: Path) -> _Position:
    """Raises UserError. Only the small part of the file that says it is read."""
    file = folder / checkpoint.STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        step = int(state["position"]["step"])
        return _Position(step, step / int(state["steps_per_epoch"]))
    except Exception as error:
        raise UserError(f"{file}: does not say where training is ({type(error).__name__})") from error


def _link(file: Path, target: Path) -> None:
    """The same content under another name, at no cost where the file system can: a run never writes into a file."""
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, target)


def _is_held(run: Path) -> bool:
    """Whether a training holds the run; where that cannot be found out, it is taken to."""
    try:
        handle = os.open(run / ".lock", os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
