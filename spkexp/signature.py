"""The arguments of a class, read from its source without importing it.

A config is checked before torch is imported (importing it takes seconds), so the signature that a `_target_`
names is read with `ast`: the module is located on the path, its source parsed, re-exports followed.
"""

import ast
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spkexp import types as ranges


class TargetError(Exception):
    """A `_target_` that names nothing. The message says what was looked for and where."""


class Opaque:
    """Stands for a type that is unknown without importing its module; no config value is one."""


class Part:
    """Stands for a class of spkexp: a config gives such an argument as a node, which is built first."""


@dataclass(frozen=True)
class Signature:
    """Arguments of the callable `target`: their types (`Any` where unknown) and which must be given."""

    target: str
    types: MappingProxyType[str, Any]
    required: frozenset[str]
    accepts_any: bool

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]


@cache
def read_signature(target: str) -> Signature:
    """The signature of `target`, a dotted path such as "spkexp.models.ecapa.ECAPA". Raises TargetError."""
    module, attributes = _split(target)
    if len(attributes) != 1:
        raise TargetError(f"'{target}' is not a class or function in a module")
    definition, owner = _find(module, attributes[0])
    if definition is None:
        _require_listed(module, attributes[0])
        return _imported_signature(module, attributes[0])
    if isinstance(definition, ast.ClassDef):
        return _describe(target, *_constructor(definition, owner), is_method=True)
    return _describe(target, definition, owner, is_method=False)


def holds_parts(annotation: Any, value: object) -> bool:
    """Whether `value`, for an argument of this type, is a mapping of nodes by name, each of which is built first."""
    if typing.get_origin(annotation) is Mapping:
        named = typing.get_args(annotation)[1]
        return named is Part or Part in typing.get_args(named)
    # Of a type that cannot be known without an import: by what is in it
    members = value.values() if annotation is Any and isinstance(value, dict) and "_target_" not in value else ()
    return any(isinstance(part, dict) and "_target_" in part for part in members)


@cache
def owner_of(target: str) -> str:
    """The module whose source defines the class that `target` names; nothing is imported. Raises TargetError."""
    module, attributes = _split(target)
    if len(attributes) != 1:
        raise TargetError(f"'{target}' is not a class in a module")
    definition, owner = _find(module, attributes[0])
    if definition is None:
        _require_listed(module, attributes[0])
    if not isinstance(definition, ast.ClassDef):
        raise TargetError(f"'{target}' is not a class that the source of a module defines")
    return owner


def _require_listed(module: str, name: str) -> None:
    """Raise TargetError where `module` is of spkexp: its own source says which names it has."""
    tree = _source(module)
    if tree is not None and module.startswith("spkexp."):
        names = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
        raise TargetError(f"module '{module}' has no '{name}', but {', '.join(names)}")


def _split(target: str) -> tuple[str, list[str]]:
    """("spkexp.models.ecapa", ["ECAPA"]): the longest prefix that is a module, and the rest."""
    parts = target.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        if _spec(module) is not None:
            return module, parts[count:]
    raise TargetError(f"there is no module '{'.'.join(parts[:-1])}' (is its package installed?)")


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where `module` lies; unlike importlib.util.find_spec, this imports no parent package."""
    locations: Sequence[str] | None = None
    spec = None
    parts = module.split(".")
    for index in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: index + 1]), locations)
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        if locations is None and index + 1 < len(parts):
            return None
    return spec


@cache
def _source(module: str) -> ast.Module | None:
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _find(
    module: str, name: str, depth: int = 0
) -> tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | None, str]:
    """The definition of `name` in `module` or where it is re-exported from, and the module that holds it."""
    tree = _source(module)
    if tree is None or depth > 8:
        return None, module
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and node in tree.body:
            return node, module
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    package = module if _is_package(module) else module.rpartition(".")[0]
                    relative = "." * node.level + (node.module or "")
                    source = importlib.util.resolve_name(relative, package) if node.level else relative
                    return _find(source, alias.name, depth + 1)
    return None, module


def _is_package(module: str) -> bool:
    spec = _spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _constructor(definition: ast.ClassDef, module: str) -> tuple[ast.FunctionDef | None, str]:
    """The constructor of a class of `module`, or the one that it inherits, and the module that holds it."""
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return node, module
    for base in definition.bases:
        if isinstance(base, ast.Name):
            parent, owner = _find(module, base.id)
            if isinstance(parent, ast.ClassDef):
                return _constructor(parent, owner)
    return None, module


def _describe(
    target: str, function: ast.FunctionDef | ast.AsyncFunctionDef | None, owner: str, is_method: bool
) -> Signature:
    if function is None:
        return Signature(target, MappingProxyType({}), frozenset(), accepts_any=False)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = {a.arg for a in positional[len(positional) - len(arguments.defaults) :]}
    optional |= {a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d}
    named = [*positional[1 if is_method else 0 :], *arguments.kwonlyargs]
    return Signature(
        target,
        MappingProxyType({a.arg: _evaluate(a.annotation, owner) for a in named}),
        frozenset(a.arg for a in named if a.arg not in optional),
        accepts_any=arguments.kwarg is not None,
    )


class _Names(dict[str, Any]):
    """The names that an annotation in the module `owner` may use."""

    def __init__(self, owner: str) -> None:
        super().__init__(_KNOWN)
        self.owner = owner

    def __missing__(self, name: str) -> Any:
        return Part if _is_class_of_spkexp(name, self.owner) else Opaque


def _is_class_of_spkexp(name: str, owner: str) -> bool:
    tree = _source(owner)
    for node in tree.body if tree else ():
        imported = isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names)
        # What comes from elsewhere is not looked into: torch's sources take a second to parse.
        if isinstance(node, ast.ImportFrom) and imported and not f"{node.module}.".startswith("spkexp."):
            return False
    return owner.startswith("spkexp.") and isinstance(_find(owner, name)[0], ast.ClassDef)


_KNOWN = (
    {name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union", "Annotated")}
    | {name: value for name, value in vars(ranges).items() if not name.startswith("_")}
    | {t.__name__: t for t in (int, float, bool, str, list, tuple, dict)}
    | {"Mapping": Mapping, "Sequence": Sequence, "Path": str}
)


def _evaluate(annotation: ast.expr | None, owner: str) -> Any:
    """The annotation as a type; `Any` where it cannot be known without an import (say, `nn.Module`)."""
    if annotation is None:
        return Any
    try:
        evaluated = eval(ast.unparse(annotation), {"__builtins__": {}}, _Names(owner))
    except (AttributeError, TypeError, SyntaxError):
        return Any
    return Any if evaluated is Opaque else evaluated


def _imported_signature(module: str, name: str) -> Signature:
    """For what has no Python source to parse (extension modules, generated names): import it after all."""
    try:
        found = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(found).parameters.values()
    except (ImportError, AttributeError) as error:
        raise TargetError(f"module '{module}' has no '{name}'") from error
    except ValueError:  # a builtin without a signature
        return Signature(f"{module}.{name}", MappingProxyType({}), frozenset(), accepts_any=True)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return Signature(
        f"{module}.{name}",
        MappingProxyType({p.name: Any for p in named}),
        frozenset(p.name for p in named if p.default is p.empty),
        accepts_any=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )
