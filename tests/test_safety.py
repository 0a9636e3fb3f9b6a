"""Nothing that comes from elsewhere is executed, waited for, or given more memory than it has bytes for."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from spkexp import archives, build, checkpoint, durable, foreign
from spkexp.arguments import Trust
from spkexp.compose import check_all, compose_config
from spkexp.data import audio, tar_index
from spkexp.data.manifest import read_table
from spkexp.errors import AudioError, ConfigError, UserError
from spkexp.resume import fingerprint
from spkexp.scoring.embedding_file import read_embeddings
from spkexp.sections import Name
from tests.audio_files import RATE, encode, integers, pcm, riff
from tests.conftest import Run
from tests.fuzz.targets import SMALL, small_model

ROOT = Path(__file__).parents[1]
GIGABYTE = 1 << 30


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is there once any of the payloads ran: also a module in the current folder that would be imported."""
    monkeypatch.chdir(tmp_path)
    struck = tmp_path / "struck"
    (tmp_path / "evilmodule.py").write_text(f"open({str(struck)!r}, 'w')\nclass X: pass\ndef f(*a, **k): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return struck


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a small trained model, without checksums: whoever made it can write those, too."""
    folder = tmp_path / "model ü"
    folder.mkdir()
    for name, content in small_model().items():
        if name != durable.SUMS:
            (folder / name).write_bytes(content)
    return folder


def changed(folder: Path, key: str, value: Any) -> None:
    """Write the config of `folder` with another value at the dotted `key`."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    node = config
    *parents, last = key.split(".")
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def payload(target: str, canary: Path) -> dict[str, Any]:
    return {"_target_": target, "command": f"touch '{canary}'"}


EVIL = ("os.system", "builtins.eval", "evilmodule.X", "subprocess.Popen", "spkexp.build.torch.hub.load", "torch.load")
EVIL += ("spkexp.models.ecapa.torch.hub.load", "torch.optim.adam.os.system")
# Where a class is named, where none should be, and inside of lists.
PLACES = ("model.encoder", "model", "loss", "trainer.optimizer", "data.corpus", "tracking.tags", "names.model")


@pytest.mark.parametrize("target", EVIL)
@pytest.mark.parametrize("place", PLACES)
def test_a_saved_config_names_spkexp_alone(model: Path, canary: Path, target: str, place: str) -> None:
    node: Any = payload(target, canary)
    changed(model, place, [1, [node]] if place == "tracking.tags" else node)
    with pytest.raises(UserError, match=rf"config.yaml: {place}.*_target_: .*{target}"):
        build.trained_model(model)
    assert not canary.exists()
    assert "evilmodule" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.encoder._partial_", True, "model.encoder._partial_: is Hydra's"),
        ("model.encoder._args_", [["touch", "x"]], "model.encoder._args_: is Hydra's"),
        ("model.features._recursive_", True, "model.features._recursive_: is Hydra's"),
        ("model.encoder._target_", "${seed}", r"model.encoder._target_: refused: \$\{…\}"),
        ("data.root", "${oc.env:HOME}", r"data.root: refused: \$\{…\}"),
        ("tracking.tags", ["${oc.decode:x}"], r"tracking.tags.0: refused: \$\{…\}"),
        ("model.encoder._target_", ["os.system"], "model.encoder._target_: expected the import path of a class"),
        ("model.encoder._target_", "spkexp.tracking.Tracker", "is no part of a model or of its training"),
        ("model.encoder._target_", "spkexp.models.speaker.nn.Module", "is not a class in a module"),
        ("model.encoder._target_", "spkexp.models.speaker.torch.nn.Module", "is not a class in a module"),
        ("model.encoder", 5, "model.encoder: missing"),
        ("model.encoder.channels", [4, 4, 4, 4, 10**12], "needs more memory than its weights would have"),
        ("model.embedding_size", 2**62, "describes no model|needs more memory"),
        ("model.encoder.channels", "x", "model.encoder.channels: expected a list"),
        ("model.pooling._target_", "spkexp.features.LogMel", "config.yaml: "),
        ("model.encoder.unknown", 1, "XVector takes no 'unknown'"),
    ],
)
def test_what_a_saved_config_cannot_hold(model: Path, canary: Path, key: str, value: Any, said: str) -> None:
    changed(model, key, value)
    with pytest.raises(UserError, match=said):
        build.trained_model(model)


