"""A search through Hydra's own machinery: what is drawn, what is told, and what a second start goes on with."""

import json
import logging
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL

from hydra_plugins.spkexp_optuna import _search
from hydra_plugins.spkexp_optuna._space import Space, read
from hydra_plugins.spkexp_optuna._study import name_of
from spkexp.config import config_folder
from spkexp.errors import ConfigError
from spkexp.pruning import PRUNER, RETRY_OF, PrunerSettings, Pruning, masked, open_storage
from spkexp.records import Ticket
from spkexp.sections import Search
from tests.conftest import Done

LR, MARGIN, CHANNELS = "trainer.optimizer.lr", "loss.margin", "model.encoder.channels"


def space_of(*overrides: str) -> Space:
    return read(list(overrides), None)


# What is searched


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("interval(0,0.4)", FloatDistribution(0, 0.4)),
        ("interval(0,4)", FloatDistribution(0, 4)),
        ("tag(log, interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(2,9))", IntDistribution(2, 9)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(64,257,step=64)", IntDistribution(64, 256, step=64)),
        ("range(64,256,step=64)", IntDistribution(64, 192, step=64)),  # Hydra leaves the end out
        ("range(9,2,-3)", IntDistribution(3, 9, step=3)),
        ("range(0,1,0.1)", FloatDistribution(0, 0.9, step=0.1)),
        ("tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("choice(32,64)", CategoricalDistribution(["32", "64"])),
        ("softmax,aam_softmax,softmax", CategoricalDistribution(["softmax", "aam_softmax"])),
        ("[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
        ("'a b',null,true", CategoricalDistribution(["'a b'", "null", "True"])),
    ],
)
def test_sweeps_become_distributions(value: str, expected: object) -> None:
    assert space_of(f"key={value}").distributions == {"key": expected}


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ("range(3,3)", "range(3,3) has no values"),
        ("interval(4,1)", "has no values; the lower end comes first"),
        ("tag(log,interval(0,1))", "a logarithmic scale begins above 0"),
        ("tag(log,range(2,9,2))", "integers from 1 in steps of 1"),
        ("tag(log,choice(1,2))", "has no scale"),
        ("tag(lag,interval(1,2))", "tagged lag; the only tag is log"),
        ("interval(0,inf)", "not finite"),
        ("3", "no key is searched"),
    ],
)
def test_what_cannot_be_searched_is_named(value: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(f"key={value}")
    assert mistake in str(caught.value)


def test_a_value_is_read_back_exactly_and_the_last_override_of_a_key_counts() -> None:
    space = space_of("a=interval(0,1)", "seed=3", "b=x,'y z'", "+c=range(0,1,0.1)", "a=interval(0,2)", "b=1")
    assert space.fixed == ("seed=3", "b=1")
    point = {"a": 0.1 + 0.2, "+c": 0.1 * 3}
    overrides = space.overrides(point)
    assert overrides == ["seed=3", "b=1", "+c=0.3", "a=0.30000000000000004"]
    assert OverridesParser.create().parse_override(overrides[3]).value() == 0.1 + 0.2


def test_every_point_of_a_grid_once() -> None:
    space = space_of("a=1,2,3", "b=range(0,1,0.25)")
    points = [tuple(point.values()) for point in space.points(seed=5)]
    assert sorted(points) == [(a, b) for a in "123" for b in (0, 0.25, 0.5, 0.75)]
    assert points == [tuple(point.values()) for point in space.points(seed=5)] != sorted(points)
    assert space.size() == 12
    assert space_of("a=1,2", "b=interval(0,1)").size() is None
    assert list(space.corners()) == [
        {"a": "1", "b": 0.0}, {"a": "2", "b": 0.0}, {"a": "3", "b": 0.0}, {"a": "1", "b": 0.75},
    ]  # fmt: skip


def test_the_name_is_that_of_ranges_and_overrides() -> None:
    name = name_of(space_of("a=1,2", "seed=1", "trainer.epochs=3"))
    assert name == name_of(space_of("trainer.epochs=3", "a=choice(1,2)", "seed=1", "tracking.wandb=off", "resume=auto"))
    others = (("a=1,3", "seed=1", "trainer.epochs=3"), ("a=1,2", "seed=2", "trainer.epochs=3"))
    assert name not in {name_of(space_of(*other)) for other in others}


# The search

Start = Callable[..., Done]
Task = Callable[[DictConfig], Any]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Start]:
    """start(task, OVERRIDE, …) is a search with `task` as its job, in a folder with blanks in its name."""
    folder = tmp_path / "a folder ü {x} 'y'"
    folder.mkdir()
    monkeypatch.chdir(folder)
    root, package = logging.getLogger(), logging.getLogger("spkexp")
    handlers, levels = list(root.handlers), (root.level, package.level)

    def run(task: Task, *overrides: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["search", "-m", "hydra/sweeper=optuna", *overrides])
        capsys.readouterr()
        code = 0
        try:
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(task)()
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    yield run
    root.handlers[:] = handlers
    for logger, level in zip((root, package), levels, strict=True):
        logger.setLevel(level)


