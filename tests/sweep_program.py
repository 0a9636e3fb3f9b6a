"""A command of jobs that do at once what `names.model` says: what a sweep makes of it is what is tested."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from omegaconf import DictConfig

from spkexp import sweep
from spkexp.cli import hydra_command, set_up_logging
from spkexp.errors import UserError
from spkexp.outcome import Outcome
from spkexp.records import Ticket


def job(cfg: DictConfig, overrides: list[str]) -> Outcome:
    what = cfg.names.model
    folder = Path("runs", f"{what}-{cfg.seed}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    set_up_logging(folder / "train.log")
    with (folder / "events").open("a") as events:
        events.write(f"start {os.getpid()} {cfg.resume} {cfg.tracking.group} {os.environ.get('LEFT', '')}\n")
    os.environ["LEFT"] = "behind"
    if what == "user":
        raise UserError("data.manifest: no such file\nmake it")
    if what == "raise":
        raise ZeroDivisionError("one line\nanother line")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "two":
        sys.exit(2)
    if what == "anew":  # the sweep was killed and is started again while this job saves
        (sweep_folder,) = Path("runs", "sweeps").iterdir()
        replace(Ticket.read(sweep_folder), start="later").write(sweep_folder)
        sys.exit(143)
    if what == "requeue":
        sys.exit(75)
    if what == "preempted" and (folder / "events").read_text().count("start") == 1:
        (folder / "waits").touch()
        time.sleep(600)
    if what == "wait":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _save)
        (folder / "waits").touch()
        time.sleep(600)
    return Outcome(str(folder), cfg.seed / 10, pruned=what == "prune")


def _save(number: int, frame: FrameType | None) -> NoReturn:
    time.sleep(float(os.environ.get("SECONDS_TO_SAVE", "0.5")))
    for folder in Path("runs").glob("wait-*"):
        if f"start {os.getpid()} " in (folder / "events").read_text():
            (folder / "saved").write_text(signal.Signals(number).name)
    sys.exit(128 + number)


main = hydra_command(job, sweep)

if __name__ == "__main__":
    main()