def test_every_command_refuses_a_class_beside_the_model(model: Path, canary: Path, run_command: Run) -> None:
    """Also where the config trusts it itself: whom to trust is said on the command line."""
    (model / "evilmodule.py").write_text((model.parent / "evilmodule.py").read_text())
    changed(model, "loss", {"_target_": "evilmodule.X"})
    changed(model, "trust", ["evilmodule"])
    (model.parent / "a.wav").write_bytes(riff(pcm(), integers(RATE).tobytes()))
    recording = str(model.parent / "a.wav")
    lines = {
        "verify": [f"model={model}", recording, recording],
        "evaluate": [f"model={model}"],
        "train": [f"init_from='{model}'", f"run_dir='{model.parent}/new'", *SMALL, "trainer.max_steps=1"],
    }
    for command, arguments in lines.items():
        done = run_command(command, *arguments)
        assert done.code == 2, command
        assert "config.yaml: loss._target_: evilmodule.X is no class of spkexp" in done.err, command
        assert "trust=[evilmodule]" in done.err
    assert not canary.exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.encoder._target_=os.system"], "model.encoder._target_: os.system is no class of spkexp"),
        (["model.encoder._target_=evilmodule.X"], "if you trust that code: trust=[evilmodule]"),
        (["+tracking.tags=[{_target_:evilmodule.X}]"], "tracking.tags.0._target_: evilmodule.X is no class"),
        (["+a=evilmodule.X", "model.encoder._target_=${a}"], "model.encoder._target_: evilmodule.X is no class"),
        (["augment.waveform={_target_:builtins.eval}"], "augment.waveform._target_: builtins.eval is no class"),
        (["+model.encoder._partial_=true"], "model.encoder._partial_: is Hydra's"),
        (["+hydra.callbacks.x._target_=evilmodule.f"], "hydra.callbacks.x._target_: evilmodule.f is no launcher"),
        (["hydra.sweeper._target_=evilmodule.f"], "hydra.sweeper._target_: evilmodule.f is no launcher"),
    ],
)
def test_a_composed_config_names_spkexp_alone(run_command: Run, canary: Path, overrides: list[str], said: str) -> None:
    done = run_command("train", *overrides)
    assert done.code == 2
    assert said in done.err
    assert not canary.exists()
    assert "evilmodule" not in sys.modules


