"""The pages: every command and every python block is one that a reader can type, and does what the page says of it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests import docs_material
from tests.docs_commands import ROOT, UnknownCommand, call_of_ours, check, commands, fences
from tests.docs_runs import run
from tests.hub_server import TOKEN, Hub
from tests.test_sources import at
from tests.wandb_server import WandbServer

LANGUAGES = {"sh", "text", "python", "yaml", "json", "csv"}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# What takes a moment runs wherever the tests run, the rest under `make test-slow`.
QUICK = {"verify", "publish", "convert"}
# `path/to/file`: in front of a block is what the reader puts into that file.
_FILE = re.compile(r"`([\w./-]+\.(?:py|yaml|csv|txt|json))`:?$")
_PLACEHOLDER = re.compile(r"^(?:FOLLOWS|COST|MARGIN|RESULT-[A-Z]+|To be written.*)$", re.MULTILINE)
_EMPTY_TABLE = re.compile(r"<!-- table [\w-]+ -->\s*<!-- end -->")
ENCODERS = ROOT / "docs" / "adding-an-encoder.md"


@cache
def first_places() -> dict[str, str]:
    """The first place of each command: there it is tried."""
    places: dict[str, str] = {}
    for page in PAGES:
        with suppress(UnknownCommand):  # the test of that page tells
            for command in commands(page):
                places.setdefault(command.text, command.place)
    return places


def files(page: Path) -> list[tuple[str, str]]:
    """(name, content) of the files that the page tells its reader to write."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = []
    for first, _, content in fences(page):
        before = next((line for line in reversed(lines[: first - 1]) if line and not line.startswith("```")), "")
        if name := _FILE.search(before):
            found.append((name[1], content))
    return found


def python(page: Path) -> list[tuple[int, str]]:
    """(line, code) of each python block that is no file."""
    written = {content for _, content in files(page)}
    return [(line, code) for line, language, code in fences(page) if language == "python" and code not in written]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "work"
    folder.mkdir()
    docs_material.quick(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "work"
    folder.mkdir()

    def train(*arguments: str) -> None:
        program = [sys.executable, "-m", "spkexp.train", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(program, cwd=folder, env=environment, check=True, timeout=300)

    docs_material.whole(folder, train)
    return folder


@pytest.fixture(scope="module")
def served(quick: Path) -> Iterator[Hub]:
    """A hub that has user/name, a tiny model, and a checkpoint of WeSpeaker's."""
    found = Hub()
    model = quick / docs_material.PUBLISHED
    found.add("user/name", {path.name: path.read_bytes() for path in model.iterdir()})
    found.add("Wespeaker/wespeaker-voxceleb-resnet34-LM", {"avg_model.pt": (quick / "avg_model.pt").read_bytes()})
    yield found
    found.close()


@pytest.fixture
def hub(served: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path / "hub")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    at(monkeypatch, served.url)


def place(source: Path, to: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a copy of `source` with the files that the page, or the one on encoders, has its reader write."""
    docs_material.copy(source, to)
    monkeypatch.chdir(to)
    monkeypatch.syspath_prepend(str(to))
    for name, content in [*files(ENCODERS), *files(page)]:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_say_what_they_are(page: Path) -> None:
    """So that no command escapes: a block is sh, or of a kind that holds none."""
    text = page.read_text(encoding="utf-8")
    assert {language for _, language, _ in fences(page)} <= LANGUAGES
    assert text.count("```") == 2 * len(fences(page))
    loose = re.findall(r"^(?: {4}|\t)(?:python|spkexp|make|torchrun) .*$", text, re.MULTILINE)
    inside = "".join(content for _, _, content in fences(page))
    assert [line for line in loose if line not in inside] == []


def test_no_page_waits_for_its_text() -> None:
    """No line that was only to hold a place, and no table that was never written."""
    mistakes = []
    for page, name in zip(PAGES, NAMES, strict=True):
        text = page.read_text(encoding="utf-8")
        mistakes += [f"{name}: {found[0]}" for found in _PLACEHOLDER.finditer(text)]
        mistakes += [f"{name}: {found[0]!r} is empty" for found in _EMPTY_TABLE.finditer(text)]
    assert not mistakes, "\n".join(mistakes)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        name, _, anchor = target.partition("#")
        if name.startswith(("http:", "https:")):
            continue
        other = page if not name else page.parent / name
        assert other.exists(), f"{target}: there is no such file"
        if anchor and other.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            anchors: list[str] = []
            for title in titles:  # as GitHub makes them: what is there already is numbered
                name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
                anchors.append(name if name not in anchors else f"{name}-{titles[: len(anchors)].count(title)}")
            assert anchor in anchors, f"{target}: {other.name} has no such title"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
@pytest.mark.usefixtures("hub")
def test_commands_are_right(
    page: Path,
    quick: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each composes and checks as when it is typed, and what takes a moment runs."""
    place(quick, tmp_path / "work", page, monkeypatch)
    mistakes = []
    for command in commands(page) + commands(page, shown=True):
        if command.text in first_places() and first_places()[command.text] != command.place:
            continue
        try:
            check(command, monkeypatch)
            ours = call_of_ours(command.words)
            if ours is not None and ours[0] in QUICK:
                run(command, monkeypatch)
        except AssertionError as error:
            mistakes.append(f"{error}\n{capsys.readouterr().err}")
        except Exception as error:
            mistakes.append(f"{command.place}: {command.text}\n{error}")
    assert not mistakes, "\n\n".join(mistakes)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
@pytest.mark.usefixtures("hub")
def test_commands_run(
    page: Path,
    whole: Path,
    tmp_path: Path,
    wandb_service: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after the other, trainings for two steps; the studies, which tests of their own run, are left out."""
    place(whole, tmp_path / "work", page, monkeypatch)
    mistakes = []
    for command in commands(page):
        if first_places()[command.text] != command.place or any("experiments=" in word for word in command.words):
            continue
        try:
            run(command, monkeypatch)
        except AssertionError as error:
            mistakes.append(f"{error}\n{capsys.readouterr().err}")
        except Exception as error:
            mistakes.append(f"{command.place}: {command.text}\n{error!r}")
    assert not mistakes, "\n\n".join(mistakes)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
@pytest.mark.usefixtures("hub")
def test_the_code_of_a_page_runs(page: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after the other, with a model, RUN, that has classes and a threshold, and a.wav, b.wav, c.wav."""
    if page.stem == "export" or not python(page):  # what export.md runs is first exported: tests/test_export.py
        return
    place(quick, tmp_path / "work", page, monkeypatch)
    names: dict[str, object] = {"__name__": page.stem}
    for line, code in python(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)
