"""Put what `spkexp.compare` says of a study's runs into its README, and tell which tables have grown old.

    python experiments/tables.py write STUDY TABLE SWEEP [figure=PLOT] [scored=DIR] [KEY=VALUE ...]
    python experiments/tables.py check

KEYs are those of spkexp.compare. scored=DIR: compared is what `spkexp.evaluate` made of the runs, in DIR/RUN.
`write` replaces what stands between `<!-- table TABLE -->` and `<!-- end -->` in experiments/STUDY/README.md, copies
the plot to experiments/STUDY/TABLE.png, and notes in experiments/STUDY/tables.json what the table depends on: the yaml
files that its jobs were composed of, the code that its figures come from, and a digest of each in the runs' commit.
`check` holds these against the files as they are then, and exits 1 where any differs. Comments and docstrings do not
count.
"""

import ast
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "experiments"
# What makes the figures of a run, beside the classes that its config names: training, scoring, comparison;
CODE = ("experiment", "trainer", "step", "corpus", "scorer", "trial_results", "initial_weights", "numerics")
CODE += tuple(f"report.comparison.{name}" for name in ("content", "evidence", "aligned", "ranking", "metrics"))
# and of what these import that which can change a figure. The rest keeps, shows and watches.
PARTS = ("models", "losses", "augment", "features", "features_stft", "ops", "data", "scoring", "schedule", "averages")
PARTS += ("parameter_groups", "validation", "build", "counter", "non_finite", "loss_setup", *CODE)


def write(study: str, table: str, sweep: Path, arguments: list[str]) -> None:
    """Put the comparison of `sweep`'s runs into the study's README. Raises SystemExit."""
    own = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("figure=", "scored=")))
    keys = [argument for argument in arguments if not argument.startswith(("figure=", "scored="))]
    runs = [json.loads(file.read_text()) for file in sorted(sweep.glob("????????????.json"))]
    folders = [sweep.parents[2] / run["run_dir"] for run in runs if run["status"] == "finished"]
    if not folders or len(folders) < len(runs):
        sys.exit(f"{sweep}: {len(folders)} of {len(runs)} jobs have finished")
    known = [json.loads((folder / "environment.json").read_text()) for folder in folders]
    states = [environment["git"] for environment in known]
    if any(state["commit"] is None or state["modified"] for state in states):
        sys.exit(f"{sweep}: some of its runs are of code that was in no commit; commit it and run them anew")
    commits, dates = sorted({state["commit"] for state in states}), sorted({env["started"][:10] for env in known})
    depends_on = dict[str, str]()
    for commit in commits:
        of_commit = [place for place, state in enumerate(states) if state["commit"] == commit]
        files = dependencies([folders[place] for place in of_commit], [runs[place] for place in of_commit])
        for name, found in digests(files, commit).items():
            if depends_on.setdefault(name, found) != found:
                sys.exit(f"{sweep}: {name} differs between {' and '.join(commits)}; run its jobs anew")
    if "scored" in own:
        depends_on |= digests([STUDIES / study / "noisy.py"])
    compared = sorted(str(Path(own["scored"], folder.name)) for folder in folders) if "scored" in own else [str(sweep)]
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "spkexp.compare", *compared, "format=markdown", f"output={output}", *keys]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
        if "figure" in own:
            shutil.copyfile(Path(output, "plots", f"{own['figure']}.png"), STUDIES / study / f"{table}.png")
    named = f"{Path(own['scored']).name}/*" if "scored" in own else f"runs/sweeps/{sweep.name}"
    shown = " ".join(["python -m spkexp.compare", named, *keys]).replace(f"{sweep.parents[2]}/", "")
    origin = f"Made by `{shown}` of {len(folders)} run{'s' * (len(folders) > 1)} of {' and '.join(dates)} at commit "
    text = f"{text.rstrip()}\n\n{origin}{' and '.join(f'`{commit[:7]}`' for commit in commits)}.\n"
    _replace(STUDIES / study / "README.md", table, text)
    file = STUDIES / study / "tables.json"
    entries = json.loads(file.read_text()) if file.exists() else {}
    entries[table] = {"commits": commits, "dates": dates, "text": digest(text), "depends_on": depends_on}
    file.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def _replace(readme: Path, table: str, text: str) -> None:
    marked = re.compile(rf"(<!-- table {re.escape(table)} -->\n).*?(<!-- end -->)", re.DOTALL)
    found = readme.read_text(encoding="utf-8")
    if not marked.search(found):
        sys.exit(f"{readme}: has no <!-- table {table} --> with an <!-- end --> after it")
    readme.write_text(marked.sub(lambda place: place[1] + text + place[2], found), encoding="utf-8")


