"""Bad input, as a user meets it: a clear error that names the thing, or a skip that is counted; nothing is lost.

Commands run in this process, as `python -m` runs them: what they print and their exit code are the test's to see, and
an error that is not the user's would come through as itself.
"""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from spkexp import build, checkpoint, run_folder
from spkexp.compose import compose_config
from spkexp.errors import UserError
from tests.conftest import Corpus, Run
from tests.test_train import TINY

RATE = 16_000


@pytest.fixture
def run(run_command: Run) -> Iterator[Run]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run_command
    torch.set_num_threads(threads)


def settings(manifest: Path, folder: Path, *more: str) -> list[str]:
    return [
        *TINY,
        "trainer.max_steps=4",
        "scoring.bootstrap=0",
        f"data.manifest='{manifest}'",
        f"run_dir='{folder}'",
        *more,
    ]


def rewrite(manifest: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Replace the manifest's table by what `change` makes of it."""
    change(pl.read_csv(manifest, infer_schema=False)).write_csv(manifest)


def steps(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train" in line]


def noise(channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).normal(0, 0.1, (round(0.6 * RATE), channels))
    return samples.astype(np.float32)


def truncated_flac(file: Path) -> None:
    soundfile.write(file, noise(), RATE, format="FLAC")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])


def with_nan(file: Path) -> None:
    samples = noise()
    samples[::50] = np.nan
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")


def wave(file: Path, samples: np.ndarray, rate: int = RATE) -> None:
    soundfile.write(file, samples, rate, format="WAV")


# What becomes of a file, and what the error says behind the file's name.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such file; check data.root"),
    "zero length": (lambda file: file.write_bytes(b""), "the file is empty (0 bytes)"),
    "no samples": (lambda file: wave(file, noise()[:0]), "holds no samples"),
    "truncated flac": (truncated_flac, "truncated"),
    "text": (lambda file: file.write_text("This is no sound.\n" * 50), "not readable as audio"),
    "8 kHz": (lambda file: wave(file, noise(), 8000), "sampled at 8000 Hz, expected 16000 Hz; set data.resample=true"),
    "stereo": (lambda file: wave(file, noise(2)), "2 channels, expected 1; set data.mix_channels=true"),
    "NaN": (with_nan, "holds NaN or infinite samples"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_raise_names_the_file(make_corpus: Corpus, tmp_path: Path, run: Run, kind: str) -> None:
    manifest = make_corpus()
    broken = manifest.parent / "spk1-3.wav"
    BROKEN[kind][0](broken)
    folder = tmp_path / "run"
    # 32 utterances of training and 8 a step: the broken one comes up in the first epoch.
    done = run("train", *settings(manifest, folder))
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("spkexp: ")]
    assert line.startswith(f"spkexp: {broken}: {BROKEN[kind][1]}")
    assert "data.on_error=skip leaves such files out" in line
    assert "utterance spk1-3" in line
    assert not (folder / "results.json").exists()


def test_without_durations_a_broken_file_is_found_before_training(
    make_corpus: Corpus, tmp_path: Path, run: Run
) -> None:
    manifest = make_corpus()
    rewrite(manifest, lambda table: table.drop("duration"))
    broken = manifest.parent / "spk1-3.wav"
    broken.unlink()
    done = run("train", *settings(manifest, tmp_path / "raise"))
    assert done.code == 2
    assert f"spkexp: {broken}: no such file" in done.err
    assert not (tmp_path / "raise" / "metrics.jsonl").exists()

    skip = ["data.on_error=skip", "data.max_bad_fraction=0.02"]  # 1 of 48 is a share of .0208
    done = run("train", *settings(manifest, tmp_path / "past", *skip))
    assert done.code == 2
    assert "1 of 48 files cannot be used, more than data.max_bad_fraction=0.02" in done.err
    done = run("train", *settings(manifest, tmp_path / "skip", *skip[:1], "data.max_bad_fraction=0.021"))
    assert done.code == 0, done.err
    assert "train 31 utterances of 4 speakers" in done.err
    assert "skipped spk1-3: " in (tmp_path / "skip" / "train.log").read_text()
    assert json.loads((tmp_path / "skip" / "results.json").read_text())["skipped_files"] == 1


