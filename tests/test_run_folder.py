"""What a run folder says of its run, start after start."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from spkexp import run_folder
from spkexp.compose import compose_config
from spkexp.resume import asked_for, config_to_resume, fingerprint, is_finished, last_run


def settings(*overrides: str) -> DictConfig:
    cfg = compose_config(list(overrides))
    OmegaConf.resolve(cfg)
    return cfg


def begun(cfg: DictConfig) -> Path:
    """The folder of a run below runs/ as its first start leaves it."""
    folder = run_folder.create(cfg)
    run_folder.record_environment(folder, cfg)
    return folder


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my work ü").mkdir()
    monkeypatch.chdir(tmp_path / "my work ü")


def test_run_that_goes_on_by_a_changed_config(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spkexp")
    cfg, longer = settings(), settings("trainer.epochs=20")
    folder = begun(cfg)
    run_folder.update_config(cfg, folder)
    assert asked_for(folder) == fingerprint(cfg)
    (folder / "results.json").write_text('{"train_seconds": 3.0}')

    resumed = config_to_resume(str(folder), ["trainer.epochs=20"])
    run_folder.record_environment(folder, resumed)
    assert is_finished(folder)  # until it is known that it can go on
    run_folder.update_config(resumed, folder)
    assert not (folder / "results.json").exists()
    assert caplog.messages == [
        f"{folder} had come to its end before: its results.json is removed, and written anew at the end"
    ]
    assert (last_run(cfg), last_run(longer)) == (None, folder)
    assert asked_for(folder) == fingerprint(longer)
    assert len(said(folder)["resumed"]) == 1

    run_folder.update_config(config_to_resume(str(folder), ["trainer.nproc=2"]), folder)
    assert last_run(longer) == folder
    assert len(caplog.messages) == 1


def test_results_of_an_evaluation_are_not_the_end() -> None:
    cfg = settings()
    folder = begun(cfg)
    (folder / "results.json").write_text('{"trials": {"mine": {"eer": 0.1}}}')
    run_folder.update_config(cfg, folder)
    assert (folder / "results.json").is_file()


def test_batch_size_that_was_asked_for_as_auto() -> None:
    """config.yaml has the number that it came to; the run stays the one that asked for auto."""
    cfg = settings("trainer.batch_size=auto")
    folder = begun(cfg)
    run_folder.update_config(settings("trainer.batch_size=24"), folder)
    assert last_run(cfg) == folder
    run_folder.update_config(config_to_resume(str(folder), []), folder)
    assert last_run(cfg) == folder
    run_folder.update_config(config_to_resume(str(folder), ["trainer.epochs=20"]), folder)
    assert last_run(cfg) is None
    assert last_run(settings("trainer.batch_size=auto", "trainer.epochs=20")) == folder
    assert last_run(settings("trainer.batch_size=24", "trainer.epochs=20")) is None
    assert OmegaConf.load(folder / "config.yaml").trainer.batch_size == 24


def test_environment_that_cannot_be_read_is_written_anew() -> None:
    cfg = settings()
    folder = begun(cfg)
    for content in (b"[1]", b"{", b"\xff"):
        (folder / "environment.json").write_bytes(content)
        run_folder.record_environment(folder, cfg)
        assert said(folder)["config"] == fingerprint(cfg)
        assert "resumed" not in said(folder)


def test_new_run_where_auto_finds_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spkexp")
    cfg = settings("resume=auto")
    with run_folder.opened(cfg, False) as place:
        assert (place.resumed, place.finished) == (False, False)
    assert caplog.messages == [
        f"resume=auto: no earlier run of this config below runs/ (id {fingerprint(cfg)}): a new one"
    ]
    with run_folder.opened(cfg, False) as again:
        assert again.resumed
        assert again.folder == place.folder
    assert len(caplog.messages) == 1
    own = Path("mine").absolute()
    with run_folder.opened(settings("resume=auto", f"run_dir='{own}'"), False) as place:
        assert place.folder == own
    assert caplog.messages[1:] == [f"resume=auto: no earlier run of this config in {own}: a new one"]