def dependencies(folders: list[Path], runs: list[dict[str, Any]]) -> list[Path]:
    """The files that the runs depend on: what composed them, and the code of what their configs name."""
    targets = {
        target for folder in folders for target in _targets(yaml.safe_load((folder / "config.yaml").read_text()))
    }
    modules = [".".join(target.split(".")[1:-1]) for target in targets if target.startswith("spkexp.")]
    configs = {file for run in runs for file in composed_of(run["overrides"])}
    manifests = {
        Path(yaml.safe_load((folder / "config.yaml").read_text())["data"]["manifest"] or "") for folder in folders
    }
    own = {STUDIES / file.name for file in manifests if (STUDIES / file.name).is_file()}
    code = {_file(module) for module in reach([*CODE, *modules])}
    kernels = {kernel for file in code for kernel in file.parent.glob("*.c")}
    return sorted({*configs, *own, *code, *kernels})


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _targets(child)


def composed_of(overrides: list[str]) -> set[Path]:
    """The yaml files that a job with these overrides is composed of."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode

    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    found = loader.compute_defaults_list("config", overrides, RunMode.RUN).defaults
    paths = {str(entry.config_path) for entry in found if not str(entry.config_path).startswith("hydra/")}
    files = {(ROOT / "conf" / f"{path}.yaml").resolve() for path in paths}
    return {file for file in files if file.is_file()}


def reach(modules: list[str]) -> set[str]:
    """These modules of spkexp, what they import of PARTS, and so on; wherever in a module it is imported."""
    found, rest = set[str](), list(modules)
    while rest:
        module = rest.pop()
        ours = any(module == part or module.startswith(f"{part}.") for part in PARTS)
        if ours and module not in found and _file(module).is_file():
            found.add(module)
            for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spkexp"):
                    base = node.module.removeprefix("spkexp").lstrip(".")
                    rest += [base, *(f"{base}.{name.name}".lstrip(".") for name in node.names)]
    return found


def _file(module: str) -> Path:
    return ROOT / "spkexp" / f"{module.replace('.', '/')}.py"


def digests(files: list[Path], commit: str | None = None) -> dict[str, str]:
    """The digest of each file, called from the repository's root, without comments; "" of one that is not there.

    commit: as it was in that one; None: as it is now.
    """
    found = {}
    for file in files:
        name = str(file.relative_to(ROOT))
        if commit is None:
            text = file.read_text(encoding="utf-8") if file.is_file() else None
        else:
            shown = subprocess.run(["git", "-C", str(ROOT), "show", f"{commit}:{name}"], capture_output=True, text=True)
            text = shown.stdout if shown.returncode == 0 else None
        found[name] = "" if text is None else digest(_said(text, file.suffix))
    return found


def digest(text: str) -> str:
    """12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _said(text: str, suffix: str) -> str:
    if suffix == ".yaml":
        return json.dumps(yaml.safe_load(text), sort_keys=True)
    if suffix == ".csv":
        return json.dumps(list(csv.reader(text.splitlines())))
    if suffix == ".c":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return ast.dump(tree)


def check() -> int:
    """Print what became of each table's files. Returns how many tables have grown old."""
    old = 0
    for file in sorted(STUDIES.rglob("tables.json")):
        for table, entry in json.loads(file.read_text()).items():
            depends_on: dict[str, str] = entry["depends_on"]
            there = digests([ROOT / name for name in depends_on])
            changed = [name for name in depends_on if there[name] != depends_on[name]]
            name = f"{file.parent.relative_to(ROOT)}/README.md, table {table}, {entry['commits'][0][:7]}"
            print(f"{name}: {'older than ' + ', '.join(changed) if changed else 'up to date'}")
            old += bool(changed)
    return old


def main() -> None:
    match sys.argv[1:]:
        case ["write", study, table, sweep, *arguments]:
            write(study, table, Path(sweep).resolve(), arguments)
        case ["check"]:
            sys.exit(1 if check() else 0)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