def preset(folder: Path, text: str) -> list[str]:
    """What a command line begins with that takes a preset of `text` from a folder of configs, `folder`."""
    (folder / "preset").mkdir(parents=True, exist_ok=True)
    (folder / "preset" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    return ["--config-dir", str(folder), "preset=mine"]


def test_a_file_of_configs_cannot_say_whom_to_trust(run_command: Run, canary: Path, tmp_path: Path) -> None:
    text = "trust: [evilmodule]\nmodel: {encoder: {_target_: evilmodule.X}}\n"
    text += "hydra: {job_logging: {handlers: {x: {'()': evilmodule.f}}}}"
    done = run_command("train", *preset(tmp_path / "extra", text))
    assert done.code == 2
    assert "trust: counts on the command line alone" in done.err
    assert "hydra.job_logging.handlers.x.(): evilmodule.f would be called by logging" in done.err
    done = run_command("train", *preset(tmp_path / "extra", 'trust: "${hydra:callbacks}"'))
    assert "trust: counts on the command line alone" in done.err
    assert not canary.exists()


JOBLIB = "hydra_plugins.spkexp_launchers.joblib_launcher"
NODE = '"${oc.create:{_target_:evilmodule.X}}"'
# The launcher and the sweeper, what a preset says of hydra, and the keys that are refused.
OF_A_FILE = [
    (
        ("joblib", "basic"),
        {
            "callbacks": f"{{x: {{_target_: {JOBLIB}.tempfile.mkdtemp}}}}",
            "launcher": f"{{n_jobs: {NODE}}}",
            "sweeper": "{params: {trust: '[evilmodule]'}}",
            "job": "{env_set: {PYTHONPATH: /evil}, env_copy: [HOME], chdir: true}",
            "run": "{dir: /evil}",
            "job_logging": "{handlers: {x: {class: logging.FileHandler, filename: struck}}}",
            "overrides": "{task: ['trust=[evilmodule]']}",
        },
        "callbacks callbacks.x._target_ launcher.n_jobs sweeper.params job.env_set job.env_copy job.chdir run "
        "job_logging overrides",
    ),
    (("basic", "basic"), {"callbacks": f"{{x: {NODE}}}"}, "callbacks"),
    (
        ("basic", "basic"),
        {"callbacks": '"${oc.create:{x:{_target_:evilmodule.X}}}"', "mode": "MULTIRUN"},
        "callbacks mode",
    ),
    (("joblib", "basic"), {"launcher": f"{{_target_: {JOBLIB}.subprocess.Popen, args: [ls]}}"}, "launcher._target_"),
    (("submitit_local", "basic"), {"launcher": "{setup: [touch struck]}"}, "launcher.setup"),
    (("submitit_slurm", "basic"), {"launcher": "{additional_parameters: {wrap: x}}"}, "launcher.additional_parameters"),
    (
        ("ray", "optuna"),
        {"launcher": "{address: evil}", "sweeper": "{storage: redis://evil}"},
        "launcher.address sweeper.storage",
    ),
]


@pytest.mark.parametrize(
    ("chosen", "says", "refused"), OF_A_FILE, ids=lambda value: value if type(value) is str else ""
)
def test_what_a_file_of_configs_cannot_tell_hydra(
    canary: Path, tmp_path: Path, chosen: tuple[str, str], says: dict[str, str], refused: str
) -> None:
    text = "".join(f"\n  {key}: {value}" for key, value in says.items())
    _, folder, mine = preset(tmp_path / "extra", f"hydra:{text}")
    with pytest.raises(ConfigError) as caught:
        check_all([mine, f"hydra/launcher={chosen[0]}", f"hydra/sweeper={chosen[1]}"], False, folder)
    found = [mistake.partition(": ")[0] for mistake in caught.value.mistakes if "is not installed" not in mistake]
    assert sorted(found) == sorted(f"hydra.{key}" for key in refused.split())
    assert not canary.exists()


def test_what_hydra_is_told_on_the_command_line_counts(tmp_path: Path) -> None:
    """Beside a folder of configs, whose preset may choose a launcher and set what runs nothing."""
    _, folder, chosen = preset(
        tmp_path, "defaults: [{override /hydra/launcher: submitit_local}]\nhydra: {launcher: {n_jobs: 3}}"
    )
    given = ["hydra.launcher.setup=['export A=1']", "+hydra.job.env_set.B=2", "hydra/job_logging=default"]
    check_all([chosen, *given], False, folder)
    _, folder, chosen = preset(tmp_path, "hydra: {launcher: {setup: [a]}, job: {env_set: {PYTHONPATH: /evil}}}")
    given = ["hydra/launcher=submitit_local", "hydra.launcher.setup=[]", "+hydra.job.env_set.B=2"]
    with pytest.raises(ConfigError) as caught:
        check_all([chosen, *given], False, folder)
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == ["hydra.job.env_set"]


@pytest.mark.parametrize("place", ["model.encoder", "augment.waveform", "trainer.optimizer"])
def test_a_node_behind_an_interpolation_is_seen(canary: Path, tmp_path: Path, place: str) -> None:
    section, part = place.split(".")
    _, folder, chosen = preset(tmp_path / "extra", f"{section}: {{{part}: {NODE}}}")
    with pytest.raises(ConfigError, match=rf"{place}._target_: evilmodule.X is no class of spkexp"):
        check_all([chosen], False, folder)
    assert not canary.exists()


def test_an_interpolation_that_means_another_thing_later(run_command: Run, canary: Path, tmp_path: Path) -> None:
    """Hydra fills in its mode between the check and the job."""
    text = "defaults: [{override /hydra/launcher: joblib}]"
    text += "\nmodel: {encoder: {_target_: '${hydra:launcher.${hydra:mode}}'}}"
    text += "\nhydra: {launcher: {None: spkexp.models.xvector.XVector, RunMode: {RUN: evilmodule.X}}}"
    done = run_command("train", *preset(tmp_path / "extra", text), "model=xvector")
    assert done.code == 2
    assert "model.encoder._target_: evilmodule.X is no class of spkexp" in done.err
    assert not canary.exists()


def test_help_beside_a_folder_of_configs(run_command: Run, canary: Path, tmp_path: Path) -> None:
    """Hydra sets up its logging before it prints a page."""
    text = "hydra: {hydra_logging: {handlers: {x: {'()': evilmodule.f}}}}"
    done = run_command("train", "--help", *preset(tmp_path / "extra", text))
    assert done.code == 2
    assert not canary.exists()
    assert run_command("train", "--help", *preset(tmp_path / "extra", "seed: 1")).code == 0


@pytest.mark.parametrize("option", ["--config-path", "-cp", "--config-name", "--experimental-rerun", "--exp"])
def test_hydra_composes_what_was_checked(run_command: Run, option: str) -> None:
    done = run_command("train", option, "x")
    assert (done.code, "--config-dir DIR" in done.err) == (2, True)


def test_a_file_of_configs_that_is_no_yaml(run_command: Run, tmp_path: Path) -> None:
    done = run_command("train", *preset(tmp_path, "a: b: c"))
    assert done.code == 2
    assert "mine.yaml" in done.err


def test_a_models_name_is_no_path(model: Path, run_command: Run, canary: Path) -> None:
    """It stands in the name of the run's folder."""
    changed(model, "names.model", "x/../../../../struck/y")
    done = run_command("train", f"init_from='{model}'", "trainer.max_steps=1")
    assert done.code == 2
    assert "names.model: 'x/../../../../struck/y' cannot be part of a folder's name: no /" in done.err
    assert not any((model.parent / name).exists() for name in ("runs", "struck"))
    names: TypeAdapter[str] = TypeAdapter(Name)
    assert names.validate_python("ecapa ü-1.0") == "ecapa ü-1.0"
    for name in ("..", ".", "a\\b", "a\0b", "a\nb", "/a", ""):
        with pytest.raises(ValidationError):
            names.validate_python(name)


def test_going_on_with_somebody_elses_run(run_command: Run, canary: Path, model: Path) -> None:
    changed(model, "trust", ["evilmodule"])
    changed(model, "data.sampler._target_", "evilmodule.X")
    (model / "model.safetensors").unlink()
    done = run_command("train", f"resume='{model}'")
    assert done.code == 2
    assert "config.yaml: data.sampler._target_: evilmodule.X is no class of spkexp" in done.err
    assert not canary.exists()


def test_trust_is_said_in_two_ways_and_makes_no_other_run() -> None:
    trust: TypeAdapter[tuple[str, ...]] = TypeAdapter(Trust)
    for text, names in {"a": ("a",), "[a, b.c]": ("a", "b.c"), "a,b": ("a", "b"), "[]": ()}.items():
        assert trust.validate_python(text) == names
    for text in ("a b", "", "a..b", "[a", "../a", "a,"):
        with pytest.raises(ValidationError):
            trust.validate_python(text)
    assert fingerprint(compose_config([])) == fingerprint(compose_config(["trust=[mypackage]"]))


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def test_pickles_are_not_opened(model: Path, canary: Path) -> None:
    evil = Payload(canary)
    (model / "model.safetensors").write_bytes(pickle.dumps(evil))
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read as tensors"):
        build.trained_model(model)
    files = {name: model / name for name in ("pickle.pt", "zip.ckpt", "old.pth", "tar.bin")}
    files["pickle.pt"].write_bytes(pickle.dumps({"state_dict": evil}))
    torch.save({"state_dict": evil}, files["zip.ckpt"])
    torch.save({"state_dict": evil}, files["old.pth"], _use_new_zipfile_serialization=False)
    with tarfile.open(files["tar.bin"], "w") as tar:  # as torch saved before 0.1.10
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(evil)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for file in files.values():
        with pytest.raises(UserError, match=rf"{file.name}: (holds .* beside tensors|cannot be read as tensors)"):
            foreign.read_tensors(file)
    assert not canary.exists()


def test_files_of_torch_that_grow(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "sound.pt")
    assert foreign.read_tensors(tmp_path / "sound.pt")["a"].shape == (1 << 20,)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(tmp_path / "sound.pt") as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UserError, match=r"packed.pt: refused: its member .* is compressed"):
        foreign.read_tensors(packed)
    torch.save({"a": [torch.zeros(1).expand(1 << 40)]}, tmp_path / "view.pt")
    with pytest.raises(UserError, match=r"view.pt: refused: its [\d,]+ bytes would become 4,398,046,511,104"):
        foreign.read_tensors(tmp_path / "view.pt")
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "b.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + header)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"{name}.safetensors: cannot be read as tensors"):
            foreign.read_tensors(tmp_path / f"{name}.safetensors")


