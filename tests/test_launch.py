"""Processes of a run, for real: what they return, how they end, who stops them, who outlives whom."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from spkexp import distributed, launch
from spkexp.agent import GRACE_SECONDS, SHORT_GRACE_SECONDS, Agent, environment
from spkexp.errors import ConfigError, UserError
from spkexp.interrupt import StopRequest
from spkexp.launch import Nodes, first_host
from spkexp.outcome import Outcome
from spkexp.watchdog import Watchdog

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def settings(folder: Path, nproc: int = 2, max_restarts: int = 0, **more: object) -> DictConfig:
    trainer = {"nproc": nproc, "max_restarts": max_restarts}
    return OmegaConf.create({"folder": str(folder), "rate": 1e-5, "trainer": trainer, **more})


def note(cfg: DictConfig, text: str) -> None:
    """A line from this process, which others read; short enough to be appended in one piece."""
    with open(Path(cfg.folder, "notes"), "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def notes(folder: Path) -> list[str]:
    return sorted(Path(folder, "notes").read_text(encoding="utf-8").splitlines())


def until(folder: Path, done: Callable[[list[str]], bool], seconds: float = 120) -> list[str]:
    end = time.monotonic() + seconds
    while not (Path(folder, "notes").exists() and done(notes(folder))):
        assert time.monotonic() < end
        time.sleep(0.05)
    return notes(folder)


def is_alive(process: int) -> bool:
    """Zombies do not count: where init does not collect orphans they stay for good."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# What the processes do; each is `task(cfg, resumed)`.


def dies(cfg: DictConfig, resumed: bool) -> Outcome:
    """Rank 1 kills itself in all attempts but the last; a sum of all ranks shows that each attempt is whole."""
    with distributed.processes("cpu", 1):
        attempt, size = distributed.attempt(), distributed.world_size()
        before = distributed.broadcast(distributed.recall(distributed.RUN_FOLDER))
        total = distributed.mean([float(distributed.rank())])[0] * size
        note(cfg, f"{attempt} rank {distributed.rank()} total {total:g} after {before}")
        if distributed.is_main():
            distributed.remember(distributed.RUN_FOLDER, f"ordner ü {attempt}")
        distributed.gather(None)
        if distributed.rank() == 1 and attempt < cfg.trainer.max_restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.gather(None)
    assert cfg.rate == 1e-5
    assert resumed
    return Outcome(cfg.folder, attempt + distributed.rank(), False)


def finds_a_mistake(cfg: DictConfig, resumed: bool) -> None:
    note(cfg, "started")
    with distributed.processes("cpu", 1):
        raise UserError("data: nothing there ü")


def raises(cfg: DictConfig, resumed: bool) -> None:
    with distributed.processes("cpu", 1):
        if distributed.is_main():
            distributed.remember(distributed.RUN_FOLDER, "/runs/this one")
        distributed.gather(None)
        if distributed.rank() == 1:
            raise ValueError("odd")
        distributed.gather(None)


def trains(cfg: DictConfig, resumed: bool) -> None:
    """Steps until it is asked to stop; saving takes the first process a second longer than the others."""
    with distributed.processes("cpu", 1):
        note(cfg, f"process {os.getpid()}")
        with StopRequest() as stop:
            for step in range(100_000):
                time.sleep(0.02)
                if distributed.any_of(stop())[0]:
                    note(cfg, f"rank {distributed.rank()} stops after step {step}")
                    break
                if step == 2:
                    note(cfg, "trains")
            stopped = stop.stopped()
        time.sleep(distributed.is_main())
        note(cfg, f"rank {distributed.rank()} saved")
        stopped.leave()


def hangs(cfg: DictConfig, resumed: bool) -> None:
    with distributed.processes("cpu", 0.05), Watchdog(0.05, Path(cfg.folder)) as dog:
        for step in range(3):
            distributed.gather(None)
            dog.beat(f"step {step}")
        if distributed.rank() == 1:
            time.sleep(600)
        distributed.gather(None)


def run(cfg: DictConfig, task: str) -> tuple[Outcome | None, int]:
    """What launch.run returns, and the code that it exits with."""
    try:
        return launch.run(cfg, True, f"tests.test_launch:{task}"), 0
    except SystemExit as end:
        return None, int(str(end.code))


def parent(task: str, folder: str, nproc: str, max_restarts: str) -> None:
    """A process that launches others."""
    outcome, code = run(settings(Path(folder), int(nproc), int(max_restarts)), task)
    print(outcome)
    sys.exit(code)


