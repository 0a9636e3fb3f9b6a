"""A run's twin in wandb: every step once however often the run was stopped, and all of its results in it."""

import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import wandb
from omegaconf import OmegaConf

from spkexp import distributed, wandb_run
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.utterances import Utterances
from spkexp.report.confusion import confusion_plot
from spkexp.scoring.verification import Scored
from spkexp.sections import Tracking
from spkexp.tracking import Tracker
from tests.wandb_server import WandbServer
from tests.wandb_tools import items, of_kind, read, records, steps

NAMES = {"model": "ecapa_small", "data": "synthetic"}
CONFIG = OmegaConf.create({"names": NAMES, "loss": {"_target_": "spkexp.losses.margin.AAMSoftmax"}, "seed": 3})
RESULTS: dict[str, Any] = {
    "model": "ecapa_small",
    "parameters": 12,
    "trials": {
        "val": {"num_trials": 4, "eer": 0.25, "eer_ci95": None, "min_dcf": {"0.01": 1.0}},
        "test": {
            "num_trials": 9,
            "eer": 0.125,
            "eer_ci95": [0.1, 0.2],
            "min_dcf": {"0.01": 0.5},
            "untrained": {"eer": 0.375, "min_dcf": {"0.01": 1.0}},
        },
    },
}


@pytest.fixture
def own_wandb(own_wandb: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """With a key."""
    own_wandb.setenv("WANDB_API_KEY", "0" * 40)
    return own_wandb


def tracker(folder: Path, mode: str, resume_step: int | None = None, config: Any = CONFIG) -> Tracker:
    settings = {"wandb": mode, "project": "spk", "entity": "me", "group": "sweep-1f", "tags": ["mine"]}
    folder.mkdir(exist_ok=True)
    return Tracker(
        folder, config, Tracking.model_validate(settings), None if resume_step is None else (resume_step, resume_step)
    )


def log_steps(track: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        track.log(step, {"train": {"loss": 1 / step}})


def log_and_be_killed(folder: Path, last: int) -> None:
    """A process that logs the steps from 1 to `last` offline and is killed."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        log_steps(tracker(folder, "offline"), 1, last)
        there.send("logged")
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=run)  # which has torch imported already
    process.start()
    assert here.poll(60)
    process.kill()
    process.join()


def segments(folder: Path) -> list[Path]:
    """The .wandb files of a run folder, the oldest first."""
    wandb.teardown()  # the end of the process: until then the last records may be on their way
    return sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda file: file.parent.name.removeprefix("offline-"))


def another_second() -> None:
    """Wait for the next one: wandb names its folders by it, and no run is resumed within the second of its start."""
    now = int(time.time())
    until(lambda: int(time.time()) > now)


def sync(folder: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", *map(str, folder.glob("wandb/offline-run-*"))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def server_steps(wandb_service: WandbServer) -> list[int]:
    (run,) = wandb_service.runs.values()
    return [line["step"] for line in run.history]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def test_what_tells_a_run_from_others(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    config = OmegaConf.merge(CONFIG, {"names": {"model": "mamba"}, "init_from": "runs/a", "trainer": {"epochs": 40}})
    tracker(tmp_path / "run", "offline", config=config).close()
    (run,) = of_kind(records(tmp_path / "run"), "run")
    assert (run.run_group, run.job_type, run.entity) == ("sweep-1f", "fine-tune", "me")
    assert list(run.tags) == ["mine", "mamba", "synthetic", "AAMSoftmax"]
    assert run.notes == "model=mamba seed=3 init_from=runs/a trainer.epochs=40"
    logged = items(run.config.update)
    assert logged["changed"] == {"model": "mamba", "seed": 3, "init_from": "runs/a", "trainer.epochs": 40}
    assert logged["trainer"] == {"epochs": 40}


def test_only_the_main_process_has_a_run(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    own_wandb.setattr(distributed, "is_main", lambda: False)
    track = tracker(tmp_path / "run", "offline")
    track.log(1, {})
    track.summarise(RESULTS, [])
    track.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_was_killed_and_resumed_offline_is_synced_whole(tmp_path: Path, wandb_service: WandbServer) -> None:
    folder = tmp_path / "run ü"
    log_and_be_killed(folder, 7)
    another_second()
    track = tracker(folder, "offline", resume_step=5)
    log_steps(track, 6, 9)
    track.close()
    first, second = segments(folder)
    assert first.name == second.name  # one wandb run
    assert steps(read(second)) == list(range(1, 10))
    assert [file.with_name(f"{file.name}.synced").exists() for file in (first, second)] == [True, False]
    sync(folder)
    assert server_steps(wandb_service) == list(range(1, 10))
    (run,) = wandb_service.runs.values()
    assert (run.summary["step"], run.exit_code) == (9, 0)
    assert wandb_service.unknown == []


def test_syncing_between_segments_loses_nothing(tmp_path: Path, wandb_service: WandbServer) -> None:
    """The server puts what comes first into the place of what is first there, as wandb's users have met it."""
    folder = tmp_path / "run"
    track = tracker(folder, "offline")
    log_steps(track, 1, 4)
    track.close()
    sync(folder)
    wandb_service.overwrites = True
    another_second()
    track = tracker(folder, "offline", resume_step=3)
    log_steps(track, 4, 6)
    track.close()
    sync(folder)
    assert server_steps(wandb_service) == [1, 2, 3, 4, 5, 6]


def test_online_the_way_from_the_checkpoint_is_logged_once(tmp_path: Path, wandb_service: WandbServer) -> None:
    folder = tmp_path / "run"
    track = tracker(folder, "online")
    log_steps(track, 1, 7)
    track.close()
    another_second()
    track = tracker(folder, "online", resume_step=3)
    log_steps(track, 4, 9)
    track.close()
    # Whether the server has all lines of its last step cannot be known, so that one comes again.
    assert server_steps(wandb_service) == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9]
    assert wandb_service.runs.popitem()[1].exit_code == 0


def test_what_was_tracked_offline_comes_online_with_the_next_start(tmp_path: Path, wandb_service: WandbServer) -> None:
    folder = tmp_path / "run"
    for mode, first, last in (("online", 1, 3), ("offline", 4, 6), ("online", 7, 8)):
        another_second()
        track = tracker(folder, mode, resume_step=first - 1)
        log_steps(track, first, last)
        track.close()
    assert server_steps(wandb_service) == [1, 2, 3, 3, 4, 5, 6, 7, 8]
    offline = folder.glob("wandb/offline-run-*/*.wandb")
    assert [file.with_name(f"{file.name}.synced").exists() for file in offline] == [True]


def test_the_end_does_not_wait_for_a_server_that_fell_silent(
    tmp_path: Path, wandb_service: WandbServer, own_wandb: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    patience = wandb_run.FINISH_SECONDS
    own_wandb.setattr(wandb_run, "FINISH_SECONDS", 1.0)
    track = tracker(tmp_path / "run", "online")
    wandb_service.silent.set()
    log_steps(track, 1, 3)
    begin = time.monotonic()
    track.close()
    assert time.monotonic() - begin < patience / 2
    assert "tracking: wandb had not sent everything in 1 s; `wandb sync --include-online" in caplog.text
    (file,) = segments(tmp_path / "run")
    assert str(file.parent) in caplog.text
    assert steps(read(file)) == [1, 2, 3]


def test_training_goes_on_when_wandb_dies(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    """In a process of its own: wandb's thread complains of its loss for as long as the process lives."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("spkexp").addHandler(handler)
        track = tracker(tmp_path / "run", "offline")
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        core = [pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
        for pid in core:
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: all("State:\tZ" in Path(f"/proc/{pid}/status").read_text() for pid in core))
        for step in range(1, 20):
            track.log(step, {})
            time.sleep(0.05)
        track.summarise(RESULTS, [])
        track.close()
        there.send((len(core), said))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    assert here.poll(60)
    cores, said = here.recv()
    process.join(60)
    assert process.exitcode == 0
    assert cores == 1
    assert sum("tracking: wandb is off from here on: " in line for line in said) == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 19


def test_behind_a_proxy_it_is_the_proxy_that_is_to_be_reached(own_wandb: pytest.MonkeyPatch) -> None:
    own_wandb.setenv("WANDB_BASE_URL", "http://wandb.invalid:81")
    own_wandb.delenv("no_proxy", raising=False)
    own_wandb.delenv("NO_PROXY", raising=False)
    own_wandb.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    assert str(wandb_run.obstacle_to_wandb()).startswith("the proxy 127.0.0.1 cannot be reached")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port = proxy.getsockname()[1]
        own_wandb.setenv("WANDB_API_KEY", "malformed")
        for address in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"):
            own_wandb.setenv("http_proxy", address)
            assert "API key" in str(wandb_run.obstacle_to_wandb())  # which is asked for next
        own_wandb.setenv("no_proxy", "wandb.invalid")
        assert str(wandb_run.obstacle_to_wandb()).startswith("wandb.invalid cannot be reached")


def test_a_job_that_failed_leaves_its_run_to_itself(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    """A sweep in one process: the next job is a run of its own."""
    log_steps(tracker(tmp_path / "failed", "offline"), 1, 2)  # and it is never closed
    track = tracker(tmp_path / "next", "offline")
    log_steps(track, 5, 6)
    track.close()
    assert steps(records(tmp_path / "next")) == [5, 6]
    assert steps(records(tmp_path / "failed")) == [1, 2]


def scored(speakers: int, each: int, known: bool = True) -> Scored:
    rows = [(f"s{s}-{u}", f"/a/{s}/{u}.wav", 1.0 + u, f"s{s}") for s in range(speakers) for u in range(each)]
    table = pl.DataFrame(rows, schema=["id", "path", "duration", "speaker"], orient="row")
    utterances = Utterances.of(table, "speaker")
    embeddings = np.arange(2 * len(rows), dtype=np.float32).reshape(-1, 2) / 7
    embeddings[1] = np.nan  # could not be read
    evaluation = EvaluationSet("test", utterances, None, known)
    return Scored(evaluation, embeddings, None, None, 0)


def test_results_pictures_tables_and_embeddings(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    track = tracker(folder, "offline")
    track.log(1, {"train": {"loss": 2.0}})
    plot = folder / "plots" / "det.png"
    confusion_plot(plot, np.eye(2, dtype=np.int64), ["a", "b"], "a picture")
    (folder / "scores").mkdir()
    (folder / "scores" / "confusion-val.csv").write_text('true \\ predicted,"a, b",c\n"a, b",3,0\nc,1,5\n')
    track.summarise(RESULTS, [plot], {"test": scored(2, 2)})
    track.close()

    found = records(folder)
    summary: dict[str, Any] = {}
    for record in of_kind(found, "summary"):
        summary |= items(record.update)
    assert (summary["trials/test/eer"], summary["trials/test/untrained/eer"], summary["parameters"]) == (
        0.125,
        0.375,
        12,
    )
    logged: dict[str, Any] = {}
    for history in of_kind(found, "history"):
        logged |= items(history.item)
    (files,) = folder.glob("wandb/offline-run-*/files")
    assert logged["plots/det/_type"] == "image-file"
    assert (files / logged["plots/det/path"]).read_bytes() == plot.read_bytes()

    def table(name: str) -> tuple[list[str], list[list[Any]]]:
        assert logged[f"{name}/_type"] == "table-file"
        content = json.loads((files / logged[f"{name}/path"]).read_text())
        return content["columns"], content["data"]

    columns, rows = table("tables/results")
    assert columns == [
        "trials", "num_trials", "eer", "eer_ci95 low", "eer_ci95 high", "min_dcf(0.01)", "untrained eer",
    ]  # fmt: skip
    assert rows == [["val", 4, 0.25, None, None, 1.0, None], ["test", 9, 0.125, 0.1, 0.2, 0.5, 0.375]]
    assert table("tables/confusion-val") == (
        ["true", "predicted", "utterances"],
        [["c", "c", 5], ["a, b", "a, b", 3], ["c", "a, b", 1]],
    )
    columns, rows = table("embeddings/test")
    assert columns == ["id", "speaker", "duration", "e0", "e1"]
    assert rows == [
        ["s0-0", "s0", 1.0, 0.0, 0.14286],
        ["s1-0", "s1", 1.0, 0.57143, 0.71429],
        ["s1-1", "s1", 2.0, 0.85714, 1.0],
    ]