def test_a_pickle_of_which_each_part_holds_the_last_twice(tmp_path: Path) -> None:
    """As the key of a dictionary it is hashed: 2^60 steps, of 400 bytes."""
    content = b"\x80\x02)q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"}h\x3cK\1s."
    torch.save({"a": 1}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as source, zipfile.ZipFile(tmp_path / "new.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    (tmp_path / "old.pt").write_bytes(content)
    for name in ("new.pt", "old.pt"):
        with pytest.raises(UserError, match=f"{name}: refused: its values hold one another too often"):
            foreign.read_tensors(tmp_path / name)


def sparse(file: Path, size: int, content: bytes = b"") -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.truncate(size)


@pytest.mark.parametrize("name", ["labels.json", "config.yaml", durable.SUMS])
def test_sizes_pipes_and_devices(model: Path, name: str) -> None:
    file = model / name
    sparse(file, 10 * GIGABYTE, b'["a"]')
    with pytest.raises(UserError, match=f"{name}.*: refused: it has 10,737,418,240 bytes"):
        _open_all(model)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=f"{name}.*no plain file|{model}: has no config.yaml"):
        _open_all(model)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"{name}.*no plain file|{model}: has no config.yaml"):
        _open_all(model)


def _open_all(model: Path) -> None:
    folder = build.trained_model(model)[2]
    checkpoint.load_labels(folder)


