"""Tracking: metrics.jsonl always, wandb where asked for, and no run that waits for a server or a key."""

import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from spkexp import wandb_run
from spkexp.sections import Tracking
from spkexp.tracking import Tracker
from tests.wandb_server import WandbServer
from tests.wandb_tools import items, of_kind, records

CONFIG = OmegaConf.create({"seed": 7, "trainer": {"epochs": 3}})
VALIDATED = {"epoch": 1.5, "val": {"eer": 0.25, "min_dcf": {"0.01": 0.5}}}


def settings(mode: str) -> Tracking:
    return Tracking.model_validate(
        {"wandb": mode, "project": "spk", "entity": None, "group": "encoders", "tags": ["a", "b"]}
    )


def tracker(folder: Path, mode: str = "off", resume_step: int | None = None) -> Tracker:
    return Tracker(folder, CONFIG, settings(mode), None if resume_step is None else (resume_step, resume_step))


def test_a_line_of_json_for_each_measurement(tmp_path: Path) -> None:
    track = tracker(tmp_path)
    track.log(10, {"epoch": 0.5, "train": {"loss": 1.25}})
    # Each line is on disk when it is logged: a kill loses nothing.
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "epoch": 0.5, "train": {"loss": 1.25}}\n'
    track.log(20, VALIDATED)
    track.summarise({"trials": {}}, [])
    track.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines[1:]] == [{"step": 20, **VALIDATED}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_validation_that_the_checkpoint_does_not_know_comes_again(tmp_path: Path) -> None:
    """The weights are saved before they are validated: a kill in between makes the resumed run validate first."""
    track = tracker(tmp_path)
    track.log(4, VALIDATED)
    track.log(8, {"train": {"loss": 1.0}})
    track.log(8, VALIDATED)
    track.close()
    Tracker(tmp_path, CONFIG, settings("off"), (8, 4)).close()
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "val" in line) for line in found] == [(4, True), (8, False)]


@pytest.mark.parametrize(("resume_step", "kept"), [(0, []), (2, [1, 2, 2]), (3, [1, 2, 2, 3])])
def test_resume_drops_what_comes_again(tmp_path: Path, resume_step: int, kept: list[int]) -> None:
    lines = [json.dumps({"step": step, "epoch": 1.0}) for step in (1, 2, 2, 3)]
    # A kill in the middle of a write leaves half a line, which may even be JSON of another kind.
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1, "ep', "{}"]))
    track = tracker(tmp_path, resume_step=resume_step)
    track.log(9, {"epoch": 2.0})
    track.close()
    found = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == [*kept, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_new_run_appends_to_nothing_and_resume_without_a_file_begins_one(tmp_path: Path) -> None:
    track = tracker(tmp_path, resume_step=5)
    track.log(6, {})
    track.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 6}\n'


