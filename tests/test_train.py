"""The main job as a user runs it: train, stop, resume, two processes, evaluate, verify."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spkexp import checkpoint
from tests.conftest import Corpus

ROOT = Path(__file__).parents[1]
TINY = [
    "data=manifest",
    "augment=none",
    "data.crop_seconds=0.4",
    "model.encoder.channels=16",
    "model.encoder.aggregation_channels=32",
    "model.encoder.se_channels=8",
    "model.encoder.res2net_scale=4",
    "model.features.num_mels=24",
    "model.embedding_size=16",
    "trainer.batch_size=8",
    "trainer.epochs=3",
    "trainer.log_every=1",
    "scoring.bootstrap=50",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}


def command(module: str, *arguments: str, processes: int = 1) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", f"spkexp.{module}", *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return [*launcher, f"--nproc-per-node={processes}", "-m", f"spkexp.{module}", *arguments]


def run(module: str, *arguments: str, processes: int = 1, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(module, *arguments, processes=processes),
        env=ENVIRONMENT,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


def train(manifest: Path, folder: Path, *more: str, processes: int = 1) -> Path:
    done = run("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{folder}'", *more, processes=processes)
    assert done.returncode == 0, done.stderr
    return folder


def tensors(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    model, head = checkpoint.load_tensors(folder / "checkpoints" / name)
    state = checkpoint.load_state(folder / "checkpoints" / name)
    moments = {
        f"{index}.{key}": value
        for index, entry in state["optimizer"]["state"].items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    return {**model, **{f"head.{k}": v for k, v in head.items()}, **moments}


def assert_identical(first: Path, second: Path) -> None:
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def steps(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train"]["loss"]) for line in lines if "train" in line]


def test_a_run_and_what_it_leaves(make_corpus: Corpus, tmp_path: Path) -> None:
    manifest = make_corpus()
    folder = tmp_path / "rün 1"
    done = run("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{folder}'", "trainer.optimizer.lr=0.005")
    assert done.returncode == 0, done.stderr
    for part in ("EER %", "untrained", "val (120)", f"run folder: {folder}"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= max(80, len(f"run folder: {folder}"))
    results = json.loads((folder / "results.json").read_text())
    entry = results["trials"]["val"]
    assert entry["num_trials"] == 120  # 16 utterances of two speakers: all pairs
    assert entry["num_targets"] == 56
    assert entry["eer_ci95"] is None  # two speakers cannot be resampled
    assert set(entry["min_dcf"]) == {"0.01", "0.05"}
    statistics = ("running_mean", "running_var", "num_batches_tracked", "features.")
    stored = checkpoint.load_tensors(folder / "checkpoints" / "best")[0]
    assert results["parameters"] == sum(
        tensor.numel() for name, tensor in stored.items() if not any(word in name for word in statistics)
    )
    assert len((folder / "scores" / "val.txt").read_text().splitlines()) == 120
    losses = [loss for _, loss in steps(folder)]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    for file in ("config.yaml", "environment.json", "train.log", "plots/det.png", "checkpoints/last/train_state.pt"):
        assert (folder / file).stat().st_size > 0
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == "2.11.0"

    again = run("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{folder}'")
    assert again.returncode == 2
    assert "exists and is not empty" in again.stderr

    _evaluate_and_verify(folder, manifest, entry["eer"], tmp_path)
    _fine_tune(folder, manifest, tmp_path)


def _evaluate_and_verify(folder: Path, manifest: Path, eer: float, tmp_path: Path) -> None:
    scores = [line.split() for line in (folder / "scores" / "val.txt").read_text().splitlines()]
    by_id = tmp_path / "list by id.txt"
    by_id.write_text("".join(f"{label} {a} {b}\n" for a, b, _, label in scores))
    by_file = tmp_path / "kaldi"
    by_file.write_text("".join(f"{a}.wav {b}.wav {'target' if l == '1' else 'nontarget'}\n" for a, b, _, l in scores))
    for trials in (by_id, by_file):
        done = run("evaluate", f"model={folder}", f"trials={trials}", f"data.root={manifest.parent}")
        assert done.returncode == 0, done.stderr
        entry = json.loads((folder / "results.json").read_text())["trials"][trials.stem]
        assert entry["eer"] == pytest.approx(eer, abs=1e-6)
        assert (folder / "scores" / f"{trials.stem}.txt").exists()
        assert (folder / "plots" / f"det-{trials.stem}.png").exists()

    by_id.write_text(by_id.read_text() + "1 nobody spk0-0\n")
    done = run("evaluate", f"model={folder}", f"trials={by_id}")
    assert done.returncode == 2
    assert f"{by_id}:121: no utterance is called 'nobody'" in done.stderr

    a, b, value, _ = scores[0]
    done = run("verify", f"model={folder}", f"{manifest.parent}/{a}.wav", f"{manifest.parent}/{b}.wav")
    assert done.returncode == 0, done.stderr
    printed = re.search(r"score (-?\d\.\d+)\n(same speaker|different speakers) \(threshold (-?[\d.]+)", done.stdout)
    assert printed
    assert float(printed[1]) == pytest.approx(float(value), abs=1e-4)
    if printed[1] != printed[3]:  # scores of a model so little trained lie close, so that the digits may agree
        assert (printed[2] == "same speaker") == (float(printed[1]) > float(printed[3]))
    missing = run("verify", f"model={folder}", "no.wav", f"{manifest.parent}/{b}.wav")
    assert missing.returncode == 2
    assert missing.stderr.startswith("spkexp: no.wav: ")


def _fine_tune(folder: Path, manifest: Path, tmp_path: Path) -> None:
    """Another number of speakers just works."""
    tuned = tmp_path / "tuned"
    fewer = "data.filter=\"speaker != 's0'\""
    train(manifest, tuned, f"init_from='{folder}'", fewer, "trainer.max_steps=1", "trainer.optimizer.lr=0.0000001")
    before, after = (checkpoint.load_tensors(f / "checkpoints" / "best") for f in (folder, tuned))
    assert before[1]["weight"].shape[0] == 4
    assert after[1]["weight"].shape[0] == 3
    torch.testing.assert_close(after[0]["embedding.weight"], before[0]["embedding.weight"], atol=1e-5, rtol=0)


WHOLE = ["data/sampler=bucketed", "data.sampler.buckets=2", "data.sampler.multiple_of=8", "data.crop_seconds=null"]


@pytest.mark.parametrize(
    ("processes", "more"),
    [(1, []), pytest.param(2, [*WHOLE, "augment=simulated"], marks=pytest.mark.slow)],
    ids=["crops", "two processes, whole"],
)
def test_killed_and_resumed_is_bit_for_bit_the_unbroken_run(
    make_corpus: Corpus, tmp_path: Path, processes: int, more: list[str]
) -> None:
    manifest = make_corpus()
    settings = ["trainer.accumulate=2", "trainer.checkpoint_steps=1", "model.encoder.channels=16", *more]
    whole = train(manifest, tmp_path / "whole", *settings, processes=processes)
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{broken}'", *settings, processes=processes),
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(_lines(broken / "metrics.jsonl")) >= 5, process)
    _kill_group(process)
    assert not (broken / "results.json").exists()
    done = run("train", f"resume='{broken}'", processes=processes)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed at step [1-9]", done.stderr)
    assert_identical(whole, broken)
    assert steps(whole) == steps(broken)
    one, other = (json.loads((f / "results.json").read_text())["trials"]["val"] for f in (whole, broken))
    assert one == other


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher and to every process below it, all at once."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def wait_for(condition: object, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_stopped_by_a_signal_saves_and_goes_on(
    make_corpus: Corpus, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    manifest = make_corpus()
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{folder}'", "trainer.epochs=200"),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for(lambda: len(_lines(folder / "metrics.jsonl")) >= 3, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, output
    saved = checkpoint.load_state(folder / "checkpoints" / "last")["position"]["step"]
    assert f"saved at step {saved}; go on with: python -m spkexp.train resume={folder}" in output
    assert "Traceback" not in output
    done = run("train", f"resume={folder}", f"trainer.max_steps={saved + 2}")
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {saved} of {saved + 2}" in done.stderr
    refused = run("train", f"resume={folder}", "trainer.batch_size=4")
    assert refused.returncode == 2
    assert "trainer.batch_size: cannot change on resume" in refused.stderr


def test_workers_and_bf16_and_accumulation(make_corpus: Corpus, tmp_path: Path) -> None:
    """The number of reading processes changes nothing; bf16 trains; data waits are recorded."""
    manifest = make_corpus()
    settings = ["trainer.precision=bf16", "trainer.max_steps=4", "loss=am_softmax", "trainer/optimizer=sgd"]
    settings += ["augment=speed"]
    one = train(manifest, tmp_path / "none", *settings)
    two = train(manifest, tmp_path / "two", *settings, "data.num_workers=2")
    assert_identical(one, two)
    lines = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["train"]["data_wait"] < 1 for line in lines if "train" in line)


def test_closed_set_by_utterance(make_corpus: Corpus, tmp_path: Path) -> None:
    manifest = make_corpus(speakers=4, utterances=20)
    settings = ["data.split.by=utterance", "data.split.fractions=[0.9,0.05,0.05]", "loss=softmax"]
    settings += ["loss.class_weights=inverse_frequency", "trainer.epochs=15", "trainer.optimizer.lr=0.005"]
    # The voices of these tests do not change over time, so their mean is all there is of them.
    settings += ["model.features.normalise=none"]
    folder = train(manifest, tmp_path / "run", *settings)
    trials = json.loads((folder / "results.json").read_text())["trials"]
    # One utterance a speaker: no target trials, so accuracy alone is measured and chooses the best checkpoint.
    assert "eer" not in trials["test"]
    assert trials["test"]["accuracy"] >= 0.75
    assert trials["val"]["untrained"]["accuracy"] < trials["val"]["accuracy"]


def test_two_processes_say_what_one_says(make_corpus: Corpus, tmp_path: Path) -> None:
    """Without batch statistics in the way of it, one step on two processes is the step on one."""
    manifest = make_corpus()
    settings = ["model=xvector", "model.features.num_mels=24", "trainer.max_steps=1", "loss=softmax"]
    settings += ["trainer.clip_norm=null", "trainer/optimizer=sgd"]
    base = [item for item in TINY if not item.startswith("model.")]
    losses = []
    for processes in (1, 2):
        folder = tmp_path / f"p{processes}"
        done = run("train", *base, *settings, f"data.manifest='{manifest}'", f"run_dir='{folder}'", processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run folder:") == 1
        losses.append(steps(folder)[0])
    # Batch normalisation sees half a batch in each process, so the losses are near, not equal.
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.2)
    refused = run(
        "train", *base, f"data.manifest='{manifest}'", "trainer.batch_size=7", f"run_dir='{tmp_path}/x'", processes=2
    )
    assert refused.returncode != 0
    assert "trainer.batch_size: 7 utterances cannot be shared equally by 2 processes" in refused.stderr


def test_augmentation_from_outside(make_corpus: Corpus, tmp_path: Path) -> None:
    """A class from another package, by import path, inside a chain of ours; it draws from each row's own key."""
    manifest = make_corpus()
    (tmp_path / "outside.py").write_text(
        "from spkexp.augment.augmentation import RowAugmentation, column\n"
        "class Fade(RowAugmentation):\n"
        "    def __init__(self, probability: float, low: float, sample_rate: int):\n"
        "        super().__init__(probability)\n"
        "        self.low, self.sample_rate = low, sample_rate\n"
        "    def change(self, waveform, lengths, key, *material):\n"
        "        gain = self.uniform(key, 0, self.low, 1.0)\n"
        "        print('faded', self.sample_rate, len(key), len(set(gain)), flush=True)\n"
        "        return waveform * column(gain, waveform), lengths\n"
    )
    ENVIRONMENT_WITH = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    arguments = [*TINY, f"data.manifest='{manifest}'", f"run_dir='{tmp_path}/run'", "trainer.max_steps=5", "seed=3"]
    arguments.append("trust=[outside]")
    node = (
        "augment.waveform={_target_: spkexp.augment.chain.Parallel, keep_original: true, "
        "branches: {faded: {_target_: outside.Fade, probability: 1.0, low: 0.5}}}"
    )
    done = subprocess.run(
        command("train", *arguments, node), env=ENVIRONMENT_WITH, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("faded")]
    assert lines == ["faded 16000 8 8"] * 5
    wrong = subprocess.run(
        command("train", *arguments, node.replace("low", "lwo")), env=ENVIRONMENT_WITH, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "augment.waveform.branches.faded.lwo: Fade takes no 'lwo'; did you mean 'low'?" in wrong.stderr


@pytest.mark.slow
def test_augmented_training_repeats_with_any_number_of_workers(make_corpus: Corpus, tmp_path: Path) -> None:
    """Noise, rooms, speeds and a sampler that repeats utterances: the same weights."""
    manifest = make_corpus()
    changes = ["augment=simulated", "augment.speeds=[0.9]", "augment.speed_copies=one", "data/sampler=speakers"]
    changes = ["trainer.epochs=2", "augment.speed_label=same", *changes]
    alone = train(manifest, tmp_path / "alone", *changes)
    helped = train(manifest, tmp_path / "helped", *changes, "data.num_workers=2")
    assert_identical(alone, helped)
    clean = tensors(train(manifest, tmp_path / "clean", *changes, "augment=none"))
    assert any(not torch.equal(tensor, clean[name]) for name, tensor in tensors(alone).items() if name in clean)


def test_ctrl_c_with_workers_saves(make_corpus: Corpus, tmp_path: Path) -> None:
    """A terminal signals the whole group, the reading processes included."""
    folder = tmp_path / "run"
    arguments = [*TINY, f"data.manifest='{make_corpus()}'", f"run_dir='{folder}'", "data.num_workers=2"]
    process = subprocess.Popen(
        command("train", *arguments, "trainer.epochs=500"),
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for(lambda: len(_lines(folder / "metrics.jsonl")) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, output
    assert checkpoint.load_state(folder / "checkpoints" / "last")["position"]["step"] >= 3


def test_resume_keeps_its_changes_and_refuses_what_cannot_be(make_corpus: Corpus, tmp_path: Path) -> None:
    manifest = make_corpus()
    folder = train(manifest, tmp_path / "run", "trainer.max_steps=2")
    done = run("train", f"resume={folder}", "trainer.max_steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = run("train", f"resume={folder}")  # at its end, by the changed config: scored once more
    assert again.returncode == 0, again.stderr
    assert "resumed at step 4 of 4" in again.stderr
    past = run("train", f"resume={folder}", "trainer.max_steps=3")
    assert past.returncode == 2
    assert "resume: the run is at step 4, past the end at 3" in past.stderr
    inside = run("train", f"resume={folder}/checkpoints/last")
    assert inside.returncode == 2
    assert f"is a checkpoint; give its run folder, resume={folder}" in inside.stderr
    manifest.write_text(manifest.read_text().replace("s0,", "s9,"))
    other = run("train", f"resume={folder}", "trainer.max_steps=6")
    assert other.returncode == 2
    assert "resume: the training utterances are not those" in other.stderr
