"""What is installed: the wheel, the conda environments, and dependencies that are declared, used and pinned."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import rattler
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Dependencies that nothing in spkexp imports yet, and why they are there.
DEMANDED = {"einops": "for outside models and those to come, and mamba-ssm's Triton kernels"}
# What a user may leave out: launchers and searches of sweeps, and dashboards.
EXTRAS = ("joblib", "submitit", "ray", "optuna", "dashboards", "umap", "onnx", "pyannote")
# Source-only packages that compile against the torch they find, by tools/build_mamba.sh in the versions of the extra
# `cuda`, and the module of each that spkexp imports where it is there.
COMPILED = {"causal-conv1d": "causal_conv1d", "mamba-ssm": "selective_scan_cuda"}


@pytest.mark.parametrize(
    ("file", "name"), [("environment.yml", "spkr-recog"), ("environment-cuda.yml", "spkr-recog-cuda")]
)
def test_conda_environment(file: str, name: str) -> None:
    environment = OmegaConf.to_container(OmegaConf.load(ROOT / file))
    assert isinstance(environment, dict)
    assert environment["name"] == name
    assert [rattler.Channel(channel).name for channel in environment["channels"]] == ["conda-forge"]
    specs = {}
    pip_lines: list[str] = []
    for entry in environment["dependencies"]:
        if isinstance(entry, dict):
            assert list(entry) == ["pip"]
            pip_lines += entry["pip"]
        else:
            spec = rattler.MatchSpec(entry, strict=True)
            assert spec.name is not None
            specs[spec.name.normalized] = spec
    assert {"python", "pip", "make", "git"} <= specs.keys()
    python = str(specs["python"].version).rstrip(".*")
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(f"{python}.0")
    assert specs["python"].matches(record("python", f"{python}.4"))
    assert not specs["python"].matches(record("python", "3.10.4"))
    _check_pip(pip_lines)


def record(name: str, version: str) -> rattler.PackageRecord:
    return rattler.PackageRecord(name, version, rattler.BuildString("0"), 0, "linux-64")


def _check_pip(lines: list[str]) -> None:
    """Every file that the pip part refers to exists, and every extra."""
    options = dict(line.split(maxsplit=1) for line in lines)
    assert options.keys() == {"-c", "-e"}
    assert (ROOT / options["-c"]).is_file()
    folder, _, extras = options["-e"].rstrip("]").partition("[")
    assert (ROOT / folder / "pyproject.toml").is_file()
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_cuda_is_an_extra_that_the_cuda_environment_names() -> None:
    cuda = [Requirement(line) for line in PROJECT["optional-dependencies"]["cuda"]]
    assert {requirement.name for requirement in cuda} == COMPILED.keys()
    assert all([part.operator for part in requirement.specifier] == ["=="] for requirement in cuda)
    environment = (ROOT / "environment-cuda.yml").read_text(encoding="utf-8")
    assert "[cuda]" in environment
    assert "tools/build_mamba.sh" in environment
    assert os.access(ROOT / "tools/build_mamba.sh", os.X_OK)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel ü")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"spkexp-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files(folder: Path, suffix: str) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob(f"*{suffix}")}


def test_wheel_holds_the_package_and_all_of_conf(unpacked: Path) -> None:
    assert "config.yaml" in files(unpacked / "spkexp/conf", ".yaml")
    studies = {f"experiments/{name}" for name in files(ROOT / "experiments", ".yaml")}  # conf/experiments is a link
    assert files(unpacked / "spkexp/conf", ".yaml") == files(ROOT / "conf", ".yaml") | studies
    assert {file.suffix for file in (unpacked / "spkexp/conf").rglob("*") if file.is_file()} == {".yaml"}
    assert files(unpacked / "spkexp", ".py") == files(ROOT / "spkexp", ".py")
    assert files(unpacked / "hydra_plugins", ".py") == files(ROOT / "hydra_plugins", ".py")
    assert not (unpacked / "hydra_plugins" / "__init__.py").exists()  # other packages have plugins there as well
    assert files(unpacked / "spkexp", ".c") == {"ops/scan_kernel.c"}  # compiled where it is used
    for suffix in (".html", ".css", ".js"):  # the page of a comparison
        assert files(unpacked / "spkexp", suffix) == files(ROOT / "spkexp", suffix) != set()
    top = {path.name for path in unpacked.iterdir()}
    assert top == {"spkexp", "hydra_plugins", f"spkexp-{PROJECT['version']}.dist-info"}
    entry_points = (unpacked / f"spkexp-{PROJECT['version']}.dist-info" / "entry_points.txt").read_text()
    assert entry_points.split() == ["[console_scripts]", "spkexp", "=", "spkexp.__main__:main"]


def test_installed_package_finds_its_own_conf(unpacked: Path, tmp_path: Path) -> None:
    config = unpacked / "spkexp" / "conf" / "config.yaml"
    original = config.read_text(encoding="utf-8")
    assert "\nseed: 0 " in original
    # Another number than the checkout's, so that it shows which of the two was read.
    config.write_text(original.replace("\nseed: 0 ", "\nseed: 4711 "), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spkexp.train", "--cfg", "job", "model=xvector"],
            env={**os.environ, "PYTHONPATH": str(unpacked)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        config.write_text(original, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    printed = OmegaConf.create(done.stdout)
    assert printed.seed == 4711
    assert printed.model.encoder._target_ == "spkexp.models.xvector.XVector"
    assert list(tmp_path.iterdir()) == []


# Shared by packages that are called after the module below it.
NAMESPACE = "pyannote"
OWNERS = packages_distributions()


def imported(folder: Path) -> set[str]:
    """Top-level names of all modules from outside the standard library that the files of `folder` import."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {top_of(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(top_of(node.module))
    return found - set(sys.stdlib_module_names) - {"spkexp", "tests", "hydra_plugins"}


def top_of(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith(f"{NAMESPACE}.") else 1])


def owner(module: str) -> str:
    """The package that an imported module is of."""
    name = module if module.startswith(f"{NAMESPACE}.") else OWNERS[module][0]
    return canonicalize_name(name)


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    modules = imported(ROOT / "spkexp") | imported(ROOT / "hydra_plugins")
    assert {"torch", *COMPILED.values()} <= modules
    modules -= set(COMPILED.values())
    used = {owner(module) for module in modules}
    declared = names(PROJECT["dependencies"])
    optional = names([line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]])
    assert used - declared == optional
    assert declared - used == set(DEMANDED)
    known = (module for module in imported(ROOT / "tests") if module in OWNERS or module.startswith(NAMESPACE))
    in_tests = {owner(module) for module in known}
    extra = names(PROJECT["optional-dependencies"]["test"])
    assert f"spkexp[{','.join(EXTRAS)}]" in PROJECT["optional-dependencies"]["test"]
    run_otherwise = {"hatchling", "pytest-xdist", "spkexp"}  # by a command of their own; and its extras
    assert extra - in_tests == run_otherwise
    brought_along = {"packaging", "pillow"}  # by pytest and matplotlib
    in_tests.discard("atheris")  # where it is installed by hand
    assert in_tests - declared - extra - optional == brought_along


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_every_dependency(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_machine": "x86_64", "implementation_name": "cpython", "extra": ""}
    environment |= {"platform_python_implementation": "CPython"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        name = canonicalize_name(requirement.name)
        assert name not in pins, f"{name} is pinned twice"
        pins[name] = specifier.version
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    wanted = [*PROJECT["dependencies"], *build]
    wanted += [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name not in {"spkexp", *COMPILED}:
            assert name in pins, f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{requirement} does not admit {pins[name]}"
