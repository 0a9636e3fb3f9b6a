"""The commands of the pages: each line of a ```sh block, taken apart as a shell would, and checked.

A command that nothing here knows is an error, not something to skip. tests/docs_runs.py runs them in small;
tests/docs_material.py makes what a page may name.
"""

import copy
import importlib
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from hydra._internal.core_plugins import file_config_source
from omegaconf import OmegaConf

from spkexp.__main__ import COMMANDS
from spkexp.command_line import CommandLine
from spkexp.compose import check_all
from spkexp.config import config_folder

ROOT = config_folder().parent
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Up to a comment: a # that begins a word and stands in no quotes.
_CODE = re.compile(r"""(?:[^'"#\\]|\\.|'[^']*'|"(?:\\.|[^"\\])*"|(?<=\S)#)*""", re.DOTALL)
# Folders of the pages that lie below the page's own folder in tests.
_ELSEWHERE = re.compile(r"(?<![\w./])/(?=(?:corpora|fast|local|scratch)\b)")


_PARSED: dict[tuple[str, int], Any] = {}


class UnknownCommand(AssertionError):
    """A page has a command of which nothing here knows what it does."""


@dataclass(frozen=True)
class Command:
    """words: without variables set in front (`variables`) and without `> output`; place: page and line."""

    place: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    output: str | None = None

    @property
    def text(self) -> str:
        return shlex.join([*(f"{name}={value}" for name, value in self.variables), *self.words])


def fences(page: Path) -> list[tuple[int, str, str]]:
    """(line at which the content begins, language, content) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)) + 1, found[1], found[2]) for found in FENCE.finditer(text)]


def commands(page: Path, shown: bool = False) -> list[Command]:
    """Every command of the page's ```sh blocks, in order. shown: those of ours in its ```text blocks instead."""
    found = []
    for first, language, content in fences(page):
        if language != ("text" if shown else "sh"):
            continue
        line, parts = first, content.replace("\\\n", "\0").splitlines()
        for part in parts:
            code = _CODE.match(part.replace("\0", ""))
            assert code is not None
            if code[0].strip() and (not shown or re.match(r"(python -m spkexp\.|spkexp )\w+ [^…]*$", code[0])):
                found += _read(f"{page.relative_to(ROOT)}:{line}", code[0])
            line += 1 + part.count("\0")
    return found