def test_skip_counts_lists_and_goes_on(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    """Broken files of every kind in training and in validation; and what `evaluate` makes of one more."""
    manifest = make_corpus()
    for number, (damage, _) in enumerate(BROKEN.values()):
        damage(manifest.parent / f"spk{number % 4}-{number}.wav")
    (manifest.parent / "spk4-2.wav").write_text("no sound")
    folder = tmp_path / "run"
    skip = ["data.on_error=skip", "data.max_bad_fraction=0.25", "trainer.max_steps=8"]  # 8 steps: every file twice
    done = run("train", *settings(manifest, folder, *skip))
    assert done.code == 0, done.err
    assert steps(folder) == list(range(1, 9))
    log = (folder / "train.log").read_text()
    for number, (_, reason) in enumerate(BROKEN.values()):
        name = f"spk{number % 4}-{number}"
        assert log.count(f"skipped {name}: {manifest.parent}/{name}.wav: {reason}") == 1
    assert "(8 so far)" in log
    assert f"val: skipped spk4-2: {manifest.parent}/spk4-2.wav: not readable as audio" in log
    assert "val: skipped 15 of 120 trials" in log
    results = json.loads((folder / "results.json").read_text())
    assert results["skipped_files"] == 8
    # 7 utterances of one speaker and 8 of the other are left: 21 + 28 pairs of targets, 105 in all.
    val = results["trials"]["val"]
    assert (val["num_trials"], val["num_targets"], val["skipped_trials"]) == (105, 49, 15)
    assert len((folder / "scores" / "val.txt").read_text().splitlines()) == 105
    assert "spk4-2" not in (folder / "scores" / "val.txt").read_text()

    (manifest.parent / "spk5-0.wav").unlink()
    done = run("evaluate", f"model={folder}")
    assert done.code == 0, done.err
    assert "val: skipped 29 of 120 trials" in done.err
    val = json.loads((folder / "results.json").read_text())["trials"]["val"]
    assert (val["num_trials"], val["num_targets"], val["skipped_trials"]) == (91, 42, 29)
    for number in range(4):
        (manifest.parent / f"spk5-{number}.wav").unlink(missing_ok=True)
    done = run("evaluate", f"model={folder}")
    assert done.code == 2
    assert "spkexp: 5 of 16 utterances cannot be used, more than data.max_bad_fraction=0.25; the last: " in done.err
    assert f"{manifest.parent}/spk5-3.wav: no such file" in done.err


def test_skip_remembers_across_a_resume(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    manifest = make_corpus()
    for name in ("spk0-0", "spk1-1", "spk2-2", "spk3-3"):
        (manifest.parent / f"{name}.wav").write_bytes(b"")
    folder = tmp_path / "run"
    skip = ["data.on_error=skip", "data.max_bad_fraction=0.2", "trainer.checkpoint_steps=1"]
    assert run("train", *settings(manifest, folder, *skip, "trainer.max_steps=4")).code == 0
    done = run("train", f"resume='{folder}'", "trainer.max_steps=5")
    assert done.code == 0, done.err
    assert "skipped" not in done.err  # each is named once, not once a start
    assert json.loads((folder / "results.json").read_text())["skipped_files"] == 4


def test_skip_stops_past_the_limit(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    manifest = make_corpus()
    broken = [f"spk{speaker}-{speaker}" for speaker in range(4)]
    for name in broken:
        (manifest.parent / f"{name}.wav").write_bytes(b"")
    folder = tmp_path / "run"
    # 3 of 32 are .094, within the limit; the 4th passes it.
    skip = ["data.on_error=skip", "data.max_bad_fraction=0.1", "trainer.max_steps=12"]
    done = run("train", *settings(manifest, folder, *skip))
    assert done.code == 2
    message = "4 of 32 training files cannot be used, more than data.max_bad_fraction=0.1; train.log lists them"
    assert f"spkexp: {message}" in done.err
    log = (folder / "train.log").read_text()
    assert all(log.count(f"skipped {name}: ") == 1 for name in broken)
    assert len(steps(folder)) <= 4  # by the end of the first epoch
    assert not (folder / "results.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_of_another_rate(make_corpus: Corpus, tmp_path: Path, run: Run, workers: int) -> None:
    """Not one file can be used, so no other takes a broken one's place; workers tell of it as the process itself."""
    manifest = make_corpus(speakers=4, utterances=4)
    rewrite(manifest, lambda table: table.with_columns(pl.lit("train").alias("split")))
    for file in manifest.parent.glob("*.wav"):
        wave(file, noise(), 8000)
    done = run("train", *settings(manifest, tmp_path / "run", f"data.num_workers={workers}"))
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("spkexp: ")]
    assert line.startswith(f"spkexp: {manifest.parent}/spk")
    assert "sampled at 8000 Hz, expected 16000 Hz; set data.resample=true to resample it" in line


def test_utterances_shorter_than_the_crop(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    manifest = make_corpus()  # of 0.6, 0.65 and 0.7 s
    first = {}
    for short in ("wrap", "pad"):
        folder = tmp_path / short
        crop = ["data.crop_seconds=0.7", f"data.short={short}", "trainer.max_steps=1"]
        done = run("train", *settings(manifest, folder, *crop))
        assert done.code == 0, done.err
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        first[short] = line["train"]["loss"]
    assert all(np.isfinite(loss) for loss in first.values())
    assert first["wrap"] != first["pad"]


def test_speakers_with_one_utterance(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    """In training it is a class like the others; in validation, where all have one, there are no trials."""
    manifest = make_corpus()
    rewrite(manifest, lambda table: table.filter(~pl.col("id").str.contains(r"^spk[045]-[1-7]")))
    folder = tmp_path / "run"
    done = run("train", *settings(manifest, folder, "trainer.max_steps=3"))
    assert done.code == 0, done.err
    assert "train 25 utterances of 4 speakers" in done.err
    assert "val: its 2 utterances make no trials, so there is no EER; it needs two speakers" in done.err
    results = json.loads((folder / "results.json").read_text())
    assert results["classes"] == 4
    assert results["trials"] == {}
    assert "no validation trials: the best checkpoint is the last" in done.err
    assert "no trials, so no error rates" in done.out
    assert checkpoint.load_labels(folder / "checkpoints" / "last") == ["s0", "s1", "s2", "s3"]


def _twice(manifest: Path) -> list[str]:
    rewrite(manifest, lambda table: pl.concat([table, table.head(2)]))
    return [f"{manifest}: id spk0-0 stands in more than one row (2 such ids); ids must be unique"]


def _no_bytes(manifest: Path) -> list[str]:
    manifest.write_bytes(b"")
    return [f"{manifest}: the manifest is empty"]


def _header_only(manifest: Path) -> list[str]:
    rewrite(manifest, lambda table: table.head(0))
    return [f"{manifest}: the manifest has no rows"]


def _gone(manifest: Path) -> list[str]:
    manifest.unlink()
    return [f"{manifest}: no such manifest; set data.manifest"]


def _one_speaker(manifest: Path) -> list[str]:
    rewrite(manifest, lambda table: table.filter(pl.col("speaker") == "s0"))
    return ["data: all 8 training utterances are of one speaker; training needs two"]


def _no_speaker(manifest: Path) -> list[str]:
    rewrite(manifest, lambda table: table.with_columns(pl.lit("").alias("speaker")))
    return ["data.label: 48 of 48 utterances have no speaker, the first is spk0-0"]


@pytest.mark.parametrize("spoil", [_twice, _no_bytes, _header_only, _gone, _one_speaker, _no_speaker])
def test_manifest_that_cannot_be_used(
    make_corpus: Corpus, tmp_path: Path, run: Run, spoil: Callable[[Path], list[str]]
) -> None:
    manifest = make_corpus()
    expected = spoil(manifest)
    done = run("train", *settings(manifest, tmp_path / "run"))
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("spkexp: ")]
    assert all(line.removeprefix("spkexp: ").startswith(part) for part in expected)


def test_root_that_is_no_folder(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    manifest = make_corpus()
    for root in (tmp_path / "nowhere", file):
        done = run("train", *settings(manifest, tmp_path / root.name[:3], f"data.root='{root}'"))
        assert done.code == 2
        assert f"spkexp: data.root: {root} is no folder" in done.err
    for corpus in ("librispeech", "mini_librispeech", "synthetic"):
        arguments = [f"data={corpus}" if item == "data=manifest" else item for item in TINY]
        done = run("train", *arguments, f"data.root='{file}'", f"run_dir='{tmp_path}/{corpus}'")
        assert done.code == 2
        (line,) = [line for line in done.err.splitlines() if line.startswith("spkexp: ")]
        assert str(file) in line


def test_places_where_no_run_folder_can_be_made(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    manifest = make_corpus()
    file = tmp_path / "a file"
    file.write_text("")
    for folder in (file, file / "below", Path("/proc/no/run"), Path("/dev/null/run")):
        done = run("train", *settings(manifest, folder))
        assert done.code == 2
        (line,) = [line for line in done.err.splitlines() if line.startswith("spkexp: ")]
        assert line.startswith(f"spkexp: run_dir: {folder} cannot be written: ")
        assert line.endswith("; set run_dir=DIR")
    assert file.read_text() == ""


def test_of_runs_that_want_one_folder_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Path.iterdir
    together = threading.Barrier(4)

    def iterdir(folder: Path) -> Iterator[Path]:
        """All have looked, and found nothing, before one goes on."""
        found = list(listing(folder))
        together.wait(20)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    won, lost = [], []

    def start(seed: int) -> None:
        try:
            won.append((seed, run_folder.create(OmegaConf.create({"run_dir": str(tmp_path / "run"), "seed": seed}))))
        except UserError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=start, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ((seed, folder),) = won
    assert [f"run_dir: {folder} exists and is not empty; resume={folder} goes on" in message for message in lost] == [
        True
    ] * 3
    assert OmegaConf.load(folder / "config.yaml").seed == seed


def test_paths_of_every_kind(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    manifest = make_corpus(folder="it's a=b, {c} [d] ü 語 #1")
    folder = tmp_path / "rün, n=1 {x} [y] it's"
    arguments = [*TINY, "trainer.max_steps=2", f'data.manifest="{manifest}"', f'run_dir="{folder}"']
    done = run("train", *arguments)
    assert done.code == 0, done.err
    assert f"run folder: {folder}" in done.out
    assert OmegaConf.load(folder / "config.yaml").data.manifest == str(manifest)
    done = run("train", f'resume="{folder}"', "trainer.max_steps=3")
    assert done.code == 0, done.err
    assert steps(folder) == [1, 2, 3]
    # A run of a version that did not have all of today's keys yet.
    for file in folder.rglob("config.yaml"):
        cfg = OmegaConf.load(file)
        del cfg.data.cache_dir, cfg.data.stage_dir, cfg.data.trials.models
        OmegaConf.save(cfg, file, resolve=True)
        file.with_name("SHA256SUMS").unlink(missing_ok=True)
    done = run("evaluate", f"model={folder}")
    assert done.code == 0, done.err


LOSSES = """
import torch
from spkexp.losses.softmax import Softmax

class LossIsNaN(Softmax):
    def forward(self, embedding, label, step):
        output = super().forward(embedding, label, step)
        return output._replace(loss=output.loss * (float("nan") if step == 2 else 1.0))

class GradientIsNaN(Softmax):
    def forward(self, embedding, label, step):
        output = super().forward(embedding, label, step)
        if step < 2:
            return output
        # 0 in value; the derivative of the root at 0 is infinite, times 0 that is NaN.
        return output._replace(loss=output.loss + (0 * embedding).square().sum().sqrt())
"""


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("LossIsNaN", [], "the loss is nan"),
        ("LossIsNaN", ["trainer.clip_norm=null"], "the loss is nan"),
        ("GradientIsNaN", [], "the gradient's norm is nan"),
        ("GradientIsNaN", ["trainer.clip_norm=null"], " is not finite any more"),
    ],
)
def test_not_a_number_in_training(
    make_corpus: Corpus,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    more: list[str],
    what: str,
) -> None:
    """The third step goes wrong: it is named with its utterances, and what was saved is the second's."""
    (tmp_path / "outside_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    manifest = make_corpus()
    folder = tmp_path / "run"
    loss = [
        "loss=softmax",
        f"loss._target_=outside_losses.{name}",
        "trust=[outside_losses]",
        "trainer.checkpoint_steps=1",
    ]
    done = run("train", *settings(manifest, folder, *loss, *more))
    assert done.code == 2
    # The third batch of the first epoch's order, which RandomSampler draws from (seed, epoch) = (0, 0).
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, 0)))).permutation(32)[16:24]
    batch = ", ".join(f"spk{item // 8}-{item % 8}" for item in order)
    (line,) = [line for line in done.err.splitlines() if line.startswith("spkexp: ")]
    assert line.startswith("spkexp: step 3: ")
    assert f"{what}, with the utterances {batch}; a lower trainer.optimizer.lr" in line
    check_last_is_good(folder, step=2)
    assert f"saved at step 2; go on with: python -m spkexp.train resume={folder}" in done.err


def check_last_is_good(folder: Path, step: int | None = None) -> None:
    last = folder / "checkpoints" / "last"
    model, head = checkpoint.load_tensors(last)
    state = checkpoint.load_state(last)
    moments = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    for tensor in (*model.values(), *head.values(), *moments):
        assert torch.as_tensor(tensor).isfinite().all()
    assert step is None or state["position"]["step"] == step


def test_an_absurd_learning_rate(make_corpus: Corpus, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "run"
    absurd = ["trainer.optimizer.lr=1e30", "trainer.clip_norm=null", "trainer.checkpoint_steps=1"]
    done = run("train", *settings(make_corpus(), folder, *absurd, "trainer/schedule=constant"))
    assert done.code == 2
    assert "spkexp: step " in done.err
    assert ", with the utterances spk" in done.err
    if (folder / "checkpoints" / "last").exists():
        check_last_is_good(folder)


TINY_WAVLM = ["model=wavlm", "data=manifest", "trainer.batch_size=8", "trainer.max_steps=2", "scoring.bootstrap=20"]
TINY_WAVLM += ["model.encoder.num_layers=1", "model.encoder.channels=32", "model.encoder.attention_heads=2"]
TINY_WAVLM += [
    "model.encoder.feedforward_channels=32",
    "model.encoder.extractor_channels=[8,8,8,8,8,8,8]",
    "augment=none",
]


def test_pretrained_weights_are_read_once_and_named_where_missing(
    run: Run, make_corpus: Corpus, tmp_path: Path
) -> None:
    """A run starts from a file of weights; what it leaves is complete without that file."""
    manifest, folder, weights = make_corpus(), tmp_path / "run", tmp_path / "weights ü.pt"
    common = [*TINY_WAVLM, f"data.manifest='{manifest}'", f"run_dir='{folder}'"]
    common += [f"model.encoder.pretrained='{weights}'"]
    done = run("train", *common)
    assert done.code == 2
    assert "model.encoder.pretrained" in done.err
    assert str(weights) in done.err
    assert not folder.exists()

    arguments = [item for item in common if item.startswith("model")]
    network = build.model(compose_config([*arguments, "data=manifest", "data.manifest=x"]).model).encoder.network
    torch.save(network.state_dict(), weights)
    done = run("train", *common)
    assert done.code == 0, done.err
    trained, _, _ = build.trained_model(folder)
    for key, tensor in trained.encoder.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key]), key  # frozen: as in the file
    assert (trained.encoder.layer_weights != 0).any()

    weights.unlink()
    done = run("train", f"resume={folder}", "trainer.max_steps=3")
    assert done.code == 0, done.err
    assert "the initial weights are not scored: model.encoder.pretrained" in done.err
    names = [line.split(",")[0] for line in manifest.read_text().splitlines()[1:3]]
    (tmp_path / "trials.txt").write_text(f"1 {names[0]} {names[1]}\n0 {names[1]} {names[0]}\n")
    done = run("evaluate", f"model={folder}", f"trials={tmp_path / 'trials.txt'}", f"data.root={manifest.parent}")
    assert done.code == 0, done.err
