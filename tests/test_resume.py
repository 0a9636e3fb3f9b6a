"""Which config a run goes on with, and which run a config goes on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from spkexp.compose import compose_config
from spkexp.errors import ConfigError, UserError
from spkexp.resume import asked_for, config_to_resume, differing, fingerprint, is_finished, last_run, twins

ROOMS = "augment.waveform.steps.reverb.choices.measured.source.root"
NOISE = "augment.waveform.steps.noise.kinds.noise.source.root"


def settings(*overrides: str) -> DictConfig:
    """The config as a run gets it."""
    cfg = compose_config(list(overrides))
    OmegaConf.resolve(cfg)
    return cfg


def edited(folder: Path, change: Callable[[DictConfig], Any]) -> None:
    """Change the config.yaml in `folder` by hand."""
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    change(cfg)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)


def run_of(cfg: DictConfig, folder: Path, known_by: str | None) -> Path:
    """What a run leaves of its config. known_by: the fingerprint in environment.json; None: there is no such file."""
    folder.mkdir(parents=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    if known_by is not None:
        (folder / "environment.json").write_text(json.dumps({"config": known_by, "host": "ü"}), encoding="utf-8")
    return folder


def test_recordings_may_have_moved(tmp_path: Path) -> None:
    cfg = settings("augment=noise_reverb", "augment.musan=/old/musan", "augment.rirs=/old/rirs")
    folder = run_of(cfg, tmp_path / "run ü", None)
    moved = config_to_resume(str(folder), ["augment.musan=/new/musan"])
    # The config of a run is resolved: each bank names its folder itself.
    assert (moved.augment.musan, OmegaConf.select(moved, NOISE)) == ("/new/musan", "/new/musan")
    assert (moved.augment.rirs, OmegaConf.select(moved, ROOMS)) == ("/old/rirs", "/old/rirs")
    both = config_to_resume(str(folder), ["augment.rirs=/new/rirs", f"{ROOMS}=/third"])
    assert OmegaConf.select(both, ROOMS) == "/third"
    assert OmegaConf.select(both, ROOMS.replace("measured", "simulated")) == "/new/rirs"
    with pytest.raises(ConfigError, match=r"augment.waveform.steps.noise.probability: cannot change on resume"):
        config_to_resume(str(folder), ["augment.waveform.steps.noise.probability=0.1"])
    with pytest.raises(ConfigError, match=r"data.corpus.root: cannot change on resume"):
        config_to_resume(str(folder), ["data.corpus.root=/x"])


def test_run_of_an_earlier_version_gets_the_keys_that_it_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = settings("trainer.epochs=3", "loss.margin=0.3", "trainer.clip_norm=null")
    whole = config_to_resume(str(run_of(cfg, tmp_path / "whole", None)), [])
    assert not caplog.messages
    folder = run_of(cfg, tmp_path / "run", None)
    lacking = ["trainer.ema", "trainer.timeout_minutes", "data.cache_dir", "data.trials.models", "augment.speed_copies",
               "scoring.bootstrap", "search", "loss.ramp"]  # fmt: skip

    def without(cfg: DictConfig) -> None:
        for key in lacking:
            section, _, name = key.rpartition(".")
            (OmegaConf.select(cfg, section) if section else cfg).pop(name)

    edited(folder, without)
    found = config_to_resume(str(folder), ["trainer.epochs=4"])
    whole.run_dir, whole.trainer.epochs = str(folder), 4
    assert OmegaConf.to_container(found) == OmegaConf.to_container(whole)
    (message,) = caplog.messages
    assert message.startswith(f"resume: {folder}/config.yaml has no ")
    assert message.endswith("; it goes on with today's defaults")
    assert set(message.partition("has no ")[2].partition(";")[0].split(", ")) == set(lacking)


def test_keys_that_are_gone_are_named(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "run", None)

    def with_more(cfg: DictConfig) -> None:
        cfg.trainer.channels_last, cfg.colour = True, "red"

    edited(folder, with_more)
    with pytest.raises(UserError) as error:
        config_to_resume(str(folder), [])
    assert str(error.value) == (
        f"{folder}/config.yaml was written by another version: it has trainer.channels_last, colour; "
        "remove them there to go on"
    )
    edited(folder, lambda cfg: (cfg.pop("colour"), cfg.trainer.pop("channels_last")))
    edited(folder, lambda cfg: cfg.loss.update(sharpness=2))
    with pytest.raises(ConfigError) as mistakes:
        config_to_resume(str(folder), ["trainer.epochs=3"])
    first, last = mistakes.value.mistakes
    assert first.startswith("loss.sharpness: AAMSoftmax takes no 'sharpness'")
    assert (
        last == f"{folder}/config.yaml was written by another version, or by hand; mend there what was not given here"
    )
    edited(folder, lambda cfg: cfg.loss.pop("sharpness"))
    with pytest.raises(ConfigError) as mistakes:  # this one is a mistake of the command
        config_to_resume(str(folder), ["trainer.epochs=many"])
    assert mistakes.value.mistakes == ["trainer.epochs: expected an integer, got 'many'"]


@pytest.mark.parametrize("section", ["trainer", "augment", "data", "loss"])
def test_config_with_a_section_that_is_none(section: str, tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "run", None)
    edited(folder, lambda cfg: cfg.update({section: 3}))
    with pytest.raises(ConfigError, match=f"(?m)^{section}: expected a mapping"):
        config_to_resume(str(folder), [])


@pytest.mark.parametrize("content", [None, "{half", "[]", '{"host": "a"}', b"\xff\xfe"])
def test_run_that_does_not_say_what_was_asked_for(content: str | bytes | None, tmp_path: Path) -> None:
    folder = run_of(settings("trainer.batch_size=16"), tmp_path / "run", None)
    if content is not None:
        (folder / "environment.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert asked_for(folder) is None
    place = f"run_dir={folder}"
    assert last_run(settings(place, "trainer.batch_size=16", "trainer.nproc=2")) == folder
    assert last_run(settings(place, "trainer.batch_size=auto")) == folder  # it may have come to 16
    with pytest.raises(UserError) as error:
        last_run(settings(place, "trainer.batch_size=auto", "seed=1", "loss.margin=0.1", "trainer.nproc=2"))
    assert str(error.value).startswith(f"resume=auto: {folder} holds a run of another config (loss.margin, seed); ")
    with pytest.raises(UserError, match=r"another config \(trainer.batch_size\)"):
        last_run(settings(place, "trainer.batch_size=8"))


def test_run_dir_with_a_run_of_an_earlier_version(tmp_path: Path) -> None:
    """Its fingerprint was made without the keys that came later."""
    folder = run_of(settings(), tmp_path / "run", "0123abcd")
    edited(folder, lambda cfg: cfg.trainer.pop("ema"))
    assert last_run(settings(f"run_dir={folder}")) == folder
    with pytest.raises(UserError, match=r"another config \(trainer.ema\)"):
        last_run(settings(f"run_dir={folder}", "trainer.ema=0.9"))


def test_last_run_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = settings()
    own, other = fingerprint(cfg), fingerprint(settings("trainer.epochs=20"))
    assert last_run(cfg) is None
    first = run_of(cfg, Path("runs", "2026-01-01", f"235959-a-b-{own}"), own)
    assert last_run(cfg) == first
    newest = run_of(cfg, Path("runs", "2026-01-02", f"000001-a-b-{own}"), None)  # the name tells
    assert last_run(cfg) == newest
    went_on = run_of(cfg, Path("runs", "2026-01-03", f"000000-a-b-{own}"), other)
    assert last_run(cfg) == newest
    assert last_run(settings("trainer.epochs=20")) == went_on
    assert last_run(settings("trainer.epochs=21")) is None


def test_results_that_are_no_end(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    for content, finished in (("3", False), ("{", False), ('{"trials": {}}', False), ('{"train_seconds": 1}', True)):
        (tmp_path / "results.json").write_text(content)
        assert is_finished(tmp_path) is finished


def test_what_makes_another_run() -> None:
    own = fingerprint(settings())
    same = ["trainer.nproc=2", "trainer.checkpoint_steps=7", "trainer.checkpoint_minutes=3", "data.cache_dir=/x"]
    assert [fingerprint(settings(one)) for one in same] == [own] * len(same)
    assert len({own, *(fingerprint(settings(one)) for one in ("seed=1", "data.root=/x", "trainer.epochs=9"))}) == 4
    # A rollback goes to the last checkpoint, wherever that is.
    back = "trainer.on_nan=rollback"
    assert len({fingerprint(settings(back, *more)) for more in ([], *([one] for one in same))}) == 3


def test_jobs_that_would_be_one_run() -> None:
    jobs = [settings("trainer.nproc=1"), settings("seed=1"), settings("trainer.nproc=2", "trainer.log_every=3")]
    assert twins(jobs[:2]) == []
    (line,) = twins(jobs)
    assert line == (
        "jobs 0 and 2 differ in trainer.log_every, trainer.nproc alone, which makes no other run; "
        "leave out the sweep over it, or set resume=never"
    )
    alike = [jobs[0], jobs[2], settings("trainer.nproc=3", "trainer.log_every=4")]
    assert twins(alike) == [line.replace("0 and 2", "0 and 1")]
    (line,) = twins([jobs[1], jobs[1]])
    assert line.startswith("jobs 0 and 1 are the same run; ")
    assert twins([settings("trainer.nproc=1", "resume=never"), settings("trainer.nproc=2", "resume=never")]) == []


def test_keys_that_differ() -> None:
    one, other = settings(), settings("trainer.nproc=2", "seed=1", "augment=none")
    found = differing(one, other)
    assert found == ["augment.speeds", "seed", "trainer.nproc"]
    assert differing(other, other) == []
    assert "augment.waveform._target_" in differing(one, settings("augment=simulated"))
