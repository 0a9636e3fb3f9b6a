"""Exported encoders say what torch says; files say what they are, and mistakes cost nothing."""

import contextlib
import hashlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from spkexp import build, checkpoint
from spkexp.compose import compose_config
from spkexp.errors import UserError
from spkexp.exporting import agreement, files
from spkexp.exporting.files import export
from spkexp.exporting.metadata import metadata_of
from spkexp.exporting.onnx_file import OnnxModel
from spkexp.models.speaker import SpeakerModel
from spkexp.scoring.metrics import Ranking, eer
from tests.conftest import Corpus, Run
from tests.inference_tools import write_results
from tests.model_tools import NAMES, randomise_norms, speaker_model

METADATA = {"sample_rate": "16000", "embedding_size": "192", "model": "tiny"}
# Samples: shorter than a frame, a frame, two, primes, multiples of a frame's step, some seconds.
LENGTHS = [1, 150, 400, 561, 1601, 4000, 7919, 16000, 20011, 48000]

# A trace costs seconds and a translation as many: the command's test below has the one of the fast suite.
TINY: dict[str, dict[str, Any]] = {
    "xvector": {"channels": [16, 24], "kernel_sizes": [5, 3], "dilations": [1, 3]},
    "mamba": {"num_layers": 1, "d_model": 16, "subsampling": 1},
}
SMALL: dict[str, dict[str, Any]] = {
    "wav2vec2": {"num_layers": 2},
    "hubert": {"num_layers": 2},
    "wavlm": {"num_layers": 2},
    "resnet101": {"num_blocks": [1, 2, 2, 1]},
    "resnet152": {"num_blocks": [1, 1, 2, 1]},
    "resnet221": {"num_blocks": [2, 1, 1, 1]},
    "resnet293": {"num_blocks": [1, 1, 1, 2]},
}


def fresh(name: str, **encoder: Any) -> SpeakerModel:
    model = speaker_model(name, **encoder).eval().requires_grad_(False)
    randomise_norms(model)
    return model


def metadata(model: SpeakerModel) -> dict[str, str]:
    return METADATA | {"embedding_size": str(model.embedding_size)}


