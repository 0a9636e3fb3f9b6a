"""Every python block of docs/*.md runs, one after the other, as its reader would run it."""

import re
from pathlib import Path

import pytest
import soundfile

from spkexp.config import config_folder
from tests.conftest import voice
from tests.inference_tools import tiny_model, write_results

DOCS = config_folder().parent / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line at which it begins, code) of each python block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)), found[1]) for found in _BLOCK.finditer(text)]


# What export.md runs is first exported: tests/test_export.py
PAGES = [page for page in sorted(DOCS.glob("*.md")) if blocks(page) and page.stem != "export"]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a model, RUN, that has classes and a threshold, and the recordings a.wav, b.wav, c.wav."""
    monkeypatch.chdir(tmp_path)
    write_results(tiny_model(tmp_path / "RUN"))
    for number, name in enumerate("abc"):
        soundfile.write(tmp_path / f"{name}.wav", voice(number, number, 1.2), 16_000)
    names: dict[str, object] = {"__name__": page.stem}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)


def test_pages_are_found() -> None:
    assert "inference" in [page.stem for page in PAGES]
    assert sum(len(blocks(page)) for page in PAGES) >= 8