def worker(task: str, folder: str) -> None:
    """A process that torchrun starts."""
    globals()[task](settings(Path(folder), max_restarts=2), True)


def python(function: str, *arguments: str) -> list[str]:
    code = f"import sys; from tests.test_launch import {function}; {function}(*sys.argv[1:])"
    return ["-c", code, *arguments]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def start(importable: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(ARGUMENT, …, NAME=VALUE): Python with these arguments and variables, killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


Start = Callable[..., subprocess.Popen[str]]
ATTEMPTS = [
    *(f"0 rank {rank} total 1 after None" for rank in (0, 1)),
    *(f"1 rank {rank} total 1 after ordner ü 0" for rank in (0, 1)),
    *(f"2 rank {rank} total 1 after ordner ü 1" for rank in (0, 1)),
]


def test_a_killed_process_is_started_again_with_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    outcome, code = run(settings(tmp_path, max_restarts=1), "dies")
    assert (outcome, code) == (Outcome(str(tmp_path), 1, False), 0)  # rank 0's
    assert notes(tmp_path) == ATTEMPTS[:4]
    err = capfd.readouterr().err
    what = "spkexp: rank 1 of 2 was killed by SIGKILL (as the system does when memory runs out)"
    assert f"{what}; all start again from the last checkpoint (restart 1 of 1)\n" in err
    assert "Traceback" not in err
    assert before == (dict(os.environ), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)])


@pytest.mark.slow
def test_a_mistake_of_the_user_is_told_once_and_not_repeated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(settings(tmp_path, max_restarts=3), "finds_a_mistake") == (None, 2)
    assert notes(tmp_path) == ["started", "started"]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "spkexp: data: nothing there ü\n")


def stop_with(number: int, folder: Path) -> int:
    """Launch `trains`, send this process a signal when they do, and return the exit code."""

    def send() -> None:
        until(folder, lambda lines: lines.count("trains") == 2)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code = run(settings(folder, max_restarts=3), "trains")[1]
    sender.join()
    return code


def assert_saved(folder: Path) -> None:
    stops = {line.rpartition(" ")[2] for line in notes(folder) if "stops" in line}
    assert len(stops) == 1  # after the same step
    assert [line for line in notes(folder) if "saved" in line] == ["rank 0 saved", "rank 1 saved"]
    assert not any(is_alive(int(line.split()[1])) for line in notes(folder) if line.startswith("process"))


@pytest.mark.slow
def test_a_signal_reaches_all_processes_which_save(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert stop_with(signal.SIGTERM, tmp_path) == 143
    assert_saved(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("USR1", 75), ("USR2", 75), ("HUP", 129)])
def test_every_signal(name: str, code: int, tmp_path: Path) -> None:
    assert stop_with(signal.Signals[f"SIG{name}"], tmp_path) == code
    assert_saved(tmp_path)


@pytest.mark.slow
def test_a_process_that_raises_is_named_and_the_others_are_not_blamed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(settings(tmp_path, nproc=3), "raises") == (None, 1)
    err = capfd.readouterr().err
    assert err.splitlines()[-1] == f"spkexp: rank 1 of 3 ended with exit code 1; see {Path('/runs/this one/train.log')}"
    assert err.count("Traceback") == 1
    assert err.count("ValueError: odd") == 1
    assert err.count("lost the others") == 2


