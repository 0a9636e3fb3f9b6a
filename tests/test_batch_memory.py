"""The largest batch that fits, against sums of its own, and what is said where one did not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spkexp import batch_memory, distributed
from spkexp.batch_memory import GIB, LOGITS, SHARE, explained, largest_batch_size
from spkexp.cost.memory import peak_bytes
from spkexp.cost.workload import Workload
from spkexp.errors import UserError
from spkexp.losses.softmax import Softmax
from spkexp.sections import Trainer as Settings
from spkexp.step import TrainStep
from tests.model_tools import count, speaker_model

MIB = 2**20
CLASSES, SECONDS = 30, 0.5


class Machine:
    """What a kernel says of its memory, in folders of their own."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)

    def free(self, size: int) -> None:
        (self.proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {size // 1024} kB\n")

    def within(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, path: str, names: tuple[str, str, str], limit: str | int, used: int, cache: int) -> None:
        folder = self.groups / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path)
    monkeypatch.setattr(batch_memory, "PROC", found.proc)
    monkeypatch.setattr(batch_memory, "CGROUPS", found.groups)
    found.free(64 * GIB)
    return found


def free() -> int:
    return batch_memory._free_bytes(torch.device("cpu"))


def test_without_control_groups_it_is_what_the_machine_has(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free() == 64 * GIB
    monkeypatch.setattr(distributed, "on_this_node", lambda: 4)
    assert free() == 16 * GIB


def test_a_limit_of_version_2_holds_for_the_groups_below(machine: Machine) -> None:
    job = "system.slice/slurmstepd.scope/job_7"
    machine.within(f"0::/{job}/step_0/user/task_0")
    machine.group("system.slice", V2, "max", 50 * GIB, 0)
    machine.group(job, V2, 8 * GIB, 3 * GIB, GIB)
    machine.group(f"{job}/step_0", V2, "max", 3 * GIB, GIB)
    assert free() == 6 * GIB  # the cache of files gives way
    machine.group(f"{job}/step_0/user/task_0", V2, 4 * GIB, 3 * GIB, 0)
    assert free() == GIB  # the tightest counts


def test_a_limit_of_version_1(machine: Machine) -> None:
    machine.within("5:devices:/x", "4:cpu,memory:/slurm/uid_1/job_7", "1:name=systemd:/", "0::/")
    machine.group("memory", V1, 9223372036854771712, 60 * GIB, 0)  # none
    machine.group("memory/slurm/uid_1/job_7", V1, 8 * GIB, 2 * GIB, 0)
    assert free() == 6 * GIB


def test_in_a_container_the_path_may_be_the_hosts(machine: Machine) -> None:
    machine.within("4:memory:/docker/0123")
    machine.group("memory", V1, 2 * GIB, GIB // 2, 0)
    assert free() == 3 * GIB // 2


def test_a_group_past_its_limit_has_nothing_left(machine: Machine) -> None:
    machine.within("0::/a")
    machine.group("a", V2, GIB, 2 * GIB, 0)
    assert free() == 0


@pytest.mark.parametrize("text", [None, "MemTotal: 1 kB\n", "nonsense\n"])
def test_a_machine_that_does_not_say_wants_a_number(machine: Machine, text: str | None) -> None:
    (machine.proc / "meminfo").unlink()
    if text is not None:
        (machine.proc / "meminfo").write_text(text)
    with pytest.raises(UserError, match=r"trainer\.batch_size=auto: .*meminfo does not say .*; set a number"):
        free()


@pytest.fixture(autouse=True, scope="module")
def counted_once() -> Iterator[None]:
    """Tracing a batch takes long, and all tests have the same model."""
    known: dict[int, int] = {}

    def peak(workload: Workload, rows: int, training: bool) -> int:
        if rows not in known:
            known[rows] = peak_bytes(workload, rows, training)
        return known[rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_memory, "peak_bytes", peak)
        yield


@pytest.fixture(scope="module")
def step() -> TrainStep:
    small = {"channels": 16, "aggregation_channels": 32, "se_channels": 8, "res2net_scale": 4}
    model = speaker_model("ecapa_small", **small)
    head = Softmax("none", 0.0, CLASSES, model.embedding_size, torch.ones(CLASSES))
    return TrainStep(model, head, None, None)


def settings(**chosen: Any) -> Settings:
    return Settings.model_construct(**{"precision": "fp32", "ema": None, "accumulate": 1, "batch_size": 64, **chosen})


def largest(step: TrainStep, most: int = 10**6, multiple_of: int = 1, **chosen: Any) -> int:
    return largest_batch_size(step, SECONDS, 1.0, settings(**chosen), CLASSES, most, multiple_of)


def need(step: TrainStep, part: int, ema: bool = False) -> int:
    """Bytes of a step, AdamW's moments and the average among them."""
    weights = 4 * (count(step.model) + count(step.head))
    parameters = sum(1 for _ in step.parameters())
    fixed = 2 * weights + 4 * parameters + (3 if ema else 2) * 4 * count(step.head)
    fixed += 4 * count(step.model) if ema else 0
    rows = peak_bytes(Workload(step.model, SECONDS, "fp32"), part, training=True)
    return rows + fixed + part * CLASSES * 4 * LOGITS


@pytest.mark.parametrize("ema", [False, True])
def test_the_answer_fits_and_twice_of_it_does_not(machine: Machine, step: TrainStep, ema: bool) -> None:
    machine.free(40 * MIB)
    part = largest(step, ema=0.9 if ema else None)
    room = SHARE * 40 * MIB
    assert part >= 8
    assert need(step, part, ema) <= room < need(step, part + 8, ema) < need(step, 2 * part, ema)


def test_parts_share_nothing_but_the_number(machine: Machine, step: TrainStep) -> None:
    machine.free(40 * MIB)
    assert largest(step, accumulate=3) == 3 * largest(step)


@pytest.mark.parametrize("multiple_of", [3, 10])
def test_the_sampler_can_use_it(machine: Machine, step: TrainStep, multiple_of: int) -> None:
    machine.free(40 * MIB)
    found = largest(step, multiple_of=multiple_of, accumulate=2)
    assert found > 0
    assert found % (2 * multiple_of) == 0  # each part as well
    assert found <= largest(step, accumulate=2)


@pytest.mark.parametrize(("most", "expected"), [(15, 15), (2, 2)])
def test_it_is_not_more_than_the_sampler_draws(machine: Machine, step: TrainStep, most: int, expected: int) -> None:
    machine.free(40 * MIB)
    assert largest(step, most=most) == expected


def test_what_cannot_be_is_told_apart(machine: Machine, step: TrainStep) -> None:
    with pytest.raises(UserError, match="can draw 7 utterances at once, too few for 4 parts"):
        largest(step, most=7, accumulate=4)
    machine.free(MIB)
    with pytest.raises(UserError, match=r"not even 2 crops of 0\.5 s fit into 0\.0 GiB; choose a shorter"):
        largest(step)
    with pytest.raises(UserError, match="not even 3 crops"):
        largest(step, multiple_of=3)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes", "advice"),
    [
        (64, 1, 1, "trainer.accumulate=2 works"),
        (45, 1, 1, "trainer.accumulate=3 works"),
        (48, 3, 2, "trainer.accumulate=4 works"),
        (50, 1, 2, "trainer.accumulate=5 works"),
        (25, 5, 1, "a smaller trainer.batch_size or a shorter data.crop_seconds"),  # parts of one would be left
        (7, 1, 1, "a smaller trainer.batch_size or a shorter data.crop_seconds"),
    ],
)
def test_the_advice_is_possible(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, accumulate: int, processes: int, advice: str
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    with pytest.raises(UserError) as caught, explained(settings(batch_size=batch_size, accumulate=accumulate)):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
    text = str(caught.value)
    assert f"trainer.batch_size: {batch_size} utterances, {batch_size // accumulate // processes} at a time" in text
    assert f"(CUDA out of memory.); {advice}" in text


def test_memory_that_the_cpu_has_not_is_explained() -> None:
    with pytest.raises(UserError, match="do not fit into memory"), explained(settings()):
        torch.empty(2**58, dtype=torch.uint8)  # for real
    with pytest.raises(UserError, match=r"do not fit into memory \(MemoryError\)"), explained(settings()):
        raise MemoryError


def test_other_errors_are_none_of_its_business() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained(settings()):
        raise RuntimeError("shapes do not match")