class Job:
    """A cheap job, best at margin 0.2 and rate 1e-3; it keeps (trial, margin) of each call."""

    __name__ = "job"

    def __init__(self, fails: Callable[[int], bool] = lambda trial: False, status: str = "finished") -> None:
        self.fails, self.status, self.calls = fails, status, list[tuple[int, float]]()

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        margin, rate = cfg.loss.margin, cfg.trainer.optimizer.lr
        self.calls.append((cfg.search.trial, margin))
        if self.fails(cfg.search.trial):
            raise RuntimeError("no space left\non device")
        value = (margin - 0.2) ** 2 + (math.log10(rate) + 3) ** 2
        pruning = Pruning(Search.model_validate(OmegaConf.to_container(cfg.search)))
        for epoch in (1, 2, 3):
            if pruning.report(epoch, value + 0.1 / epoch):
                return {"status": "pruned", "value": value, "error": None, "run_dir": f"runs/{cfg.search.trial}"}
        return {"status": self.status, "value": value, "error": None, "run_dir": f"runs/{cfg.search.trial}"}

    @property
    def trials(self) -> list[int]:
        return [trial for trial, _ in self.calls]


def only_study() -> optuna.Study:
    (file,) = Path("runs", "sweeps").glob("*/study.db")
    storage = open_storage(optuna_url(file))
    return optuna.load_study(study_name=None, storage=storage)


def optuna_url(file: Path) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(file.absolute())).render_as_string()


SPACE = (f"{MARGIN}=interval(0,0.4)", f"{LR}=tag(log, interval(1e-4,1e-2))")


def test_a_search_finds_stops_and_goes_on(start: Start) -> None:
    job = Job()
    options = ("hydra.sweeper.sampler_startup=3", "hydra.sweeper.pruner_startup=1", "hydra.sweeper.n_jobs=2")
    done = start(job, *SPACE, *options, "hydra.sweeper.n_trials=5")
    assert done.code == 0
    assert job.trials == list(range(5))
    assert len(set(job.calls)) == 5
    study = only_study()
    best = study.best_trial
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    # The warm-up lets each trial pass its first epoch, and what a stopped one was worth is its last report.
    assert pruned
    assert all(trial.last_step >= 2 for trial in pruned)
    assert all(trial.value == trial.intermediate_values[trial.last_step] for trial in pruned)
    assert all(trial.value > best.value for trial in pruned)
    assert best.user_attrs["run_dir"] == f"runs/{best.number}"
    assert f"{5 - len(pruned)} finished, {len(pruned)} stopped early, 0 failed of 5 trials" in done.out
    assert f"best: trial {best.number}, {best.value:.6g}" in done.out
    assert f"run folder: runs/{best.number}" in done.out
    assert f"{MARGIN}={best.params[MARGIN]!r} {LR}={best.params[LR]!r}" in done.out

    again = start(job, *SPACE, *options, "hydra.sweeper.n_trials=5")
    assert again.code == 0
    assert "n_trials=5 reached before" in again.err
    assert f"best: trial {best.number}" in again.out
    more = start(job, *SPACE, *options, "hydra.sweeper.n_trials=6")
    assert "goes on: 5 of 6 trials done, 0 to resume, 0 failed" in more.err
    assert job.trials == list(range(6))
    assert len(set(job.calls)) == 6


