"""`python -m spkexp.profile`, as a user meets it."""

import os
import re
from functools import partial

import pytest
import torch

from spkexp import __main__, profile
from tests.conftest import Run


@pytest.fixture
def run(run_command: Run) -> Run:
    return partial(run_command, "profile")


def rows(out: str, title: str) -> list[list[str]]:
    """Cells of the table below the line that begins with `title`, its heading left out."""
    lines = iter(out.splitlines())
    next(line for line in lines if line.startswith(title))
    next(line for line in lines if line.strip().startswith("──"))
    found = []
    for line in lines:
        if not line.strip():
            break
        found.append(re.split(r" {2,}", line.strip()))
    return found


def test_one_table_over_several_models(run: Run) -> None:
    done = run("-m", "model=ecapa_small,xvector", "steps=1", "batch_sizes=1,4", "device=cpu", "memory_gib=0.125")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    table = rows(done.out, "2 s of audio an utterance, fp32, CPU")
    # Parameters; MACs at 198 frames, see test_cost.py; batch; two speeds; two peaks.
    assert [row[:4] for row in table[::2]] == [["ecapa_small", "0.61", "0.072", "1"], ["xvector", "4.21", "0.529", "1"]]
    assert [row[0] for row in table[1::2]] == ["4", "4"]
    assert table[0][5] == table[0][7] == "–"
    assert "–: batch normalisation needs more than one utterance (ecapa_small training," in done.out
    assert all(float(cell.replace(",", "")) > 0 for row in table[1:] for cell in row[-4:])
    assert [row[0] for row in rows(done.out, "Largest batch in 0.125 GiB")] == ["ecapa_small", "xvector"]
    assert "xvector: modules that allocate more than twice their inputs" in done.out
    assert re.search(r"encoder.layers.0.conv \(Conv1d\): 0.39 MiB, 2\d\.\d times\n +channels 24 → 512", done.out)


def test_modules_without_timing(run: Run) -> None:
    changes = ["model.encoder.channels=32", "model.encoder.se_channels=8"]
    done = run(*changes, "modules=2", "steps=0", "batch_sizes=1024", "seconds=1", "precision=bf16", "device=cpu")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    assert "utt/s" not in done.out
    assert "1 s of audio an utterance, bf16, CPU" in done.out
    modules = {row[0]: row[1:] for row in rows(done.out, "ecapa_small encoder.channels=32")}
    # 80 inputs, 32 channels, kernel 5, bias, batch normalisation; 1 s has 98 frames.
    assert modules["first TDNN"][:3] == [f"{80 * 32 * 5 + 3 * 32:,}", f"{80 * 32 * 5 * 98 / 1e6:.2f}", "32×98"]
    names = [name.partition(" ")[0] for name in modules]
    assert names[:6] == ["features", "encoder", "first", "blocks.0", "blocks.1", "blocks.2"]
    assert "before" not in names  # three levels deep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=xvektor"], "model=xvektor: no such option; did you mean 'xvector'?"),
        (["-m", "model=xvector,eccapa"], "model=eccapa: no such option; did you mean 'ecapa'?"),
        (["model=ecapa,xvector"], "model: model=ecapa,xvector is a sweep; add -m to run it"),
        (["-m", "model=glob(*)"], "model: profile takes names separated by commas, not 'glob(*)'"),
        (
            ["-m", "model.embedding_size=interval(1,3)"],
            "model.embedding_size: profile takes values separated by commas",
        ),
        (["model.encoder.chanels=8"], "model.encoder.chanels: ECAPA takes no 'chanels'; did you mean 'channels'?"),
        (["model.encoder.channels=9"], "model.encoder: ECAPA: res2net_scale=8 must be at least 2 and divide"),
        (["seconds=0"], "seconds: must be > 0, got '0'"),
        (["seconds=nan"], "seconds: "),
        (["seconds=two"], "seconds: expected a number, got 'two'"),
        (["batch_sizes=1,x"], "batch_sizes.1: expected an integer, got 'x'"),
        (["batch_sizes=0"], "batch_sizes.0: must be > 0, got '0'"),
        (["memory_gib=-1"], "memory_gib: must be > 0, got '-1'"),
        (["precision=fp64"], "precision: must be one of fp32, bf16; got 'fp64'"),
        (["secnds=2"], "secnds: profile takes no 'secnds'; did you mean 'seconds'?"),
        (
            ["trainer.epochs=3"],
            "trainer.epochs: profile takes no 'trainer.epochs'; it takes model, model.KEY, experiments,",
        ),
        (["ecapa"], "ecapa: expected KEY=VALUE"),
        (["--verbose"], "--verbose: no such option; there are -m and --help"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments, "steps=0")
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_all_mistakes_are_named_at_once(run: Run) -> None:
    done = run("model=xvektor", "secnds=2", "steps=-1", "device=gpu")
    assert done.code == 2
    assert "spkexp: 4 mistakes in the config" in done.err


def test_no_cuda_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run("device=cuda")
    assert (done.code, done.out) == (2, "")
    assert "device: there is no CUDA device here; use device=cpu" in done.err


def test_more_than_this_machine_has_is_not_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a pass that would not fit is still known; its speed is not."""
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 1024)  # 4 MiB
    done = run("batch_sizes=4", "steps=1", "model=xvector", "device=cpu")
    assert done.code == 0, done.err
    assert "–: not run: it takes 0.0 GiB" in done.out
    assert rows(done.out, "2 s of audio")[0][4:6] == ["–", "–"]


def test_the_help_page(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    keys = set(re.findall(r"^  ([a-z_]+)=", done.out, re.MULTILINE))
    assert keys == {"model", "experiments", *profile.Arguments.model_fields} - {"overrides"}
    assert "profile" in __main__.COMMANDS
