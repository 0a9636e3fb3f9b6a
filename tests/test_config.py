"""Every mistake in a config is named with its key and the remedy, exit code 2, before torch is imported."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from spkexp import compose
from spkexp.compose import compose_config
from spkexp.config import check, config_folder
from spkexp.errors import ConfigError

CONF = config_folder()


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "spkexp.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def mistakes(*overrides: str, multirun: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose.check_all(list(overrides), multirun)
    return caught.value.mistakes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.epohs=3"], ["trainer.epohs: 'trainer' takes no 'epohs'; did you mean 'epochs'?"]),
        (["trainr.epochs=3"], ["trainr: the config takes no 'trainr'; did you mean 'trainer'?"]),
        (["model.encoder.chanels=8"], ["model.encoder.chanels: ECAPA takes no 'chanels'; did you mean 'channels'?"]),
        (
            ["+model.chanels=1"],
            ["model.chanels: SpeakerModel takes no 'chanels'; did you mean 'model.encoder.channels'?"],
        ),
        (["+trainer.epohs=3"], ["trainer.epohs: 'trainer' takes no 'epohs'; did you mean 'epochs'?"]),
        (["trainer.epochs=abc"], ["trainer.epochs: expected an integer, got 'abc'"]),
        (["trainer.epochs=1.5"], ["trainer.epochs: expected an integer, got 1.5"]),
        (["model.encoder.channels=abc"], ["model.encoder.channels: expected an integer, got 'abc'"]),
        (["trainer.optimizer.lr=fast"], ["trainer.optimizer.lr: expected a number, got 'fast'"]),
        (["loss.scale=true"], ["loss.scale: expected a number, got True"]),
        (["data.resample=1"], ["data.resample: expected true or false, got 1"]),
        (["data.crop_seconds=0"], ["data.crop_seconds: must be >= 0.1, got 0"]),
        (["data.manifest=x.csv"], ["data.manifest: this corpus has utterances of its own; add data=manifest"]),
        (["~loss._target_"], ["loss: it needs a '_target_' that names a class"]),
        (["+augment.waveform.foo=1"], ["augment.waveform: it needs a '_target_' that names a class"]),
        (["augment.waveform=foo"], ["augment.waveform: expected a mapping, got 'foo'"]),
        (
            ["augment=simulated", "+augment.waveform.steps.noisee.probability=0.1"],
            ["augment.waveform.steps.noisee: no such part; did you mean 'noise'? a new one needs a '_target_'"],
        ),
        (
            ["augment=simulated", "augment.waveform.steps.noisee.probability=0.1"],
            ["augment.waveform.steps.noisee: no such part; did you mean 'noise'? a new one needs a '_target_'"],
        ),
        (
            ["augment=simulated", "augment.waveform.steps.noise=0"],
            ["augment.waveform.steps.noise: no such part; there are reverb; a new one needs a '_target_'"],
        ),
        (
            ["augment=simulated", "augment.waveform.steps=null"],
            ["augment.waveform.steps: expected a mapping of nodes by name, got null; leave one out by"],
        ),
        (
            ["augment=simulated", "augment.waveform.steps.reverb.source=null"],
            ["augment.waveform.steps.reverb.source: expected a node with a '_target_' that names a class, got null"],
        ),
        (
            ["augment=simulated", "augment.waveform.steps.noise.kinds.coloured.source=foo"],
            ["augment.waveform.steps.noise.kinds.coloured.source: expected a node with a '_target_'"],
        ),
        (
            ["augment=simulated", "+augment.waveform.steps.noise.kinds.x.weight=1"],
            ["augment.waveform.steps.noise.kinds.x: no such part; there are coloured; a new one needs a '_target_'"],
        ),
        (["+model.encoder._partial_=true"], ["model.encoder._partial_: is Hydra's, and spkexp has no use for it"]),
        (["trainer.epochs='${foo.bar}'"], ["trainer.epochs: Interpolation key 'foo.bar' not found"]),
        (["model.encoder.channels=-1"], ["model.encoder.channels: must be > 0, got -1"]),
        (["data.split.seed=-1"], ["data.split.seed: must be >= 0, got -1"]),
        (["data.max_bad_fraction=1.5"], ["data.max_bad_fraction: must be <= 1, got 1.5"]),
        (["data=manifest"], ["data.manifest: missing; give it as data.manifest=VALUE"]),
        (["data.manifest="], ["data.manifest: is empty; give a value or leave it out"]),
        (["~loss.margin"], ["loss.margin: missing; AAMSoftmax needs it, so set margin in the group's yaml"]),
        (["model=ecpa"], ["model=ecpa: no such option; did you mean 'ecapa'? conf/model has bimamba, campplus"]),
        (["optimiser=adam"], ["optimiser"]),
        (["trainer/optimiser=adam"], ["trainer/optimiser: no such config group; did you mean 'trainer/optimizer'?"]),
        (["trainer.precision=fp8"], ["trainer.precision: must be one of fp32, bf16, fp16; got 'fp8'"]),
        (
            ["model.encoder._target_=spkexp.models.ecapa.EKAPA"],
            ["model.encoder._target_: module 'spkexp.models.ecapa' has no 'EKAPA', but"],
        ),
        (
            ["model.encoder._target_=nowhere.X"],
            ["model.encoder._target_: nowhere.X is no class of spkexp; if you trust that code: trust=[nowhere]"],
        ),
        (["model.encoder=null"], ["model.encoder: missing; it needs a '_target_' that names a class"]),
        (["loss=[1,2]"], ["loss: expected the name of a file in conf/loss, got [1,2]"]),
        (["trainer=null"], ["trainer: expected the name of a file in conf/trainer, got null"]),
        (["epochs"], ["epochs: expected KEY=VALUE"]),
        (["data.filter=a=b'"], ["data.filter: cannot read"]),
        (["seed=0,1"], ["seed: seed=0,1 is a sweep; add -m to run it"]),
        (
            ["trainer.epohs=3", "data.crop_seconds=-1", "model=ecpa"],
            ["model=ecpa", "data.crop_seconds: must be >= 0.1, got -1", "trainer.epohs: 'trainer' takes no"],
        ),
    ],
)
def test_mistake_is_named(overrides: list[str], expected: list[str]) -> None:
    found = mistakes(*overrides)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_misspelt_key_in_a_group_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "conf"
    subprocess.run(["cp", "-r", str(CONF), str(conf)], check=True)
    for file, old, new in (
        ("model/ecapa.yaml", "  res2net_scale:", "  res2net_scal:"),
        ("trainer/default.yaml", "accumulate:", "acumulate:"),
    ):
        text = (conf / file).read_text()
        assert old in text
        (conf / file).write_text(text.replace(old, new, 1))
    monkeypatch.setattr(compose, "config_folder", lambda: conf)
    assert mistakes() == [
        "trainer.accumulate: missing; give it as trainer.accumulate=VALUE",
        "trainer.acumulate: 'trainer' takes no 'acumulate'; did you mean 'accumulate'?",
        "model.encoder.res2net_scal: ECAPA takes no 'res2net_scal'; did you mean 'res2net_scale'?",
        "model.encoder.res2net_scale: missing; ECAPA needs it, so set res2net_scale in the group's yaml "
        "or on the command line",
    ]


def test_all_jobs_of_a_sweep_are_checked_first() -> None:
    found = mistakes("model=ecapa_small,xvectr", "seed=0,-1", multirun=True)
    assert found == [
        "seed: must be >= 0, got -1",
        "model=xvectr: no such option; did you mean 'xvector'? conf/model has "
        + ", ".join(sorted(p.stem for p in (CONF / "model").glob("*.yaml"))),
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=glob(zzz*)"], "model: glob(zzz*) matches no file; conf/model has bimamba, campplus"),
        (["seed=glob(*)"], "seed: glob(*) picks files of conf/, and conf/seed is no group; list the values: seed=A,B"),
        (["seed=range(3,1)"], "seed: range(3,1) is empty; give at least one value"),
        (
            ["trainer.optimizer.lr=interval(0.1,1)"],
            "trainer.optimizer.lr: a sweep cannot try all of interval(0.1,1); list values",
        ),
        (["seed=choice(1,-2)"], "seed: must be >= 0, got -2"),
        (["model=glob([xv*,ecapa_s*],exclude=e*)", "seed=x"], "seed: expected an integer, got 'x'"),
        (["hydra/launcher=joblib,ray"], "hydra/launcher: is the same for all jobs of a sweep; give one value"),
        (["hydra/launcher=jobli"], "hydra/launcher=jobli: no such option; did you mean 'joblib'?"),
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_job=3"],
            "hydra.launcher.n_job: no such setting; did you mean 'hydra.launcher.n_jobs'?",
        ),
        (["data.num_workers=0,4"], "jobs 0 and 1 differ in data.num_workers alone"),
        (["hydra/sweeper=optuna", "trainer.nproc=1,2"], "jobs 0 and 1 differ in trainer.nproc alone"),
        (["seed=1,1", "resume=never"], "seed: 1 is there twice; leave one out"),
        (
            ["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "seed=0,1"],
            "hydra.launcher.nodes=2 needs trainer.nproc=N",
        ),
        (
            ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=4", "trainer.nproc=4"],
            "hydra.launcher.tasks_per_node: 4 tasks of a node would each train; leave it at 1, trainer.nproc=N starts",
        ),
        (["hydra/sweeper=optuna", "data.crop_seconds=interval(0,3)"], "data.crop_seconds: must be >= 0.1, got 0"),
    ],
)
def test_sweeps_that_cannot_be(overrides: list[str], expected: str) -> None:
    (found,) = mistakes(*overrides, multirun=True)
    assert found.startswith(expected)


def test_sweeps_that_may_be(tmp_path: Path) -> None:
    compose.check_all(["data.num_workers=0,4", "resume=never"], True)
    compose.check_all(["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "trainer.nproc=8"], True)
    # Which launcher and sweeper it is stands in whatever file chose it.
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "search.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: optuna\n  - override /hydra/launcher: joblib\n"
    )
    compose.check_all(["preset=search", "data.crop_seconds=interval(1,3)"], True, str(tmp_path))
    assert (compose.option("hydra/sweeper"), compose.option("hydra/launcher")) == ("optuna", "joblib")


def test_configs_of_another_folder(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    assert compose.check_all(["preset=mine"], False, str(tmp_path)).seed == 5
    with pytest.raises(ConfigError, match="preset=mine: no such option"):
        compose.check_all(["preset=mine"], False)
    with pytest.raises(ConfigError, match="--config-dir: "):
        compose.check_all([], False, str(tmp_path / "nowhere"))


def test_command_exits_2_in_time_without_torch() -> None:
    begin = time.monotonic()
    done = run("trainer.epohs=3", "data.crop_seconds=0")
    assert time.monotonic() - begin < 3
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines[0] == "spkexp: 2 mistakes in the config"
    assert len(lines) == 3
    assert not [line for line in done.stderr.splitlines() if line.endswith((" torch", " polars"))]


def test_help_and_printed_config() -> None:
    page = run("--help")
    assert page.returncode == 0
    for heading in ("SYNOPSIS", "GROUPS", "COMMON KEYS", "EXIT STATUS", "EXAMPLES"):
        assert heading in page.stdout
    assert max(map(len, page.stdout.splitlines())) <= 80
    printed = run("--cfg", "job", "--resolve", "seed=7")
    cfg = yaml.safe_load(printed.stdout)
    assert cfg["seed"] == 7
    assert cfg["names"] == {"model": "ecapa_small", "data": "synthetic"}


@pytest.mark.parametrize("group", ["model", "data", "augment", "loss", "trainer/optimizer", "trainer/schedule"])
def test_every_group_file_composes_and_passes(group: str) -> None:
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names
    for name in names:
        cfg = compose_config([f"{group}={name}"])
        try:
            check(cfg)
            found = []
        except ConfigError as error:
            found = error.mistakes
        # What a user has to give (data.root, data.manifest) may be missing, nothing else may be wrong.
        assert [mistake for mistake in found if "missing; give it as" not in mistake] == []