def padded_batches() -> list[tuple[Tensor, Tensor]]:
    """Each length of LENGTHS beside two others, with noise behind the ends, which must not be heard."""
    torch.manual_seed(1)
    batches = []
    for length in LENGTHS:
        lengths = torch.tensor([length, max(1, length // 3), max(1, length - 1)])
        batches.append((torch.randn(3, length) * 0.1, lengths))
    return batches


def alone(model: SpeakerModel, waveform: Tensor, lengths: Tensor) -> Tensor:
    """By torch, each row without the others and without its padding."""
    with torch.inference_mode():
        return torch.cat([model(row[None, :n], torch.tensor([n])) for row, n in zip(waveform, lengths, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_onnxruntime_embeds_padded_batches_as_torch_embeds_each_row_alone(name: str, tmp_path: Path) -> None:
    model = fresh(name, **TINY[name])
    (written,) = export(model, metadata(model), tmp_path / "a folder ü" / "encoder.onnx", int8=False)
    assert written.deviation < 1e-4
    exported = OnnxModel(written.file, threads=1)
    for waveform, lengths in padded_batches():
        assert agreement.relative_deviation(exported(waveform, lengths), alone(model, waveform, lengths)) < 1e-4
    assert list(written.file.parent.iterdir()) == [written.file]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_can_be_exported(name: str, kind: str, tmp_path: Path) -> None:
    model = fresh(name, **SMALL.get(name, {}))
    (written,) = export(model, metadata(model), tmp_path / f"encoder{kind}", int8=False)  # which checks it
    assert 0 < written.deviation < 1e-3


def test_a_deviation_names_the_length() -> None:
    model = fresh("conv1d", channels=[8], kernel_sizes=[3], strides=[1])

    def wrong_from_a_second_on(waveform: Tensor, lengths: Tensor) -> Tensor:
        embedding = model(waveform, lengths)
        return embedding * (1 + 2e-4 * (lengths[:, None] >= 16000))

    with pytest.raises(UserError, match=r"^enc: deviates from torch by 2\.0e-04 on 16000 samples, more than 0\.0001;"):
        agreement.check(wrong_from_a_second_on, model, "enc")
    with pytest.raises(UserError, match="enc: fails on 160 samples: too short"):
        agreement.check(too_short, model, "enc")
    assert agreement.check(model, model, "enc") == 0


def too_short(waveform: Tensor, lengths: Tensor) -> Tensor:
    raise RuntimeError("too short\nand more")


def test_deviation_by_hand() -> None:
    expected = torch.tensor([[1.0, -4.0], [0.1, 0.2]])
    found = torch.tensor([[1.0, -4.2], [0.12, 0.2]])
    assert agreement.relative_deviation(found, expected) == pytest.approx(0.1)  # 0.02 of 0.2, more than 0.2 of 4
    assert agreement.relative_deviation(found[:, :1], expected) == float("inf")


def test_a_threshold_is_stated_of_plain_cosines_alone(tmp_path: Path) -> None:
    best = tmp_path / "checkpoints" / "best.old"  # what a kill leaves of a best
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"weights")
    model = fresh("conv1d", channels=[8], kernel_sizes=[3], strides=[1])

    def stated(**config: Any) -> dict[str, str]:
        return metadata_of(model, OmegaConf.create(config), best)

    assert "threshold" not in stated()
    write_results(tmp_path, 0.5)
    said = stated()
    assert said["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (said["threshold"], said["model"], said["data"]) == ("0.5", "model", "unknown")
    assert said["threshold_of"].startswith("at the equal error rate of the run's validation trials: 5.00 %")
    for scoring in ({"subtract_mean": True}, {"normalise": "as-norm"}, {"backend": "plda"}, {"window": 3.0}):
        assert "threshold" not in stated(scoring=scoring)
    assert "threshold" not in stated(data={"label": "keyword"})
    (tmp_path / "results.json").write_text("[" * 100_000)
    assert "threshold" not in stated()


def portable(folder: Path, overrides: list[str]) -> Path:
    """A published model that was never trained."""
    torch.manual_seed(0)
    cfg = compose_config(overrides)
    model = build.model(cfg.model)
    randomise_norms(model)
    checkpoint.save_portable(folder, model, None, cfg, [])
    write_results(folder, 0.25)
    return folder


def test_the_command_and_the_docs(tmp_path: Path, make_corpus: Corpus, run_command: Run, monkeypatch: Any) -> None:
    import onnx

    manifest = make_corpus(speakers=4, utterances=3)
    sizes = ["channels=[8]", "kernel_sizes=[3]", "strides=[2]"]
    model = portable(tmp_path / "model", ["model=conv1d", *(f"model.encoder.{size}" for size in sizes)])
    names = sorted(file.stem for file in manifest.parent.glob("*.wav"))
    pairs = [(a, b, a[:4] == b[:4]) for i, a in enumerate(names) for b in names[i + 1 :]]
    trials = tmp_path / "pairs.txt"
    trials.write_text("".join(f"{int(same)} {a}.wav {b}.wav\n" for a, b, same in pairs))
    output = tmp_path / "out ü" / "encoder.onnx"
    arguments = (f"model={model}", f"output={output}", "quantise=int8", f"trials={trials}")
    done = run_command("export", *arguments, f"data.root={manifest.parent}")
    assert done.code == 0, done.err
    assert "arning" not in done.err + done.out
    assert {file.name for file in output.parent.iterdir()} == {"encoder.onnx", "encoder.int8.onnx"}

    proto = onnx.load(output)
    said = {entry.key: entry.value for entry in proto.metadata_props}
    assert said["threshold"] == "0.25"
    assert said["opset"] == str(next(entry.version for entry in proto.opset_import if entry.domain == "")) == "20"
    assert said["weights_sha256"] == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input]
    assert shapes == [["batch", "samples"], ["batch"]]
    assert str(Path(__file__).parents[1]) not in str(proto)  # nothing of the machine that made it
    int8 = onnx.load(output.with_name("encoder.int8.onnx"))
    assert {"ConvInteger", "MatMulInteger"} & {node.op_type for node in int8.graph.node}

    # What the docs say: two files, no spkexp; then with it the error rates that the command states.
    (code,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/export.md").read_text(), re.DOTALL)
    monkeypatch.chdir(output.parent)
    scores: dict[str, list[float]] = {"encoder.onnx": [], "encoder.int8.onnx": []}
    for file, found in scores.items():
        for a, b, _ in pairs:
            shutil.copy(manifest.parent / f"{a}.wav", "a.wav")
            shutil.copy(manifest.parent / f"{b}.wav", "b.wav")
            space: dict[str, Any] = {}
            with contextlib.redirect_stdout(None):
                exec(code.replace("encoder.onnx", file), space)
            found.append(float(space["cosine"]))
    stated = re.search(r"pairs: EER ([\d.]+) % before and ([\d.]+) % after int8 \(66 trials\)", done.out)
    assert stated is not None, done.out
    target = np.array([same for *_, same in pairs])
    expected = 100 * eer(Ranking(np.array(scores["encoder.onnx"]), target).error_rates())
    assert float(stated[1]) == pytest.approx(expected, abs=0.006)
    # In 8 bits an embedding depends on what else is in the batch, so that the stated rate is that of other batches.
    apart = np.abs(np.array(scores["encoder.int8.onnx"]) - scores["encoder.onnx"])
    assert 0 < apart.max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=encoder.bin"], r"output=encoder.bin: expected a name that ends in .onnx \(ONNX\) or .pt2"),
        (["output=e.pt2", "quantise=int8"], "quantise=int8: onnxruntime quantises, and e.pt2 is no ONNX file"),
        (["output=e.onnx", "trials=t.txt"], "trials and data.root: are for what int8 costs; give quantise=int8, too"),
        (["output=e.onnx", "quantise=int4"], "quantise"),
        (["output=e.onnx"], "nowhere: no such"),
    ],
)
def test_mistakes_are_named_before_anything_is_exported(
    arguments: list[str], message: str, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_command("export", "model=nowhere", *arguments)
    assert done.code == 2
    assert re.search(message, done.err), done.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("conv1d", channels=[8], kernel_sizes=[3], strides=[1])
    output = tmp_path / "encoder.pt2"
    output.write_bytes(b"former")
    monkeypatch.setattr(agreement, "SECONDS", (0.01, float("nan")))
    with pytest.raises(ValueError, match="NaN"):
        export(model, metadata(model), output, int8=False)
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.pt2"]
    assert output.read_bytes() == b"former"


def test_without_the_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript is not installed; pip install 'spkexp\[onnx\]'"):
        files.check_output(tmp_path / "encoder.onnx", int8=False)
    files.check_output(tmp_path / "encoder.pt2", int8=False)