def _read(place: str, code: str) -> list[Command]:
    lexer = shlex.shlex(code, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise UnknownCommand(f"{place}: {code}: {error}") from error
    found: list[Command] = []
    rest: list[str] = []
    for token in [*tokens, "&&"]:
        if token in ("&&", ";"):
            if rest:
                found.append(_command(place, rest))
            rest = []
        else:
            rest.append(token)
    return found


def _command(place: str, tokens: list[str]) -> Command:
    variables, words, output = [], list(tokens), None
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables.append((name, value))
    if len(words) > 2 and words[-2] == ">":
        output, words = words[-1], words[:-2]
    if unquoted := [word for word in words if re.fullmatch(r"[();<>|&]+", word)]:
        raise UnknownCommand(f"{place}: {' '.join(tokens)}: no test knows what to do with {unquoted[0]}")
    if "…" in "".join(words):
        raise UnknownCommand(f"{place}: {' '.join(tokens)}: nobody can type …")
    return Command(place, tuple(words), tuple(variables), output)


def call_of_ours(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """(X, arguments) of `python -m spkexp.X …`, `spkexp X …` or `torchrun … -m spkexp.X …`; None: something else."""
    match words:
        case ("python", "-m", module, *arguments) if module.startswith("spkexp."):
            return module.removeprefix("spkexp."), arguments
        case ("spkexp", name, *arguments):
            return name, arguments
        case ("torchrun", *rest) if "-m" in rest:
            at = rest.index("-m")
            return rest[at + 1].removeprefix("spkexp."), rest[at + 2 :]
    return None


class _Parsed(BaseException):
    """Raised in a command of ours once it has read its arguments."""


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command would start: its config composes, its arguments are read, its target is there. Nothing is run.

    In a folder that has what the page names. Raises UnknownCommand, or what is wrong.
    """
    ours = call_of_ours(command.words)
    if ours is None:
        _others(command)
        return
    name, arguments = ours
    if name not in COMMANDS:
        raise UnknownCommand(f"{command.place}: there is no spkexp.{name}")
    with monkeypatch.context() as patch:
        if name == "train":
            _check_training(arguments, patch)
            return
        module = importlib.import_module(f"spkexp.{name}")
        reader = "parse_with_overrides" if hasattr(module, "parse_with_overrides") else "parse"
        read: Callable[..., Any] = getattr(module, reader)

        def read_only(*given: Any, **options: Any) -> Any:
            read(*given, **options)
            raise _Parsed

        patch.setattr(module, reader, read_only)
        patch.setattr(sys, "argv", [f"spkexp.{name}", *map(moved, arguments)])
        try:
            module.main()
        except (_Parsed, SystemExit) as end:
            code = end.code if isinstance(end, SystemExit) else 0
            assert not code, f"{command.place}: {command.text} ends with exit code {code}"


def _check_training(arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    # Seeds differ in nothing that is checked: one will do.
    line = CommandLine.read([re.sub(r"^(seed=\d+),.*", r"\1", moved(argument)) for argument in arguments])
    patch.setattr(file_config_source, "OmegaConf", SimpleNamespace(load=_parsed_once))
    # Every job of every study is composed by a test of its own: here what the command itself says.
    study = any(override.startswith("experiments=") for override in line.overrides)
    check_all(line.overrides, line.multirun, line.config_dir, shows=line.shows or study)


def _parsed_once(file: TextIO) -> Any:
    """OmegaConf.load for Hydra, which reads the same files for every command: parsing them is much of its time."""
    key = (file.name, os.fstat(file.fileno()).st_mtime_ns)
    if key not in _PARSED:
        _PARSED[key] = OmegaConf.load(file)
    return copy.deepcopy(_PARSED[key])


def _others(command: Command) -> None:
    """Programs that are not ours: what they name must be there. Raises UnknownCommand for others still."""
    words = command.words
    match words:
        case ("source", ".venv/bin/activate") | ("git", "clone" | "bisect" | "status" | "diff" | "commit", *_):
            return
        case ("cd", _) | ("hf", "auth", "login") | ("wandb", "login" | "sync", *_):
            return
        case ("make", *arguments):
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            missing = [word for word in arguments if "=" not in word and word not in targets]
            assert not missing, f"{command.place}: the Makefile has no target {missing}"
            return
        case ("pip", "install", *arguments):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            extras = re.findall(r"(?:spkexp|\.)\[([\w,]+)\]", " ".join(arguments))
            known = project["optional-dependencies"]
            missing = [extra for group in extras for extra in group.split(",") if extra not in known]
            assert not missing, f"{command.place}: pyproject.toml has no extra {missing}"
            from_an_index = [word for word in arguments if word.startswith("spkexp")]
            assert not from_an_index, f"{command.place}: spkexp is installed from its folder, -e '.[X]'"
            if "-c" in arguments:
                _is_there(command, ROOT / arguments[arguments.index("-c") + 1])
            return
        case ("conda" | "mamba", "env", "create", "-f", file):
            _is_there(command, ROOT / file)
            return
        case ("bash" | "sh", file, *_):
            _is_there(command, ROOT / file)
            return
        case ("python", "-m", module, *_) if module.startswith("tests."):
            path = ROOT.joinpath(*module.split("."))
            _is_there(command, path / "__main__.py" if path.is_dir() else path.with_suffix(".py"))
            return
        case ("python" | ".venv/bin/python", file, *_) if file.endswith(".py"):
            _is_there(command, ROOT / file)
            return
        case ("python", "-c", code):
            compile(code, command.place, "exec")
            return
        case ("pytest" | ".venv/bin/pytest" | "python", *arguments) if "pytest" in " ".join(words[:3]):
            for word in arguments:
                if word.startswith("tests"):
                    _is_there(command, ROOT / word.partition("::")[0])
            return
    raise UnknownCommand(f"{command.place}: {command.text}: no test knows this command")


def _is_there(command: Command, path: Path) -> None:
    assert path.exists(), f"{command.place}: {command.text}: there is no {path.relative_to(ROOT)}"


def moved(word: str) -> str:
    """`word` with /corpora/… and the like as folders below the current one."""
    return _ELSEWHERE.sub("", word)