def test_a_sealed_folder_whose_sums_lead_elsewhere(model: Path) -> None:
    """Only the model's own files are looked at, and a pipe among them is not waited for."""
    (model / durable.SUMS).write_bytes(
        small_model()[durable.SUMS] + b"# 0 bytes  ../../x\n" + b"0" * 64 + b"  ../../x\n"
    )
    build.trained_model(model)
    (model / "labels.json").unlink()
    (model / "labels.json").symlink_to("/dev/zero")
    sums = (model / durable.SUMS).read_text().splitlines()
    (model / durable.SUMS).write_text(
        "\n".join("# 0 bytes  labels.json" if "# " in s and "labels" in s else s for s in sums)
    )
    with pytest.raises(UserError, match=r"labels.json is no plain file"):
        build.trained_model(model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nmodel: *x\n", "an alias"),
        ("".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 1}]\n" for n in range(12)), "an alias"),
        ("model: !!python/object/apply:os.system [touch x]\n", "could not determine a constructor"),
        ("model: !!python/name:os.system\n", "could not determine a constructor"),
        ("model: " + "[" * 50_000, "nested more than 100 deep"),
        ("model: " + "{a: " * 50_000, "nested more than 100 deep"),
        ("x" * (1 << 20), "refused: it has 1,048,576 bytes"),
        ("a: 1\na: 2\n", "'a' stands there more than once"),
    ],
)
def test_yaml_is_read_plainly(model: Path, canary: Path, text: str, said: str) -> None:
    (model / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        checkpoint.load_config(model)
    assert not (model.parent / "x").exists()


def test_yaml_means_what_omegaconf_reads(tmp_path: Path) -> None:
    text = "a: 1e-3\nb: 1.0e-05\nc: 2026-11-21\nd: 010\ne: 1_000\nf: .5\ng: 0x1F\nh: yes\n"
    text += "i: -.inf\nj: ~\nk: '1'\nl: 12:30:00\n"
    (tmp_path / "a.yaml").write_text(text)
    found = foreign.read_yaml(tmp_path / "a.yaml")
    assert found == {
        "a": 0.001, "b": 1e-05, "c": "2026-11-21", "d": 8, "e": 1000, "f": 0.5, "g": 31, "h": True, "i": -np.inf,
        "j": None, "k": "1", "l": "12:30:00",
    }  # fmt: skip


Member = tuple[str, bytes] | tarfile.TarInfo


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def make_tar(file: Path, members: list[Member], mode: str = "w:gz") -> None:
    with tarfile.open(file, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                tar.addfile(entry, io.BytesIO(member[1]))


def make_zip(file: Path, members: list[tuple[str, bytes]], mode: int = 0) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../evil", b"x")], "'../evil' would be written outside"),
        ([("a/../../evil", b"x")], "'a/../../evil' would be written outside"),
        ([("/tmp/evil", b"x")], "'/tmp/evil' would be written outside"),
        ([("a\\..\\evil", b"x")], "would be written outside"),
        ([("", b"x")], "its member '' would be written outside"),
        ([special("a", tarfile.SYMTYPE, "/etc"), ("a/evil", b"x")], "'a' is a link, a device"),
        ([special("a", tarfile.SYMTYPE, "..")], "'a' is a link, a device"),
        ([("b", b""), special("a", tarfile.LNKTYPE, "b")], "'a' is a link, a device"),
        ([special("a", tarfile.CHRTYPE)], "'a' is a link, a device"),
        ([special("a", tarfile.FIFOTYPE)], "'a' is a link, a device"),
        ([special("a", tarfile.GNUTYPE_SPARSE)], "'a' is a link, a device or a sparse file|cannot be unpacked"),
        ([("a", b"1"), ("a", b"2")], "two members 'a'"),
        ([("Model", b"1"), ("model", b"2")], "two members 'model'"),
        ([("a/b", b"1"), ("a", b"2")], "cannot be unpacked"),
        ([("zeros", bytes(64 << 20))], "refused: it unpacks to more than"),
        ([(f"zeros{n}", bytes(1 << 19)) for n in range(40)], "refused: it unpacks to more than"),
        ([("many/" + str(n), b"") for n in range(51)], "50 files"),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_write_plain_files_below_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[Any], said: str, kind: str
) -> None:
    monkeypatch.setattr(archives, "MEMBERS", 50)
    archive, folder = tmp_path / "x.archive", tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    if kind == "zip":
        if any(isinstance(member, tarfile.TarInfo) for member in members):
            return
        make_zip(archive, members)
    else:
        make_tar(archive, members)
    with pytest.raises(UserError, match=r"x.archive: .*" + said):
        archives.unpack(archive, folder)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["side"]
    assert not Path("/tmp/evil").exists()
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20 << 20


def test_links_in_a_zip_and_names_with_nul(tmp_path: Path) -> None:
    make_zip(tmp_path / "a.zip", [("a", b"/etc/passwd")], mode=0o120777)
    make_zip(tmp_path / "b.zip", [("aXb", b"x")])
    (tmp_path / "b.zip").write_bytes((tmp_path / "b.zip").read_bytes().replace(b"aXb", b"a\0b"))
    for name, said in (("a", "'a' is a link"), ("b", "would be written outside")):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=said):
            archives.unpack(tmp_path / f"{name}.zip", tmp_path / name)
        assert list((tmp_path / name).iterdir()) == []


