"""`python -m spkexp.convert`: from another toolkit's files to a folder that the other commands take."""

import json
from pathlib import Path

import pytest
import torch

import spkexp
from spkexp import checkpoint, durable
from tests.conftest import Corpus, Run
from tests.conversion_tools import listed, random_tensors, write


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """WeSpeaker's ECAPA-TDNN with 1/64 of its channels, embeddings of 3 numbers and 4 classes."""
    shapes = {
        name: tuple(size // 64 if size >= 128 else size for size in shape)
        for name, shape in listed("wespeaker_ecapa_c1024").shapes.items()
    }
    torch.manual_seed(0)
    tensors = {name: x - 0.5 if x.ndim > 1 else x for name, x in random_tensors(shapes).items()}
    return write(tmp_path / "their folder ü", "avg_model.pt", tensors | {"projection.weight": torch.randn(4, 3)})


def test_the_commands_take_what_was_converted(
    theirs: Path, tmp_path: Path, run_command: Run, make_corpus: Corpus
) -> None:
    output = tmp_path / "ours"
    done = run_command("convert", "source=wespeaker", f"checkpoint={theirs.parent}", f"output={output}")
    assert done.code == 0
    assert "ECAPA-TDNN of wespeaker" in done.out
    assert "LogMel(num_mels=80, sample_rate=16000" in done.out
    assert "window=hamming, preemphasis=0.97, scale=32768.0, normalise=mean)" in done.out
    assert "left out: projection.weight: nothing names its 4 classes; labels=FILE takes it along" in done.out
    record = json.loads((output / "converted.json").read_text(encoding="utf-8"))
    assert record["sha256"] == durable.digest(theirs)
    assert record["left_out"] == {"nothing names its 4 classes; labels=FILE takes it along": ["projection.weight"]}

    manifest = make_corpus(speakers=4, utterances=4)
    first, second = (manifest.parent / f"spk0-{i}.wav" for i in (0, 1))
    model = spkexp.load(output, device="cpu")
    embedding = model.embed(first)
    assert embedding.shape == (3,)
    done = run_command("verify", f"model={output}", str(first), str(second))
    assert done.code == 0
    assert done.out.startswith("score ")
    assert float(done.out.split()[1]) == pytest.approx(model.verify(first, second).score, abs=1e-3)

    trials = tmp_path / "trials.txt"
    names = [f"spk{speaker}-{number}.wav" for speaker in range(4) for number in (0, 1)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    trials.write_text("".join(f"{int(a[:4] == b[:4])} {a} {b}\n" for a, b in pairs), encoding="utf-8")
    done = run_command("evaluate", f"model={output}", f"trials={trials}", f"data.root={manifest.parent}")
    assert done.code == 0, done.err
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["model"] == "ecapa-tdnn-wespeaker"
    assert results["trials"]["trials"]["num_trials"] == len(pairs)

    done = run_command("embed", f"model={output}", f"input={manifest.parent}", f"output={tmp_path / 'e.npz'}")
    assert done.code == 0, done.err

    fine_tuned = tmp_path / "run"
    small = ("trainer.max_steps=1", "trainer.batch_size=4", "data.crop_seconds=0.5", "scoring.bootstrap=0")
    data = ("data=manifest", f'data.manifest="{manifest}"', "augment=none", "trainer.device=cpu")
    done = run_command("train", f"init_from={output}", f"run_dir={fine_tuned}", *data, *small)
    assert done.code == 0, done.err
    ours, _ = checkpoint.load_tensors(output)
    after, _ = checkpoint.load_tensors(checkpoint.find(fine_tuned))
    assert after.keys() == ours.keys()
    name = "encoder.first.conv.weight"
    assert 0 < (after[name] - ours[name]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source=kaldi"], "source: must be one of speechbrain, wespeaker, 3dspeaker, redimnet, pyannote"),
        (["labels="], "labels: "),
        (["model.encoder.chanels=3"], "model.encoder.chanels: ECAPA takes no 'chanels'; did you mean 'channels'?"),
        (["model.encoder.channels=32"], "has the shape [16, 80, 5], expected [32, 80, 5]"),
        (["source=redimnet"], "is none of the architectures of redimnet that are read (ReDimNet)"),
        (["output={folder}"], "holds other files, which would be lost"),
        (["output={file}"], "is a file; name a folder"),
        (["checkpoint={folder}/nothing.pt"], "no such file or folder"),
        (["labels={folder}/missing"], "missing: cannot be read"),
    ],
)
def test_mistakes(arguments: list[str], message: str, theirs: Path, tmp_path: Path, run_command: Run) -> None:
    given = {"source": "wespeaker", "checkpoint": str(theirs), "output": str(tmp_path / "ours")}
    for argument in arguments:
        key, _, value = argument.partition("=")
        given[key] = value.format(folder=theirs.parent, file=theirs)
    done = run_command("convert", *(f"{key}={value}" for key, value in given.items()))
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "ours").exists()
    assert theirs.is_file()


def test_an_earlier_conversion_is_replaced(theirs: Path, tmp_path: Path, run_command: Run) -> None:
    arguments = ("source=wespeaker", f"checkpoint={theirs}", f"output={tmp_path / 'ours'}")
    labels = tmp_path / "labels.json"
    labels.write_text('["a", "b", "c", "d"]', encoding="utf-8")
    assert run_command("convert", *arguments).code == 0
    done = run_command("convert", *arguments, f"labels={labels}")
    assert done.code == 0
    assert "classes: 4, of projection.weight" in done.out
    assert checkpoint.load_labels(tmp_path / "ours") == ["a", "b", "c", "d"]
