"""Checkpoints of other toolkits for the tests of conversion: made with random weights, or from lists of names.

tests/conversion_keys holds the names and shapes of published models' tensors as their own code makes them, one file a
model: a line with the toolkit, one with the number of parameters that is published or counted there, then a line for
each group of names: layer1.{0-2}.conv1.weight 32 32 3 3. The tests in tests/parity hold the lists against that code.
"""

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from spkexp import build
from spkexp.conversion.conversion import Request, convert
from spkexp.models.speaker import SpeakerModel

KEYS = Path(__file__).with_name("conversion_keys")
NAMES = sorted(path.stem for path in KEYS.glob("*.txt"))
COUNTER = "num_batches_tracked"  # is there wherever there is a running_var, and stands in no list
Shapes = dict[str, tuple[int, ...]]


class Listed(NamedTuple):
    """Names and shapes of a published model's tensors."""

    toolkit: str
    parameters: int
    shapes: Shapes


def listed(name: str) -> Listed:
    """tests/conversion_keys/NAME.txt."""
    toolkit, parameters, *lines = (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    shapes: Shapes = {}
    for line in lines:
        pattern, *sizes = line.split()
        shapes |= dict.fromkeys(_expanded(pattern), tuple(map(int, sizes)))
    counters = [name.replace("running_var", COUNTER) for name in shapes if name.endswith("running_var")]
    return Listed(toolkit, int(parameters), shapes | dict.fromkeys(counters, ()))


def _expanded(pattern: str) -> list[str]:
    """a.{0-2,5}.{x,y} -> a.0.x, a.0.y, a.1.x, …, a.5.y."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    parts, _, after = rest.partition("}")
    values: list[str] = []
    for part in parts.split(","):
        first, dash, last = part.partition("-")
        values += [str(number) for number in range(int(first), int(last) + 1)] if dash else [part]
    return [f"{before}{value}{ending}" for value in values for ending in _expanded(after)]


def lines(shapes: Shapes) -> list[str]:
    """The lines of a list: what differs in its last word alone, or in one number, and is of one shape, on one."""
    words: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in shapes.items():
        place, _, word = name.rpartition(".")
        if word != COUNTER:
            words.setdefault((place, shape), []).append(word)
    left = {(place, shape, tuple(ends)) for (place, shape), ends in words.items()}
    found = []
    for place, shape, ends in [(place, shape, tuple(ends)) for (place, shape), ends in words.items()]:
        if (place, shape, ends) not in left:
            continue
        best = [place], place
        for match in re.finditer(r"\d+", place):
            before, after = place[: match.start()], place[match.end() :]
            pattern = re.compile(f"{re.escape(before)}(\\d+){re.escape(after)}")
            matches = {other[0]: pattern.fullmatch(other[0]) for other in left if other[1:] == (shape, ends)}
            same = {other: int(match[1]) for other, match in matches.items() if match}
            if len(same) > len(best[0]):
                best = list(same), f"{before}{{{_ranges(same.values())}}}{after}"
        left -= {(other, shape, ends) for other in best[0]}
        dot = "." if place else ""
        ending = ends[0] if len(ends) == 1 else "{" + ",".join(ends) + "}"
        found.append(" ".join([f"{best[1]}{dot}{ending}", *map(str, shape)]))
    return found


def _ranges(numbers: Iterable[int]) -> str:
    runs = [list(run) for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def random_tensors(shapes: Shapes) -> dict[str, Tensor]:
    """Values that no two tensors share, variances positive."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7) if name.endswith("num_batches_tracked") else torch.rand(shape, generator=generator) + 0.1
        for name, shape in shapes.items()
    }


def write(folder: Path, name: str, content: Mapping[str, Any], companions: Mapping[str, str] | None = None) -> Path:
    """A checkpoint with the text files that lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), folder / name)
    for companion, text in (companions or {}).items():
        (folder / companion).write_text(text, encoding="utf-8")
    return folder / name


def converted(
    folder: Path, source: str, content: Mapping[str, Any], companions: Mapping[str, str] | None = None, *overrides: str
) -> SpeakerModel:
    """What `python -m spkexp.convert` makes of this content of a checkpoint, as all commands load it."""
    checkpoint = write(folder / "theirs", "model.pt", content, companions)
    convert(Request(source, str(checkpoint), folder / "ours", None, overrides))
    return build.trained_model(folder / "ours")[0]


def speech(shared_data: Path, seconds: tuple[float, ...] = (2.3, 4.1)) -> list[Tensor]:
    """Real speech (1, samples) at 16 kHz in [-1, 1], a part of another recording for each of `seconds`."""
    files = sorted((shared_data / "LibriSpeech").glob("test-other/*/*/*.flac"))[::7]
    parts = []
    for file, length in zip(files, seconds, strict=False):
        samples, rate = soundfile.read(file, frames=round(length * 16_000), dtype="float32")
        assert rate == 16_000
        parts.append(torch.from_numpy(np.asarray(samples))[None])
    return parts


def embedded(model: SpeakerModel, waveform: Tensor) -> Tensor:
    """(1, samples) -> (1, embedding_size)."""
    with torch.no_grad():
        return model(waveform, torch.tensor([waveform.shape[1]]))


def peer_module(package: str, folder: Path | None, module: str, remedy: str) -> ModuleType:
    """package.module of a checkout, without the imports of the package itself. Skips where there is none."""
    if folder is None or not (folder / package).is_dir():
        pytest.skip(remedy)
    if package not in sys.modules:
        stub = ModuleType(package)
        stub.__path__ = [str(folder / package)]
        sys.modules[package] = stub
    return import_module(f"{package}.{module}")