@pytest.mark.slow
def test_an_interrupted_search_draws_what_an_uninterrupted_one_draws(start: Start) -> None:
    options = ("hydra.sweeper.sampler_startup=1", "hydra.sweeper.pruner=none")
    whole, parts = Job(), Job()
    start(whole, *SPACE, *options, "hydra.sweeper.n_trials=3", "hydra.sweeper.study_name=whole/one")
    start(parts, *SPACE, *options, "hydra.sweeper.n_trials=1", "hydra.sweeper.study_name=parts")
    start(parts, *SPACE, *options, "hydra.sweeper.n_trials=3", "hydra.sweeper.study_name=parts")
    assert parts.calls == whole.calls
    assert len(whole.calls) == 3


KILLED = """
import json, os, signal, sys
import hydra
from spkexp.config import config_folder

def main(cfg):
    with open("calls", "a") as file:
        file.write(json.dumps([cfg.search.trial, cfg.loss.margin]) + "\\n")
    if cfg.search.trial == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"status": "finished", "value": cfg.loss.margin, "error": None, "run_dir": None}

hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(main)()
"""


def test_a_search_that_is_killed_goes_on_with_the_trial_that_ran(start: Start) -> None:
    Path("killed.py").write_text(KILLED, encoding="utf-8")
    space = (SPACE[0], "hydra.sweeper.n_trials=3", f"{LR}=0.001")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "killed.py", "-m", "hydra/sweeper=optuna", *space]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    calls = [tuple(json.loads(line)) for line in Path("calls").read_text(encoding="utf-8").splitlines()]
    assert [trial for trial, _ in calls] == [0, 1]
    # A kill while a trial is drawn leaves one without parameters; it is no trial.
    half = only_study().ask().number
    job = Job()
    done = start(job, *space)
    assert "goes on: 1 of 3 trials done, 1 to resume" in done.err
    assert job.calls[0] == calls[1]  # the same number and parameters, so that the run goes on from its checkpoint
    assert job.trials == [1, half + 1]
    assert "3 finished, 0 stopped early, 0 failed of 3 trials" in done.out
    assert only_study().trials[half].state == TrialState.FAIL


def test_failures_do_not_stop_others_and_are_run_again_under_their_number(start: Start) -> None:
    options = (*SPACE, "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner=none")
    first = Job(fails=lambda trial: trial == 1)
    done = start(first, *options)
    assert done.code == 1
    assert first.trials == [0, 1, 2]
    assert "2 finished, 0 stopped early, 1 failed of 3 trials" in done.out
    assert "trial 1 failed: no space left on device" in done.out
    kept = Job()
    assert start(kept, *options, "hydra.sweeper.retry_failed=false").code == 0
    assert kept.calls == []
    second = Job()
    done = start(second, *options)
    assert done.code == 0
    assert "goes on: 2 of 3 trials done, 0 to resume, 1 failed ones to run again" in done.err
    assert second.calls == [first.calls[1]]
    assert "3 finished, 0 stopped early, 0 failed of 3 trials" in done.out
    # What the run reported went to the trial that runs it again; the failed one is closed.
    again = only_study().trials[-1]
    assert again.user_attrs[RETRY_OF] == 1
    assert sorted(again.intermediate_values) == [1, 2, 3]
    third = Job()
    start(third, *options)
    assert third.calls == []