def test_off_never_imports_wandb(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from tests.test_tracking import tracker\n"
        "track = tracker(pathlib.Path(sys.argv[1]))\n"
        "track.log(1, {}); track.summarise({}, []); track.close()\n"
        "print('wandb' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def check_offline_run(folder: Path) -> None:
    """What `log_and_close` logged stands in the offline run."""
    found = records(folder)
    history = [items(history.item) for history in of_kind(found, "history")]
    measured = {"step": 40, "epoch": 1.5, "val/eer": 0.25, "val/min_dcf/0.01": 0.5}
    assert {key: value for key, value in history[0].items() if not key.startswith("_")} == measured
    metrics = of_kind(found, "metric")
    assert "step" in [metric.name for metric in metrics]
    assert [metric.step_metric for metric in metrics if metric.glob_name == "*"] == ["step"]
    (run,) = of_kind(found, "run")
    assert (run.project, run.run_group, list(run.tags), run.display_name) == ("spk", "encoders", ["a", "b"], "run ü")
    assert run.job_type == "train"
    assert (run.notes, items(run.config.update)["changed"]) == (
        "seed=7 trainer.epochs=3",
        {"seed": 7, "trainer.epochs": 3},
    )
    assert {"seed": 7, "trainer": {"epochs": 3}}.items() <= items(run.config.update).items()
    summary: dict[str, Any] = {}
    for record in of_kind(found, "summary"):
        summary |= items(record.update)
    assert summary["trials/val/eer"] == 0.125


def log_and_close(folder: Path, mode: str) -> float:
    """Seconds that tracking took of a run's time."""
    begin = time.monotonic()
    folder.mkdir()
    track = tracker(folder, mode)
    track.log(40, VALIDATED)
    track.summarise({"trials": {"val": {"eer": 0.125}}}, [])
    track.close()
    return time.monotonic() - begin


def test_offline_run_can_be_read_back(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    log_and_close(tmp_path / "run ü", "offline")
    check_offline_run(tmp_path / "run ü")


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    log_and_close(tmp_path / "run", "offline")
    first = (tmp_path / "run" / "wandb" / "run_id").read_text()
    tracker(tmp_path / "run", "offline", resume_step=40).close()
    assert {file.stem for file in tmp_path.glob("run/wandb/offline-run-*/*.wandb")} == {f"run-{first}"}


def listening() -> socket.socket:
    """A server that accepts connections and never answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(64)
    return server


def check_fell_back(folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "spkexp.wandb_run"]
    assert warning.startswith("tracking: wandb goes on offline: ")
    assert reason in warning
    assert warning.endswith(f"`wandb sync {folder}/wandb/offline-run-*` uploads it later")
    check_offline_run(folder)


def test_online_without_a_network(
    tmp_path: Path, own_wandb: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with listening() as server:
        port = server.getsockname()[1]
    own_wandb.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    own_wandb.setenv("WANDB_API_KEY", "0" * 40)
    caplog.set_level(logging.WARNING)
    seconds = log_and_close(tmp_path / "run ü", "online")
    check_fell_back(tmp_path / "run ü", caplog, "127.0.0.1 cannot be reached")
    assert seconds < 5


def test_online_without_a_key(tmp_path: Path, own_wandb: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with listening() as server:
        own_wandb.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        seconds = log_and_close(tmp_path / "run ü", "online")
    check_fell_back(tmp_path / "run ü", caplog, "there is no API key; `wandb login` or WANDB_API_KEY gives one")
    assert seconds < 5


def test_online_where_the_server_never_answers(
    tmp_path: Path, own_wandb: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    own_wandb.setenv("WANDB_HTTP_TIMEOUT", "1")  # wandb's own is 10 s
    own_wandb.setenv("WANDB_API_KEY", "0" * 40)
    with listening() as server:
        own_wandb.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        seconds = log_and_close(tmp_path / "run ü", "online")
    check_fell_back(tmp_path / "run ü", caplog, "Failed to authenticate with http://127.0.0.1")
    assert seconds < 6


def test_online_where_the_server_falls_silent_after_the_key(
    tmp_path: Path,
    own_wandb: pytest.MonkeyPatch,
    wandb_service: WandbServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    own_wandb.setattr(wandb_run, "INIT_SECONDS", 1.0)
    wandb_service.but_for = b"query Viewer"
    wandb_service.silent.set()
    seconds = log_and_close(tmp_path / "run ü", "online")
    check_fell_back(tmp_path / "run ü", caplog, "POST http://127.0.0.1")
    assert 1 <= seconds < 6


def test_the_process_ends_without_waiting_for_a_server(tmp_path: Path, own_wandb: pytest.MonkeyPatch) -> None:
    """wandb's crash reports would hold up the end of even an offline run for 10 s."""
    script = (
        "import sys, pathlib\n"
        "from tests.test_tracking import tracker\n"
        "track = tracker(pathlib.Path(sys.argv[1]), 'offline')\n"
        "track.log(1, {}); track.close()\n"
        "print('closed', flush=True)"
    )
    own_wandb.delenv("WANDB_ERROR_REPORTING")
    with listening() as server:
        own_wandb.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "closed\n"
        closed = time.monotonic()
        assert process.wait(30) == 0
    assert time.monotonic() - closed < 5
    process.stdout.close()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_wandb_that_cannot_start_leaves_the_run_alone(
    tmp_path: Path, own_wandb: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    (tmp_path / "run").mkdir()
    if mode == "online":
        own_wandb.setenv("WANDB_BASE_URL", "no address")
    else:
        (tmp_path / "run" / "wandb").write_text("a file where its folder goes")
    caplog.set_level(logging.WARNING)
    track = tracker(tmp_path / "run", mode)
    track.log(1, {"epoch": 1.0})
    track.close()
    assert "tracking: wandb is off, it cannot start: " in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1, "epoch": 1.0}\n'