def test_a_header_of_a_tar_that_counts_too_far(tmp_path: Path) -> None:
    """Python's tarfile raises OverflowError for it; found by `make fuzz`."""
    record = b"9" * 30 + b" path=a\n"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(header, io.BytesIO(record))
        tar.addfile(tarfile.TarInfo("a.wav"), io.BytesIO())
    with pytest.raises(UserError, match=r"a.tar: cannot be unpacked"):
        archives.unpack(tmp_path / "a.tar", tmp_path / "out")
    with pytest.raises(UserError, match=r"a.tar: is no tar, or broken from the beginning"):
        tar_index.index(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
def test_a_sound_archive_is_unpacked(tmp_path: Path, mode: str) -> None:
    members = [("model/config.yaml", b"a: 1"), ("model/ü/w", bytes(1000))]
    archive = tmp_path / "a"
    if mode == "zip":
        make_zip(archive, members)
    else:
        make_tar(archive, [special("model", tarfile.DIRTYPE), *members], mode)
    (tmp_path / "out").mkdir()
    archives.unpack(archive, tmp_path / "out")
    assert {
        str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    } == dict(members)


def test_embeddings_that_lead_elsewhere_or_claim_too_much(tmp_path: Path) -> None:
    rows = np.ones((2, 3), dtype=np.float32)
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as target:
        target.create_dataset("embedding", data=rows)
    (tmp_path / "raw").write_bytes(rows.tobytes())

    def external(target: h5py.File) -> None:
        target["embedding"] = h5py.ExternalLink(str(secret), "embedding")

    def soft(target: h5py.File) -> None:
        target["embedding"] = h5py.SoftLink("/other")
        target.create_dataset("other", data=rows)

    def virtual(target: h5py.File) -> None:
        layout = h5py.VirtualLayout((2, 3), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "embedding", (2, 3))
        target.create_virtual_dataset("embedding", layout)

    def outside(target: h5py.File) -> None:
        target.create_dataset("embedding", (2, 3), "f4", external=[(str(tmp_path / "raw"), 0, 24)])

    def unwritten(target: h5py.File) -> None:
        target.create_dataset("embedding", (10**8, 10**4), "f4", chunks=(100, 100))

    def objects(target: h5py.File) -> None:
        target.create_dataset("embedding", data=["x", "y"])

    for number, make in enumerate((external, soft, virtual, outside, unwritten, objects)):
        file = tmp_path / f"{number}.h5"
        with h5py.File(file, "w") as target:
            target.create_dataset("id", data=["a", "b"])
            make(target)
        with pytest.raises(UserError, match=rf"{number}.h5: (refused|holds no embeddings \(`embedding` holds)"):
            read_embeddings(file)
    np.savez_compressed(tmp_path / "a.npz", id=np.array(["a"]), embedding=np.zeros((1, 1 << 25), dtype=np.float32))
    with pytest.raises(UserError, match=r"a.npz: refused: its [\d,]+ bytes would become 134,217,"):
        read_embeddings(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        for name in ("id", "embedding"):
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
            archive.writestr(f"{name}.npy", stream.getvalue())
    with pytest.raises(UserError, match=r"b.npz: refused: its [\d,]+ bytes would become 4,000,000,000,000"):
        read_embeddings(tmp_path / "b.npz")


def test_a_heap_that_libhdf5_would_never_leave(tmp_path: Path) -> None:
    """Its free space says that it has no bytes; found by `make fuzz`."""
    with h5py.File(tmp_path / "a.h5", "w") as target:
        target.create_dataset("id", data=["a", "b"])
        target.create_dataset("embedding", data=np.ones((2, 3), dtype=np.float32))
    content = bytearray((tmp_path / "a.h5").read_bytes())
    place = content.index(b"GCOL") + 16
    while content[place : place + 2] != b"\0\0":  # its objects, of a letter each
        place += 24
    content[place + 8 : place + 16] = bytes(8)
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(UserError, match=rf"a.h5: holds no embeddings \(byte {place} begins an object of 0 bytes"):
        read_embeddings(tmp_path / "a.h5")
    content[place + 8 : place + 16] = (4096 - (place - content.index(b"GCOL"))).to_bytes(8, "little")
    with h5py.File(tmp_path / "a.h5", "r") as source:
        first = source["id"].id.get_offset()
    content[first + 4 : first + 12] = (1 << 40).to_bytes(8, "little")  # where its text is
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(UserError, match=r"a.h5: holds no embeddings \(text 0 of `id` is not in the file"):
        read_embeddings(tmp_path / "a.h5")


def test_commands_in_a_kaldi_folder_are_not_run(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "kaldi"
    folder.mkdir()
    (folder / "utt2spk").write_text("a s\n")
    for line in (f"a touch {canary} |", f"a touch {canary} | cat |  ", f"a touch {canary}|"):
        (folder / "wav.scp").write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"wav.scp:1: is a command"):
            read_table(folder, None)
    (folder / "wav.scp").write_text(f"a | touch {canary}\n")  # no pipe to Kaldi, either
    path = read_table(folder, None)["path"][0]
    with pytest.raises(AudioError, match="no such file"):
        audio.info(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "path",
    ["http://127.0.0.1:9/a.m4a", "concat:a.m4a|a.m4a", "pipe:0", "file:a.m4a", "data:audio/mp4;base64,AAAA", "tcp://h"],
)
def test_a_path_is_a_path_and_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "a.m4a", np.zeros(4000, dtype=np.float32), RATE)
    with pytest.raises(AudioError, match="no such file"):
        audio.read(path)


def test_playlists_are_no_audio(tmp_path: Path) -> None:
    """FFmpeg would follow them to other files and hosts, whatever the file is called."""
    encode(tmp_path / "secret.m4a", np.zeros(4000, dtype=np.float32), RATE)
    for name, text in {
        "a.m4a": f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.m4a\n#EXT-X-ENDLIST\n",
        "b.m4a": f"ffconcat version 1.0\nfile '{tmp_path}/secret.m4a'\n",
        "c.m4a": f"    ftypM4A <?xml?><MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'>{tmp_path}</MPD>",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match=name):
            audio.read(tmp_path / name)


def test_a_coding_that_nobody_knows(tmp_path: Path) -> None:
    """PyAV has no decoder for it, and gives None; found by `make fuzz`."""
    encode(tmp_path / "a.m4a", np.zeros(4000, dtype=np.float32), RATE)
    content = (tmp_path / "a.m4a").read_bytes()
    content = content.replace(b"mp4a", b"zzzz").replace(b"\x40\x15", b"\xfe\x15")  # its tag, and MPEG-4's number of it
    (tmp_path / "a.m4a").write_bytes(content)
    with pytest.raises(AudioError, match=r"a.m4a: its audio is coded in a way that FFmpeg does not know"):
        audio.info(tmp_path / "a.m4a")


def test_channels_that_change_on_the_way(tmp_path: Path) -> None:
    encode(tmp_path / "a.aac", np.zeros(8000, dtype=np.float32), RATE, form="adts")
    content = bytearray((tmp_path / "a.aac").read_bytes())
    second = int.from_bytes(content[3:6], "big") >> 5 & 0x1FFF  # ADTS: 13 bits of a frame's length from bit 30 on
    content[second + 2] |= 1  # three bits of channels from bit 23 on: 5 more
    content[second + 3] = content[second + 3] & 0x3F | 0x80
    (tmp_path / "a.aac").write_bytes(content)
    with pytest.raises(AudioError, match=r"a.aac: has 1 channels, and later 6"):
        audio.read(tmp_path / "a.aac", mix_channels=True)


def test_headers_of_audio_that_claim_too_much(tmp_path: Path) -> None:
    samples = integers(1000).tobytes()
    (tmp_path / "rate.wav").write_bytes(riff(pcm(rate=1), samples))
    with pytest.raises(AudioError, match=r"rate.wav: its header says 1 Hz"):
        audio.read(tmp_path / "rate.wav", resample=True)
    (tmp_path / "chunks.wav").write_bytes(riff(pcm(), samples, before=b"JUNK\0\0\0\0" * 20_000))
    with pytest.raises(AudioError, match=r"chunks.wav: a wav file with more than 10000 chunks"):
        audio.info(tmp_path / "chunks.wav")
    import soundfile

    soundfile.write(tmp_path / "long.flac", integers(4000)[:, 0], RATE)
    content = bytearray((tmp_path / "long.flac").read_bytes())
    content[21] |= 0x0F  # the total of samples: 36 bits from the middle of byte 21 on
    content[22:26] = b"\xff" * 4
    (tmp_path / "long.flac").write_bytes(content)
    with pytest.raises(AudioError, match=r"long.flac: 68,719,476,735 samples of 1 channels are too many"):
        audio.read(tmp_path / "long.flac")


BOUNDED = """
import resource, sys
from pathlib import Path
from spkexp import archives, build, foreign
from spkexp.errors import UserError
from spkexp.scoring.embedding_file import read_embeddings
import h5py, torch
has = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (has + (1 << 30), has + (1 << 30)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[1])
for what, read in (("wide", build.trained_model), ("deep", build.trained_model), ("a.npz", read_embeddings),
                   ("bomb.tar.gz", lambda f: archives.unpack(f, folder / "out")), ("a.yaml", foreign.read_yaml),
                   ("a.pt", foreign.read_tensors)):
    try:
        read(folder / what)
    except UserError as error:
        print(what, "refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 200)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """In a process that may take a gigabyte, and takes 200 MB at most."""
    for name, key, value in (
        ("wide", "model.encoder.channels", [30_000] * 5),
        ("deep", "model.embedding_size", 1_000_000_000),
    ):
        (tmp_path / name).mkdir()
        for file, content in small_model().items():
            if file != durable.SUMS:
                (tmp_path / name / file).write_bytes(content)
        changed(tmp_path / name, key, value)
    np.savez_compressed(tmp_path / "a.npz", id=np.array(["a"]), embedding=np.zeros((1, 1 << 25), dtype=np.float32))
    make_tar(tmp_path / "bomb.tar.gz", [("zeros", bytes(100 << 20))])
    (tmp_path / "out").mkdir()
    sparse(tmp_path / "a.yaml", 1 << 30)
    torch.save({"a": torch.zeros(1).expand(1 << 34)}, tmp_path / "a.pt")
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("wide", "refused", "deep", "refused", "a.npz", "refused", "bomb.tar.gz", "refused"),
        *("a.yaml", "refused", "a.pt", "refused", "True"),
    ]
