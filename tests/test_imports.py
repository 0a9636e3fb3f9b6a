"""Imports go downward only, as shared/design.md draws them. Read from the source, so that lazy imports count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spkexp"
MAX_LINES = 300

COMMANDS = (
    "train",
    "evaluate",
    "calibrate",
    "embed",
    "verify",
    "prepare",
    "describe",
    "compare",
    "profile",
    "export",
    "convert",
    "publish",
)
# From the top down: a module imports from its own layer and from those below. A name stands for all below it.
LAYERS = (
    (*COMMANDS, "__main__", "__init__"),
    ("experiment", "evaluation", "calibration", "rescoring", "launch", "agent", "sweep", "sweep_signals"),
    ("exporting", "conversion", "embedding", "diarization", "publishing", "model_card"),
    ("inference",),
    ("results", "scorer", "machine", "loss_setup", "initial_weights", "watch"),
    ("trial_results",),
    ("build", "corpus", "trainer"),
    ("validation", "savepoint", "batch_memory"),
    ("meter", "progress", "interrupt", "run_folder", "report", "watchdog", "pruning", "position", "step_trace"),
    ("step", "checkpoint", "kept_weights", "tracking", "wandb_run", "wandb_tables", "scoring", "cost", "non_finite"),
    ("parameter_groups", "averages", "numerics", "durable", "changes", "allowance"),
    ("data",),
    ("models", "losses", "augment", "schedule"),
    ("features", "features_stft", "ops"),
)
# What a config says and how it is checked: below the entry points, and none of the business of LEARNING.
SETTINGS = (
    *("changes", "cli", "command_line", "compose", "override_errors", "arguments", "overrides", "model_choice"),
    *("resume", "config", "signature", "sections", "records", "trust", "saved_config"),
)
DISTRIBUTED = ("distributed", "agent_store")
# What starts and watches the processes of a run, and is not one of them, needs torchrun's parts alone.
AGENTS = ("agent", "launch")
OF_AGENTS = "torch.distributed.elastic"
# No part of the order: they import nothing of spkexp but one another, and all may import them.
LEAVES = (
    *("errors", "types", "counter", "allocator", "bar"),
    *("outcome", "lifeline", "lock", "whole_file", "exit_codes", "code_state", "cores"),
    *("foreign", "archives", "sources", "download"),
)
# What of spkexp each of these three may import.
REACH = ((LEAVES, LEAVES), (SETTINGS, (*SETTINGS, *LEAVES)), (DISTRIBUTED, (*DISTRIBUTED, *LEAVES)))
# Single-device code that sees neither Hydra, nor a config, nor a process group.
LEARNING = ("models", "losses", "augment", "schedule", "features", "features_stft", "ops")
FORBIDDEN_TO_LEARNING = ("hydra", "omegaconf", "torch.distributed", *(f"spkexp.{n}" for n in (*SETTINGS, *DISTRIBUTED)))

Imports = dict[str, set[str]]  # module -> what it imports, dotted


def part_of(module: str) -> str:
    """models, of spkexp.models.ecapa."""
    return module.removeprefix("spkexp").lstrip(".").partition(".")[0] or "__init__"


def rank(module: str) -> int | None:
    """Index of the layer; None for what has no place in the order."""
    return next((index for index, layer in enumerate(LAYERS) if part_of(module) in layer), None)


def imports(source: str, module: str = "") -> set[str]:
    """Everything that `source` imports; `from a import b` counts as a.b, for b may be a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def sources() -> dict[str, Path]:
    names = {file: file.relative_to(PACKAGE.parent).with_suffix("").parts for file in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__") or "spkexp": file for file, parts in names.items()}


@pytest.fixture(scope="module")
def package() -> Imports:
    return {module: imports(file.read_text(encoding="utf-8"), module) for module, file in sources().items()}


def is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def violations(package: Imports) -> list[str]:
    """Every import that goes upward, in words."""
    return sorted(set(_violations(package)))


def _violations(package: Imports) -> Iterator[str]:
    for module, names in package.items():
        part, own = part_of(module), rank(module)
        if own is None and part not in (*SETTINGS, *DISTRIBUTED, *LEAVES):
            yield f"{module} has no layer: give it one"
        for name in names:
            if part in LEARNING and any(is_below(name, forbidden) for forbidden in FORBIDDEN_TO_LEARNING):
                yield f"{module} sees {name}"
            of_agents = part in AGENTS and is_below(name, OF_AGENTS)
            if is_below(name, "torch.distributed") and part not in DISTRIBUTED and not of_agents:
                yield f"{module} imports torch.distributed"
            if not is_below(name, "spkexp"):
                continue
            other, target = part_of(name), rank(name)
            outside = next((other not in reach for group, reach in REACH if part in group), False)
            if outside or (own is not None and target is not None and target < own):
                yield f"{module} imports {name} upward"


def cycle(package: Imports) -> list[str]:
    """Modules that import one another in a ring, the first found; empty if there is none."""
    edges = {
        module: {other for name in names for other in (name, name.rpartition(".")[0]) if other in package} - {module}
        for module, names in package.items()
    }
    while edges:
        free = {module for module, others in edges.items() if not others & edges.keys()}
        if not free:
            return sorted(edges)
        edges = {module: others for module, others in edges.items() if module not in free}
    return []


def test_imports_go_downward_only(package: Imports) -> None:
    assert len(package) > 30
    assert violations(package) == []


def test_no_module_imports_itself_by_a_detour(package: Imports) -> None:
    without_packages = {module: names for module, names in package.items() if module != "spkexp"}
    assert cycle(without_packages) == []


def test_only_build_instantiates(package: Imports) -> None:
    users = {module for module, file in sources().items() if "instantiate" in identifiers(file.read_text("utf-8"))}
    assert users == {"spkexp.build"}
    assert {module for module, names in package.items() if any(is_below(n, "hydra.utils") for n in names)} == {
        "spkexp.build"
    }


def identifiers(source: str) -> set[str]:
    tree = list(ast.walk(ast.parse(source)))
    names = {node.id for node in tree if isinstance(node, ast.Name)}
    names |= {node.attr for node in tree if isinstance(node, ast.Attribute)}
    return names | {alias.name for node in tree if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_no_file_is_long() -> None:
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in sources().items()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("spkexp.models.ecapa", "from spkexp.models.layers import TDNN\nimport torch", []),
        ("spkexp.models.ecapa", "from spkexp import build", ["spkexp.models.ecapa imports spkexp.build upward"]),
        ("spkexp.models.ecapa", "from ..data import audio", ["spkexp.models.ecapa imports spkexp.data.audio upward"]),
        ("spkexp.data.x", "def f():\n    import spkexp.trainer", ["spkexp.data.x imports spkexp.trainer upward"]),
        ("spkexp.losses.x", "from omegaconf import DictConfig", ["spkexp.losses.x sees omegaconf.DictConfig"]),
        ("spkexp.augment.x", "from spkexp import sections", ["spkexp.augment.x sees spkexp.sections"]),
        ("spkexp.ops.scan", "from spkexp.models.ecapa import ECAPA", ["ecapa"]),
        ("spkexp.step", "from torch import distributed", ["spkexp.step imports torch.distributed"]),
        ("spkexp.agent", "from torch.distributed.elastic.rendezvous import RendezvousError", []),
        ("spkexp.agent", "from torch.distributed import TCPStore", ["spkexp.agent imports torch.distributed"]),
        ("spkexp.train", "import torch.distributed.elastic", ["spkexp.train imports torch.distributed"]),
        ("spkexp.features", "from spkexp.distributed import rank", ["spkexp.features sees spkexp.distributed.rank"]),
        ("spkexp.counter", "from spkexp.data import audio", ["spkexp.counter imports spkexp.data.audio upward"]),
        ("spkexp.config", "import spkexp.build", ["spkexp.config imports spkexp.build upward"]),
        ("spkexp.novelty", "import torch", ["spkexp.novelty has no layer: give it one"]),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, expected: list[str]) -> None:
    found = violations({module: imports(source, module)})
    assert len(found) == len(expected)
    assert all(part in message for part, message in zip(expected, found, strict=True))


def test_a_ring_is_found() -> None:
    ring = {"spkexp.a": {"spkexp.b.name"}, "spkexp.b": {"spkexp.c"}, "spkexp.c": {"spkexp.a.f"}, "spkexp.d": {"os"}}
    assert cycle(ring) == ["spkexp.a", "spkexp.b", "spkexp.c"]
    assert cycle({**ring, "spkexp.c": set()}) == []