@pytest.mark.slow
def test_a_process_that_hangs_says_where_and_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert run(settings(tmp_path), "hangs") == (None, 1)
    assert time.monotonic() - began < 100  # not the two minutes that a collective waits
    err = capfd.readouterr().err
    assert "spkexp: rank 1 of 2 ended with exit code 1" in err
    stack = (tmp_path / "stacks" / "rank-1.txt").read_text()
    assert "since step 2; it does not wait for another process" in stack
    assert "time.sleep(600)" in stack
    assert stack in err
    assert not (tmp_path / "stacks" / "rank-0.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_no_process_outlives_the_one_that_started_it(torchrun: bool, tmp_path: Path, start: Start) -> None:
    if torchrun:
        arguments = [*TORCHRUN[1:], "--standalone", "--nproc-per-node=2", "--no-python", sys.executable]
        process = start(*arguments, *python("worker", "trains", str(tmp_path)))
    else:
        process = start(*python("parent", "trains", str(tmp_path), "2", "0"))
    lines = until(tmp_path, lambda lines: lines.count("trains") == 2)
    workers = [int(line.split()[1]) for line in lines if line.startswith("process")]
    assert [is_alive(worker) for worker in workers] == [True, True]
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while any(map(is_alive, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, start: Start) -> None:
    process = start(*python("parent", "waits", str(tmp_path), "1", "0"))
    until(tmp_path, lambda lines: "waits" in lines)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
    assert process.wait(timeout=GRACE_SECONDS / 3) == 130  # the patience that a first one gets is not waited for
    assert "spkexp: interrupted" in process.communicate()[0]


def waits(cfg: DictConfig, resumed: bool) -> None:
    with StopRequest():
        note(cfg, "waits")
        time.sleep(600)


def step(node: int, job: int) -> dict[str, str]:
    """What srun tells the task of a node, of two that are this machine."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost,localhost",
        "SLURM_NODEID": str(node),
        "SLURMD_NODENAME": "localhost",
    }


def port_of(job: int) -> int:
    with environment(**step(0, job)):
        return int(Nodes.here(0).endpoint.rpartition(":")[2])


def a_free_port() -> tuple[int, int]:
    """(a port that nobody listens to, a job whose nodes meet there)."""
    for job in range(os.getpid(), os.getpid() + 1000):
        with suppress(OSError), socket.create_server(("", port_of(job))):
            return port_of(job), job
    raise AssertionError("no port is free")


@pytest.mark.slow
@pytest.mark.parametrize("slurm", [False, True])
def test_two_agents_start_again_together(slurm: bool, tmp_path: Path, start: Start) -> None:
    agents = []
    port, job = a_free_port()
    for node in range(2):
        if slurm:
            agents.append(start(*python("parent", "dies", str(tmp_path), "1", "2"), **step(node, job)))
        else:
            options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=7"]
            options += [f"--rdzv-endpoint=localhost:{port}", "--local-addr=localhost", "--no-python", sys.executable]
            agents.append(start(*TORCHRUN[1:], *options, *python("worker", "dies", str(tmp_path))))
    printed = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert notes(tmp_path) == ATTEMPTS
    if slurm:
        assert f"Outcome(run_dir='{tmp_path}', value=2, pruned=False)" in printed[0]
        assert printed[1].splitlines()[-1] == "None"
        assert "rank 1 of 2 on" in printed[0] + printed[1]


@pytest.mark.slow
def test_a_warning_to_two_nodes_is_for_the_first_to_tell(tmp_path: Path, start: Start) -> None:
    """Slurm kills the tasks of a step when one of them fails, while another may still save."""
    _, job = a_free_port()
    agents = [start(*python("parent", "trains", str(tmp_path), "1", "0"), **step(node, job)) for node in range(2)]
    until(tmp_path, lambda lines: lines.count("trains") == 2)
    for agent in agents:
        agent.send_signal(signal.SIGUSR1)
    printed = [agent.communicate(timeout=200)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [75, 0], printed
    assert_saved(tmp_path)


def test_nodes_that_cannot_meet_say_why_and_what_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = a_free_port()
    with socket.create_server(("", port_of(job))), environment(**step(0, job)):
        monkeypatch.setattr(launch, "_launches", 0)
        assert run(settings(tmp_path), "dies") == (None, 1)
    err = capfd.readouterr().err
    assert f"the nodes cannot meet, 2 at localhost:{port_of(job)} within 600 s: " in err
    assert "start the step or the job again: each takes another port" in err
    # The second node, without whom the first does not begin.
    monkeypatch.setattr(launch, "_launches", 0)
    monkeypatch.setattr(launch, "_MEETING_SECONDS", 1)
    with environment(**step(0, job)):
        assert run(settings(tmp_path), "dies") == (None, 1)
    err = capfd.readouterr().err
    assert f"the nodes of the launch did not come together, 2 at localhost:{port_of(job)} within 1 s: " in err
    assert "see whether each node's task was started" in err


def agent_of(tmp_path: Path) -> Agent:
    cfg = settings(tmp_path)
    return Agent(launch._spec(cfg, Nodes.here(0), ("-c", "")), StopRequest(), "")


def test_a_warning_does_not_hurry_and_a_repetition_does(tmp_path: Path) -> None:
    agent = agent_of(tmp_path)
    left = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
        agent.forward(number)
        left.append(agent._deadline - time.monotonic())
    assert min(left[:3]) > GRACE_SECONDS / 2
    assert max(left[3:]) <= SHORT_GRACE_SECONDS


def is_stopped_by_another(cfg: DictConfig, resumed: bool) -> None:
    """Slurm warns the processes of a step by themselves; the parent, as it may be told, not at all."""
    with distributed.processes("cpu", 1), StopRequest() as stop:
        if distributed.is_main():
            os.kill(os.getpid(), cfg.trainer.signal)
        distributed.gather(None)
        stopped = stop.stopped()
    stopped.leave()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_code_of_processes_that_others_stopped(
    number: int, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = settings(tmp_path)
    cfg.trainer.signal = int(number)
    assert run(cfg, "is_stopped_by_another") == (None, code)
    assert "spkexp: rank" not in capfd.readouterr().err


def test_a_node_without_rank_0_waits_for_its_outcome_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody is there to have an agent's memory of."""
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    with environment(RANK="1", LOCAL_RANK="0"), pytest.raises(SystemExit) as end:
        launch._share(None, tmp_path / "outcome.json")
    assert end.value.code == distributed.EXIT_LOST
    assert "rank 0 did not come to its end within 0.5 s" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("gpu03,gpu04", "gpu03"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("r[1-2]n[010,020].cluster", "r1n010.cluster"),
    ],
)
def test_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_nodes() -> None:
    step = {"SLURM_JOB_ID": "123", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NODEID": "1", "SLURMD_NODENAME": "a2"}
    with environment(**step):
        first, second = Nodes.here(0), Nodes.here(1)
    assert (first.count, first.own, first.address) == (2, 1, "a2")
    assert first.endpoint.startswith("a1:")
    assert first.endpoint != second.endpoint  # the next job of a sweep
    assert first.run_id != second.run_id
    with environment(SLURM_JOB_ID="123", SLURM_NNODES="2", SLURM_NODEID="0"):  # a batch script outside srun
        assert Nodes.here(0).count == 1
    with (
        environment(**{**step, "SLURM_STEP_NUM_TASKS": "8"}),
        pytest.raises(ConfigError, match=r"8 tasks on 2 nodes.*--ntasks-per-node=1"),
    ):
        Nodes.here(0)


# A resumed run adds up gradients in the same order, whatever DDP learns in its first step.


def network() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 900), nn.BatchNorm1d(900), nn.ReLU(), nn.Linear(900, 700)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(700, 10))


