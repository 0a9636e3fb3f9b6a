"""Kills training at random moments, again and again, and compares what comes out with the same training left alone.

    python -m tests.faults.soak [kills=100] [seed=0] [only=SCENE] [output=FILE.json]

Each scene is a configuration of its own (workers, accumulation, precision, sampler, augmentation, processes). Its run
is killed at moments that are drawn from (seed, scene): in the middle of a step, while a checkpoint is written, while it
is renamed, while the run starts, while it reports; then it is resumed. After each kill: no process is left, every file
can be read, no checkpoint is lost. At the end: weights, optimizer, metrics, results and scores are those of the
unbroken run, bit for bit. Exit code 1 if any of that is not so.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spkexp.counter import generator
from tests.faults.corpus import STEPS_PER_EPOCH, arguments, write_corpus
from tests.faults.runs import Hang, Run, wait_for
from tests.faults.traces import broken_files, differences, last_step, lost_steps, result, saved_step


@dataclass(frozen=True)
class Scene:
    """A configuration. workers: data.num_workers of the starts, in turn; processes: under torchrun."""

    settings: tuple[str, ...] = ()
    workers: tuple[int, ...] = (0,)
    processes: int = 1
    checkpoint_steps: int = 1


WHOLE = ("data/sampler=bucketed", "data.sampler.buckets=2", "data.sampler.multiple_of=8", "data.crop_seconds=null")
SCENES = {
    "one process": Scene(),
    "workers come and go": Scene(("augment=simulated",), workers=(2, 0, 4)),
    "accumulation, EMA": Scene(
        ("trainer.accumulate=2", "trainer.ema=0.9", "data/sampler=weighted", "trainer/optimizer=sgd"),
        checkpoint_steps=3,
    ),
    "bf16": Scene(("trainer.precision=bf16", "data/sampler=speakers", "loss=am_softmax")),
    "whole utterances": Scene((*WHOLE, "augment=simulated", "trainer.average_last=2"), workers=(0, 2)),
    "shards": Scene(("data/sampler=shards", "augment=speed"), workers=(2,), checkpoint_steps=2),
    "two processes": Scene((*WHOLE, "augment=simulated", "trainer.accumulate=2"), processes=2),
    "two processes of a launch": Scene(("trainer.nproc=2", "data/sampler=speakers"), workers=(0, 2)),
}
MOMENTS = ("step", "write", "rename", "start")  # and "report": the last kill of each scene
SHARES = (0.3, 0.4, 0.1, 0.2)


@dataclass
class Tally:
    """What happened to one scene's run."""

    kills: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    lost_checkpoints: int = 0
    hangs: int = 0
    orphans: int = 0
    broken_files: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        wrong = (self.lost_checkpoints, self.hangs, self.orphans, self.broken_files, self.failures, self.differences)
        return not any(wrong)


