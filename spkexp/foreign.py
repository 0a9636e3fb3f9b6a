"""Files that came from somewhere else: read as data, within bounds, without running any code of theirs.

Links are followed when something is read, for the hub's cache consists of them; what they lead to is read under the
same bounds, and must be a plain file. From an archive no link is made, and nothing is written through one.
"""

import io
import json
import os
import pickletools
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml

from spkexp.errors import UserError

# What a text that people write may have. A config of ours has 10 KB.
TEXT_BYTES = 1 << 18
LABELS_BYTES = 1 << 25  # a million names of 30 letters
# Weights do not compress: what grows by more than this was made to fill a disk, or the memory.
RATIO = 20
SMALL_BYTES = 1 << 20  # of which any number is harmless
_PICKLE_BYTES = 1 << 26  # what describes the tensors of a file, without their values
_MAX_DEPTH = 100
_MOST_VALUES = 100_000_000  # in a pickle, each counted as often as it is reached
_MARK = -1
_PICKLES_OF_OLD = 5  # one after the other in a file of torch before 1.6


def _open_plain(file: Path, limit_bytes: int | None) -> BinaryIO:
    """`file`, opened. Raises UserError unless it is a plain file (or a link to one) of at most so many bytes."""
    try:
        # Without O_NONBLOCK a named pipe would hang here.
        source = os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read: {reason}; bring it back from a copy") from None
    found = os.fstat(source.fileno())
    wrong = None
    if not stat.S_ISREG(found.st_mode):
        wrong = f"{file}: is no plain file"
    elif limit_bytes is not None and found.st_size > limit_bytes:
        wrong = f"{file}: refused: it has {found.st_size:,} bytes, at most {limit_bytes:,} are read of such a file"
    if wrong is not None:
        source.close()
        raise UserError(wrong)
    return source


def require_file(file: Path, limit_bytes: int | None = None) -> None:
    """Raise UserError unless `file` is a plain file (or a link to one) of at most so many bytes."""
    _open_plain(file, limit_bytes).close()


def read_text(file: Path, limit_bytes: int = TEXT_BYTES) -> str:
    """The UTF-8 text of `file`. Raises UserError."""
    with _open_plain(file, limit_bytes) as source:
        try:
            return source.read(limit_bytes + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); bring it back from a copy") from error


class PlainLoader(yaml.SafeLoader):
    """Neither tags that make objects nor aliases, with which a few lines become gigabytes."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias (*name) is not allowed")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if names and max(names.values()) > 1:
            name = names.most_common(1)[0][0]
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {name!r} stands there more than once")
        return super().construct_mapping(node, deep)


# As OmegaConf reads them: 1e-3 is a number, 2026-11-21 a text; and 1:30 is no number of base 60, which takes long.
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith((":timestamp", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(file: Path) -> Any:
    """What a YAML file says, as plain Python values. Raises UserError."""
    text = read_text(file)
    try:
        return yaml.load(text, PlainLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: cannot be read: {reason}; bring it back from a copy") from error


def read_json(file: Path, limit_bytes: int = TEXT_BYTES) -> Any:
    """What a JSON file says. Raises UserError."""
    text = read_text(file, limit_bytes)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {error}; bring it back from a copy") from error


def read_tensors(file: Path) -> dict[str, Any]:
    """What a file of weights holds: safetensors, or torch's format with tensors and plain values alone.

    A .pt or .ckpt may hold nested dictionaries. Raises UserError, also for one that would have to be unpickled.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(file)
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, AttributeError, MemoryError) as error:
            raise UserError(f"{file}: cannot be read as tensors ({error}); bring it back from a copy") from error
    try:
        _check_torch_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # of whatever kind the bytes provoke
        named = re.search(r"GLOBAL:? ([A-Za-z_][\w.]+)", str(error))
        if named is not None or "Unsupported" in str(error):
            what = named[1] if named else "something else"
            raise UserError(
                f"{file}: holds {what} beside tensors and plain values, which is refused, because reading it can run "
                "code; where you trust it, save its state_dict alone: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(
            f"{file}: cannot be read as tensors ({reason}); is it whole, and torch's? Bring it back from a copy"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds a {type(found).__name__}, not tensors by name; save a state_dict")
    _check_sizes(file, found)
    return found


def _check_torch_file(file: Path) -> None:
    """torch stores the members of its files as they are: what is compressed was made to fill the memory."""
    if not zipfile.is_zipfile(file):
        with _open_plain(file, None) as source, suppress(ValueError):  # torch will say what it is
            for _ in range(_PICKLES_OF_OLD):
                _check_pickle(file, source)
        return
    with open_zip(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{file}: refused: its member {member.filename!r} is compressed; torch saves none so")
            if member.filename.endswith("data.pkl") and member.file_size > _PICKLE_BYTES:
                raise UserError(f"{file}: refused: its member {member.filename!r} has {member.file_size:,} bytes")
        require_proportion(file, sum(member.file_size for member in archive.infolist()), 1)
        for member in archive.infolist():
            if member.filename.endswith("data.pkl"):
                _check_pickle(file, io.BytesIO(archive.read(member)))


def _check_pickle(file: Path, source: IO[bytes]) -> None:
    """Go over a pickle without executing it. Raises UserError where its values hold one another so often that it would
    take for ever to look at them all, ValueError for what is no pickle."""
    stack, memo = list[int](), dict[int, int]()
    for code, argument, _ in pickletools.genops(source):
        if code.name.endswith("GET"):
            stack.append(memo.get(int(argument or 0), 1))
            continue
        taken: list[int] = []
        for kind in reversed(code.stack_before):
            if kind is pickletools.stackslice:
                while stack and stack[-1] != _MARK:
                    taken.append(stack.pop())
            elif not stack:
                raise ValueError("a pickle that takes more than it has put there")
            else:
                taken.append(stack.pop())
        size = 1 + sum(size for size in taken if size != _MARK)
        if size > _MOST_VALUES:
            raise UserError(f"{file}: refused: its values hold one another too often")
        stack += [_MARK if kind is pickletools.markobject else size for kind in code.stack_after]
        if (code.name.endswith("PUT") or code.name == "MEMOIZE") and stack:
            memo[len(memo) if argument is None else int(argument)] = stack[-1]


def _check_sizes(file: Path, found: Mapping[str, Any]) -> None:
    """A tensor may say that it has more values than are stored: a copy of it would fill the memory."""
    import torch
    from torch import Tensor

    total, waiting, seen = 0, list[Any](found.values()), set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta:
                raise UserError(f"{file}: refused: it holds a tensor without plain values")
            total += value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
    require_proportion(file, total)


def require_proportion(file: Path, total_bytes: int, ratio: int = RATIO) -> None:
    """Raise UserError where `file` would become `total_bytes` that are out of proportion to its own size."""
    if total_bytes > max(file.stat().st_size * ratio, SMALL_BYTES):
        raise UserError(
            f"{file}: refused: its {file.stat().st_size:,} bytes would become {total_bytes:,}, as no data does"
        )


@contextmanager
def open_zip(file: Path, members: int = 100_000) -> Iterator[zipfile.ZipFile]:
    """A zip of at most so many members. Raises UserError for one with more, zipfile's errors for a damaged one."""
    with _open_plain(file, None) as source:
        count, before = 0, b""
        while block := source.read(1 << 20):  # before zipfile makes an object of each
            count += (before + block).count(b"PK\1\2")
            before = block[-3:]
        if count > 2 * members:
            raise UserError(f"{file}: refused: it has {count:,} members")
        source.seek(0)
        with zipfile.ZipFile(source) as archive:
            yield archive