def resumes_exactly(cfg: DictConfig, resumed: bool) -> None:
    def step(parallel: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for part in range(cfg.accumulate):
            seed = 1000 * (number * cfg.accumulate + part) + distributed.rank()
            batch = torch.randn(16, 100, generator=torch.Generator().manual_seed(seed))
            with distributed.no_sync(parallel, active=part < cfg.accumulate - 1):
                parallel(batch).square().mean().backward()
        optimizer.step()

    def start(weights: dict[str, torch.Tensor]) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        module = network()
        module.load_state_dict(weights)
        parallel = distributed.wrap(module, static_graph=cfg.static_graph)
        assert all(parameter.grad is None for parameter in module.parameters())
        return module, parallel, torch.optim.SGD(module.parameters(), 0.1)

    with distributed.processes("cpu", 1):
        whole, parallel, optimizer = start(network().state_dict())
        for number in range(4):
            if number == 2:
                weights = {name: value.clone() for name, value in whole.state_dict().items()}
            step(parallel, optimizer, number)
        broken, parallel, optimizer = start(weights)
        for number in (2, 3):
            step(parallel, optimizer, number)
        same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))
        average = torch.cat([parameter.flatten() for parameter in whole.parameters()]).double().abs().mean().item()
        note(cfg, f"{same} {average:.12g}")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_processes_resume_bit_for_bit(accumulate: int, tmp_path: Path) -> None:
    for static_graph in (False, True):
        cfg = settings(tmp_path, 3, accumulate=accumulate, static_graph=static_graph)
        assert run(cfg, "resumes_exactly") == (None, 0)
    lines = notes(tmp_path)
    assert len(lines) == 6
    assert len(set(lines)) == 1  # in every process, with a static graph and without
    assert lines[0].startswith("True")


def test_without_an_agent_nothing_is_remembered() -> None:
    distributed.remember("key", "text")
    assert distributed.recall("key") is None
    assert distributed.attempt() == 0