class Torture:
    """One scene: its unbroken run and its broken one."""

    def __init__(self, name: str, corpus: Path, folder: Path, kills: int, seed: int, forked: bool) -> None:
        self.name, self.scene, self.corpus, self.place = name, SCENES[name], corpus, folder
        self.kills, self.forked, self.tally = kills, forked, Tally()
        self.random = generator(seed, *name.encode())
        # Kills come one to four steps after the step that a start goes on from.
        self.epochs = -(-(4 * kills + 4) // STEPS_PER_EPOCH)
        self.broken = folder / "broken ü"

    def run(self) -> Tally:
        begin = time.monotonic()
        self.place.mkdir(parents=True)
        whole = self.place / "whole"
        code = self._start(whole, resume=False).wait()
        if code != 0:
            raise AssertionError((self.place / "output").read_text(encoding="utf-8"))
        try:
            while self.tally.kills < self.kills and self.tally.starts < 2 * self.kills:
                self._kill_once()
            self._finish()
            self.tally.differences = differences(result(whole), result(self.broken))
        except Hang as hang:
            self.tally.hangs += 1
            self.tally.failures.append(str(hang))
        self.tally.seconds = time.monotonic() - begin
        return self.tally

    def _start(self, folder: Path, resume: bool) -> Run:
        scene, workers = self.scene, f"data.num_workers={self._workers()}"
        given = [f"resume='{folder}'", workers]
        if not resume:
            lengths = (f"trainer.epochs={self.epochs}", f"trainer.checkpoint_steps={scene.checkpoint_steps}")
            given = arguments(self.corpus, folder, *scene.settings, *lengths, workers)
        own = self.forked and scene.processes == 1
        return Run(given, self.place / "output", forked=own, processes=scene.processes)

    def _workers(self) -> int:
        return self.scene.workers[self.tally.starts % len(self.scene.workers)]

    def _resumable(self) -> bool:
        return (self.broken / "config.yaml").is_file()

    def _moment(self) -> str:
        if (self.broken / "results.json").is_file():  # it came to its end: what starts now scores once more
            return "start"
        return "report" if self.tally.kills == self.kills - 1 else str(self.random.choice(MOMENTS, p=SHARES))

    def _kill_once(self) -> None:
        """Start or resume, and kill, unless the run comes to its end first."""
        tally, before, moment = self.tally, saved_step(self.broken), self._moment()
        old = self._places()
        run = self._start(self.broken, self._resumable())
        tally.starts += 1
        try:
            self._await(run, moment, before)
        except AssertionError as early:
            if isinstance(early, Hang):
                raise
            self._note_end(run)
            return
        reached = last_step(self.broken)
        self._strike(run)
        tally.kills += 1
        self._check_start(run, before)
        tally.hit[self._what_was_hit(old, before, reached)] += 1
        self._examine(run, max(before, reached))

    def _await(self, run: Run, moment: str, before: int) -> None:
        """Until the moment has come. Raises AssertionError where the run ends before it."""
        if moment == "start":
            latest = 1.5 if self.forked else 4.0
            wait_for(lambda: False, run, self.random.uniform(0.1, latest), expected=True)
            return
        total = self.epochs * STEPS_PER_EPOCH
        target = total if moment == "report" else min(before + int(self.random.integers(1, 4)), total)
        wait_for(lambda: last_step(self.broken) >= target, run)
        if moment == "report":
            wait_for(lambda: False, run, self.random.uniform(0, 0.6), expected=True)
        elif moment == "step":
            wait_for(lambda: False, run, self.random.uniform(0, 0.06), expected=True)
        else:
            suffixes, known = ((".partial",) if moment == "write" else (".new",)), self._places()
            end = time.monotonic() + 2
            wait_for(lambda: time.monotonic() > end or self._fresh(suffixes, known), run)
            if moment == "write":
                time.sleep(self.random.uniform(0, 0.015))

    def _places(self) -> dict[str, tuple[int, int]]:
        """The folders of checkpoints as they are: name -> what changes when one is made anew."""
        found = {}
        for name in ("last", "best"):
            for suffix in (".partial", ".new"):
                try:
                    status = (self.broken / "checkpoints" / f"{name}{suffix}").stat()
                except FileNotFoundError:
                    continue
                found[f"{name}{suffix}"] = (status.st_ino, status.st_mtime_ns)
        return found

    def _fresh(self, suffixes: tuple[str, ...], known: dict[str, tuple[int, int]]) -> bool:
        return any(known.get(name) != stamp for name, stamp in self._places().items() if name.endswith(suffixes))

    def _strike(self, run: Run) -> None:
        """The end of the machine; or, where there are several processes, of one of them or of their launcher."""
        victims = sorted(run.tree())
        several = self.scene.processes > 1 or "trainer.nproc=2" in self.scene.settings
        if several and len(victims) > 1 and self.random.random() < 0.5:
            others = [pid for pid in victims if pid != run.pid]
            launched = "trainer.nproc=2" in self.scene.settings  # torchrun leaves its ranks alone when it is killed
            run.kill(int(self.random.choice(victims if launched else others)))
            self.tally.hit["(one process of several)"] += 1
            # A short-lived child (git, which is asked for the commit) is missed by nobody: then the run is complete.
            if run.wait() == 0 and not (self.broken / "results.json").exists():
                self.tally.failures.append("a killed process went unnoticed: exit code 0")
        elif self.random.random() < 0.5 and not several:
            run.kill(run.pid)  # its workers have to notice
            run.wait(10)
        else:
            run.kill_all()

    def _what_was_hit(self, old: dict[str, tuple[int, int]], before: int, reached: int) -> str:
        if self._fresh((".partial",), old):
            return "inside a checkpoint write"
        if self._fresh((".new",), old):
            return "between its renames"
        if reached <= before:
            return "start"
        return "report" if reached == self.epochs * STEPS_PER_EPOCH else "step or validation"

    def _examine(self, run: Run, reached: int) -> None:
        """What must hold after every kill. reached: the last step whose metrics were written."""
        tally = self.tally
        if left := run.orphans():
            tally.orphans += len(left)
            tally.failures.append(f"left running: {left}")
        tally.broken_files += broken_files(self.broken)
        if (lost := lost_steps(self.broken, reached)) > self.scene.checkpoint_steps:
            tally.lost_checkpoints += 1
            tally.failures.append(f"{lost} steps lost at step {reached}")

    def _finish(self) -> None:
        """Let the run come to its end."""
        before = saved_step(self.broken)
        run = self._start(self.broken, self._resumable())
        self.tally.starts += 1
        self._note_end(run)
        self._check_start(run, before)

    def _check_start(self, run: Run, saved: int) -> None:
        """A resumed run goes on from the newest checkpoint."""
        found = re.search(r"resumed at step (\d+)", run.text())
        if found and int(found[1]) != saved:
            self.tally.lost_checkpoints += 1
            self.tally.failures.append(f"resumed at step {found[1]} instead of {saved}")

    def _note_end(self, run: Run) -> None:
        if (code := run.wait()) != 0:
            self.tally.failures.append(f"exit code {code}:\n{run.text()[-2000:]}")


def soak(kills: int, seed: int, only: list[str], folder: Path, forked: bool) -> dict[str, Tally]:
    """The scenes named in `only`, with `kills` kills among them. forked: see `runs.Run`."""
    corpus = write_corpus(folder / "a corpus ü")
    tallies = {}
    for index, name in enumerate(only):
        share = kills // len(only) + (index < kills % len(only))
        tallies[name] = Torture(name, corpus, folder / str(index), share, seed, forked).run()
        print(f"{name}: {_line(tallies[name])}", flush=True)
    return tallies


def _line(tally: Tally) -> str:
    hits = ", ".join(f"{what} {count}" for what, count in sorted(tally.hit.items()))
    return (
        f"{tally.kills} kills ({hits}); {tally.lost_checkpoints} checkpoints lost, {tally.hangs} hangs, "
        f"{tally.orphans} orphans, {len(tally.broken_files)} broken files, "
        f"{'identical' if not tally.differences else f'{len(tally.differences)} DIFFERENCES'}, {tally.seconds:.0f} s"
        + "".join(f"\n    {line}" for line in [*tally.broken_files, *tally.failures, *tally.differences[:10]])
    )


def main() -> None:
    given = {"kills": "100", "seed": "0", "only": "", "output": "", "folder": ""}
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key not in given:
            sys.exit(f"{key}: no such key; there are {', '.join(given)}")
        given[key] = value
    only = [given["only"]] if given["only"] else list(SCENES)
    folder = Path(given["folder"] or tempfile.mkdtemp(prefix="spkexp-soak-"))
    print(f"seed={given['seed']} in {folder}", flush=True)
    tallies = soak(int(given["kills"]), int(given["seed"]), only, folder, forked=False)
    total = _total(tallies)
    print(json.dumps(total, indent=2))
    if given["output"]:
        Path(given["output"]).write_text(json.dumps({"seed": int(given["seed"]), **total}, indent=2) + "\n")
    if not all(tally.good for tally in tallies.values()):
        sys.exit(1)  # what is in the folder tells more
    if not given["folder"]:
        shutil.rmtree(folder)


def _total(tallies: dict[str, Tally]) -> dict[str, Any]:
    hit = sum((tally.hit for tally in tallies.values()), Counter())
    return {
        "kills": sum(tally.kills for tally in tallies.values()),
        "hit": dict(sorted(hit.items())),
        "lost_checkpoints": sum(tally.lost_checkpoints for tally in tallies.values()),
        "hangs": sum(tally.hangs for tally in tallies.values()),
        "orphans": sum(tally.orphans for tally in tallies.values()),
        "broken_files": sum(len(tally.broken_files) for tally in tallies.values()),
        "other_failures": sum(len(tally.failures) for tally in tallies.values()),
        "scenes_that_ended_identical": f"{sum(not t.differences for t in tallies.values())} of {len(tallies)}",
        "seconds": round(sum(tally.seconds for tally in tallies.values())),
    }


if __name__ == "__main__":
    main()