def test_too_many_failures_end_the_search(start: Start) -> None:
    job = Job(fails=lambda trial: trial >= 1)
    done = start(job, *SPACE, "hydra.sweeper.n_trials=9", "hydra.sweeper.max_failures=1")
    assert done.code == 1
    assert job.trials == [0, 1]
    assert "stopped after hydra.sweeper.max_failures=1" in done.err


def test_a_job_without_a_value_has_failed(start: Start) -> None:
    def job(cfg: DictConfig) -> dict[str, Any]:
        value = [None, math.nan][cfg.search.trial]
        return {"status": "finished", "value": value, "error": None, "run_dir": "runs/x"}

    done = start(job, *SPACE, "hydra.sweeper.n_trials=2")
    assert done.code == 1
    assert "trial 0 failed: it has no validation trials" in done.out
    assert "trial 1 failed: its value is nan (runs/x)" in done.out
    assert "no trial has finished" in done.out


@pytest.mark.parametrize("how", ["interrupt", "status"])
def test_a_stopped_trial_stays_to_be_resumed(start: Start, how: str) -> None:
    def interrupted(cfg: DictConfig) -> dict[str, Any]:
        if how == "interrupt":
            raise KeyboardInterrupt
        return {"status": "stopped", "value": None, "error": None, "run_dir": None}

    done = start(interrupted, *SPACE, "hydra.sweeper.n_trials=1")
    assert done.code == (130 if how == "interrupt" else 143)
    assert "interrupted; the same command goes on with it" in done.err
    if how == "status":  # of the sweep that a cluster's warning stopped
        folder = f"hydra.sweep.dir={Path('sweep').absolute().name}"
        Path("sweep").mkdir()
        Ticket("s", [], "h", 1, True, os.EX_TEMPFAIL).write(Path("sweep"))
        assert start(interrupted, *SPACE, "hydra.sweeper.n_trials=1", folder).code == os.EX_TEMPFAIL
    job = Job()
    assert "0 of 1 trials done, 1 to resume" in start(job, *SPACE, "hydra.sweeper.n_trials=1").err
    assert job.trials == [0]


def test_a_grid_is_tried_once_whatever_the_number_of_trials(start: Start) -> None:
    job = Job()
    space = (f"{MARGIN}=0.1,0.2", f"{LR}=range(0.001,0.002,0.0005)", "hydra.sweeper.pruner=none")
    start(job, *space, "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=1")
    done = start(job, *space, "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=50")
    assert done.code == 0
    assert "every combination has been tried" in done.err
    assert len(job.calls) == 4
    assert sorted(margin for _, margin in job.calls) == [0.1, 0.1, 0.2, 0.2]
    assert "4 finished" in done.out


@pytest.mark.slow
def test_a_sampler_that_repeats_itself_is_not_heeded(start: Start) -> None:
    job = Job()
    done = start(job, f"{MARGIN}=0.1,0.2", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=9")
    assert sorted(margin for _, margin in job.calls) == [0.1, 0.2]
    assert "2 finished" in done.out
    assert "every combination has been tried" in done.err


def test_params_of_the_config_are_searched_and_the_command_line_comes_after(start: Start) -> None:
    job = Job()
    params = f'hydra.sweeper.params={{{MARGIN}: "interval(0.3,0.4)", {LR}: "interval(0.001,0.002)", seed: 3}}'
    assert start(job, params, f"{LR}=0.005", "hydra.sweeper.n_trials=1").code == 0
    assert all(0.3 <= margin <= 0.4 for _, margin in job.calls)
    assert list(only_study().best_params) == [MARGIN]
    wrong = start(job, f'hydra.sweeper.params={{{MARGIN}: "interval(0,4)", loss: "aam_softmax,softmax"}}')
    assert wrong.code == 2
    assert "Could not override 'loss.margin'" in wrong.err  # softmax has none


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["qmc", "gp"])
def test_other_samplers(start: Start, sampler: str) -> None:
    pytest.importorskip("scipy")
    job = Job()
    options = (f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.sampler_startup=2", "hydra.sweeper.pruner=none")
    for n_trials in (2, 10):
        done = start(job, *SPACE, *options, f"hydra.sweeper.n_trials={n_trials}")
        assert done.code == 0
    assert len({(trial.params[MARGIN], trial.params[LR]) for trial in only_study().trials}) == len(job.calls) == 10
    assert "importance: " in done.out


# Passwords


class Server(SQLiteDialect_pysqlite):
    """A database that is asked for a password: a file, as far as this machine is concerned."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        assert url.password == PASSWORD
        return super().create_connect_args(URL.create("sqlite", database=url.database))


registry.register("server", __name__, "Server")
PASSWORD = "geheim-7"


def test_a_password_stands_in_one_file_that_nobody_else_reads(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"server://me:{PASSWORD}@host/{tmp_path / 'study.db'}"
    monkeypatch.setattr(sys, "orig_argv", ["python", f"hydra.sweeper.storage={url}"])
    job = Job()

    def stores(cfg: DictConfig) -> dict[str, Any]:
        """What runs leave behind, and what launchers hand to other processes."""
        kept = {"argv": sys.argv, "orig": sys.orig_argv, "config": OmegaConf.to_container(cfg)}
        kept["hydra"] = OmegaConf.to_container(HydraConfig.instance().cfg, throw_on_missing=False)
        Path(f"kept-{cfg.search.trial}.json").write_text(json.dumps(kept, default=str), encoding="utf-8")
        return job(cfg)

    command = (stores, *SPACE, f"hydra.sweeper.storage='{url}'", "hydra.sweeper.pruner=none")
    done = start(*command, "hydra.sweeper.n_trials=2")
    assert done.code == 0, done.err
    assert job.trials == [0, 1]
    assert PASSWORD not in done.out + done.err
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert {"kept-0.json", "kept-1.json"} <= {file.name for file in files}
    assert "server://me:***@host/" in Path("kept-0.json").read_text(encoding="utf-8")
    (secret,) = [file for file in files if PASSWORD.encode() in file.read_bytes()]
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    study = optuna.load_study(study_name=None, storage=open_storage(url))
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[1, 2, 3]] * 2  # the jobs found it
    assert "n_trials=2 reached before" in start(*command, "hydra.sweeper.n_trials=2").err
    monkeypatch.setenv("STUDY", url)
    by_name = (*command, "hydra.sweeper.n_trials=2", "hydra.sweeper.storage=${oc.env:STUDY}")
    assert "n_trials=2 reached before" in start(*by_name).err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=postgresql+psycopg://u:p:w@h:5/d?sslmode=x", "a=postgresql+psycopg://u:***@h:5/d?sslmode=x"),
        ("'mysql://:p%40/w@h'", "'mysql://:***@h'"),
        ("pg://h/d?user=u&password=x&b=1", "pg://h/d?user=u&password=***&b=1"),
        ("sqlite:////a:b/c@d.db", "sqlite:////a:b/c@d.db"),
        ("http://h:80/a", "http://h:80/a"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hydra.sweeper.sampler=tpee"], "hydra.sweeper.sampler: must be one of tpe, random, grid, qmc, gp, cmaes"),
        (["hydra.sweeper.n_trials=many", "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs: must be > 0"),
        (["hydra.sweeper.sampler=grid"], "an interval has no grid"),
        (["hydra.sweeper.storage=foo://x"], "foo://x cannot be used"),
        (["hydra.sweeper.storage=postgresql://u:hidden@localhost/x"], "postgresql://u:***@localhost/x cannot be used"),
        (["hydra.sweeper.storage='sqlite://'"], "cannot reach sqlite in memory"),
        (["hydra.sweeper.storage=rubbish.db"], "file is not a database"),
        (
            ["hydra.sweeper.storage=/proc/no/study.db"],
            "cannot be written: No such file or directory; set hydra.sweeper.storage=FILE",
        ),
    ],
)
def test_bad_settings_are_named(start: Start, options: list[str], message: str) -> None:
    Path("rubbish.db").write_text("rubbish " * 100, encoding="utf-8")
    job = Job()
    done = start(job, *SPACE, *options)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert "hidden" not in done.err
    assert job.calls == []


def test_a_sampler_says_which_package_it_needs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_search.NEEDS, "cmaes", "no_such_package")
    done = start(Job(), *SPACE, "hydra.sweeper.sampler=cmaes")
    assert done.code == 2
    assert "cmaes needs no_such_package; pip install no_such_package" in done.err


def test_without_optuna_it_says_how_to_install_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = start(Job(), *SPACE)
    assert done.code == 2
    assert "pip install 'spkexp[optuna]'" in done.err


def test_a_study_keeps_to_its_ranges_and_is_one_search_at_a_time(start: Start) -> None:
    options = ("hydra.sweeper.study_name=mine", "hydra.sweeper.n_trials=1", "hydra.sweeper.storage='here it is.db'")
    seen = []

    def job(cfg: DictConfig) -> dict[str, Any]:
        # Locks hold between processes: another one is refused while this job runs.
        command = [sys.executable, "-c", LOCK, ".mine.lock"]
        seen.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
        return {"status": "finished", "value": 0.5, "error": None, "run_dir": None}

    assert start(job, *SPACE, *options).code == 0
    assert seen == ["BlockingIOError"]
    assert Path("here it is.db").is_file()
    other = start(job, f"{MARGIN}=interval(0,0.3)", *options, "seed=4", "tracking.wandb=off")
    assert other.code == 2
    assert "mine is another search" in other.err
    assert f"{MARGIN}: numbers from 0.0 to 0.4 there, numbers from 0.0 to 0.3 here" in other.err
    assert "seed=4: only here" in other.err
    assert "tracking" not in other.err


LOCK = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    print(type(error).__name__)
"""


# A run's side


def study_in(folder: Path, pruner: PrunerSettings, others: list[list[float]]) -> tuple[optuna.Study, Search]:
    """A study with finished trials that reported `others`, and a trial of its own to ask about."""
    url = optuna_url(folder / "a study.db")
    study = optuna.create_study(storage=open_storage(url), study_name="s", direction="minimize")
    study.set_user_attr(PRUNER, pruner.as_attribute())
    for values in others:
        trial = study.ask()
        for step, value in enumerate(values, 1):
            trial.report(value, step)
        study.tell(trial, values[-1])
    return study, Search(storage=url, study="s", trial=study.ask().number)


def test_outside_a_search_nothing_is_pruned() -> None:
    assert Pruning(None).report(1, 1.0) is False


def test_the_median_is_that_of_the_same_epoch_after_the_warm_up(tmp_path: Path) -> None:
    others = [[0.5, 0.4, 0.3], [0.5, 0.2, 0.1], [0.5, 0.3, 0.2]]
    study, search = study_in(tmp_path, PrunerSettings("median", 3, 1, 3), others)
    pruning = Pruning(search)
    assert pruning.report(1, 0.9) is False  # warm-up
    assert pruning.report(2, 0.29) is False  # below the median, 0.3
    assert pruning.report(3, 0.29) is True  # above 0.2
    assert study.trials[search.trial].intermediate_values == {1: 0.9, 2: 0.29, 3: 0.29}


def test_a_step_that_was_reported_before_keeps_its_value(tmp_path: Path) -> None:
    study, search = study_in(tmp_path, PrunerSettings("none", 0, 0, 3), [])
    assert Pruning(search).report(1, 0.5) is False
    assert Pruning(search).report(1, 0.7) is False
    assert Pruning(search).report(2, 0.6) is False
    assert study.trials[search.trial].intermediate_values == {1: 0.5, 2: 0.6}


def run_trial(study: optuna.Study, search: Search, value: float) -> int | None:
    """Report `value` in each of four epochs as a run does; the epoch in which it is stopped."""
    number = study.ask().number
    pruning = Pruning(search.model_copy(update={"trial": number}))
    for epoch in range(1, 5):
        if pruning.report(epoch, value):
            study.tell(number, state=TrialState.PRUNED)
            return epoch
    study.tell(number, value)
    return None


def test_halving_lets_one_of_three_go_on(tmp_path: Path) -> None:
    study, search = study_in(tmp_path, PrunerSettings("halving", 0, 1, 3), [])
    # Worked by hand: of one to five values the best alone is promoted. The first rung is the epoch after the warm-up.
    assert [run_trial(study, search, value) for value in (0.4, 0.3, 0.35, 0.2)] == [None, None, 2, None]


def test_hyperband_stops_bad_trials_once_it_knows_how_long_they_are(tmp_path: Path) -> None:
    study, search = study_in(tmp_path, PrunerSettings("hyperband", 0, 0, 2), [])
    assert run_trial(study, search, 0.1) is None
    stopped = [run_trial(study, search, 0.5 + 0.01 * trial) for trial in range(4)]
    assert any(stopped)
    assert study.best_value == 0.1


def test_a_database_out_of_reach_warns_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study, search = study_in(tmp_path, PrunerSettings("median", 0, 0, 3), [[0.1, 0.1]])
    missing = tmp_path / "gone.db"
    for wrong in (
        search.model_copy(update={"storage": optuna_url(missing)}),
        search.model_copy(update={"study": "other"}),
        search.model_copy(update={"trial": 99}),
        search.model_copy(update={"storage": "postgresql://localhost:1/x"}),
    ):
        caplog.clear()
        pruning = Pruning(wrong)
        assert [pruning.report(step, 9.0) for step in (1, 2)] == [False, False]
        assert len(caplog.records) == 1
        assert "will not be stopped early" in caplog.text
    assert not missing.exists()
    caplog.clear()
    pruning = Pruning(search)
    study.tell(search.trial, state=TrialState.FAIL)  # closed by somebody else
    assert pruning.report(1, 9.0) is False
    assert len(caplog.records) == 1


# The real thing


@pytest.mark.slow
def test_trainings_are_searched_killed_and_resumed(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "spkexp.train", "-m", "hydra/sweeper=optuna", f"{LR}=tag(log, interval(1e-4,1e-2))",
        f"{MARGIN}=interval(0,0.4)", f"{CHANNELS}=range(32,65,step=32)", "trainer.epochs=3", "trainer.batch_size=16",
        "trainer.checkpoint_steps=2", "data.corpus.train_speakers=12", "data.corpus.train_utterances=8", "augment=none",
        "data.num_workers=0", "scoring.bootstrap=0", "hydra.sweeper.n_trials=4", "hydra.sweeper.pruner_startup=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 500
        while len(list(tmp_path.glob("runs/*/*/results.json"))) < 1 or not in_the_middle(tmp_path):
            assert first.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        first.wait()
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stderr
    assert "1 to resume" in second.stderr
    assert "resumed at step" in second.stderr
    assert "0 failed of 4 trials" in second.stdout
    configs = [OmegaConf.load(file) for file in tmp_path.glob("runs/*/*/config.yaml")]
    assert sorted(config.search.trial for config in configs) == [0, 1, 2, 3]  # one run folder a trial
    third = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert third.returncode == 0
    assert "reached before" in third.stderr


def in_the_middle(folder: Path) -> bool:
    """Whether a run has a checkpoint and no results yet."""
    return any(not (file.parents[1] / "results.json").exists() for file in folder.glob("runs/*/*/checkpoints/last"))
