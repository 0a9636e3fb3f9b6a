"""WeSpeaker's encoders with random weights: a converted checkpoint gives their embeddings of speech.

WeSpeaker is not on PyPI; without a checkout the tests are skipped and say how to get one.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from tests.conversion_tools import converted, embedded, listed, peer_module, shapes_of, speech
from tests.model_tools import count, randomise_norms, relative_error

REMEDY = "git clone https://github.com/wenet-e2e/wespeaker; export SPKEXP_WESPEAKER=$PWD/wespeaker"


def module(name: str) -> ModuleType:
    folder = os.environ.get("SPKEXP_WESPEAKER")
    return peer_module("wespeaker", Path(folder) if folder else None, f"models.{name}", REMEDY)


def embedding(model: nn.Module, waveform: Tensor, mels: int = 80, frame_shift: float = 10.0) -> Tensor:
    """wespeaker.cli.speaker's: Kaldi features of 16-bit samples with a Hamming window, less their mean."""
    features = kaldi.fbank(
        waveform * 32768,
        num_mel_bins=mels,
        frame_length=25,
        frame_shift=frame_shift,
        sample_frequency=16000,
        window_type="hamming",
    )
    with torch.no_grad():
        found = model((features - features.mean(dim=0)).unsqueeze(0))
    return found[-1] if isinstance(found, tuple) else found


def built(name: str, function: str, *arguments: Any, **named: Any) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(module(name), function)(*arguments, **named).eval()
    randomise_norms(model)
    return model


@pytest.mark.parametrize(
    ("name", "function", "list_name", "difference"),
    [
        ("resnet", "ResNet18", "wespeaker_resnet18", 0),
        ("resnet", "ResNet34", "wespeaker_resnet34", 0),
        ("resnet", "ResNet101", "wespeaker_resnet101", 0),
        ("res2net", "Res2Net34_Base", "wespeaker_res2net34", 0),
        ("ecapa_tdnn", "ECAPA_TDNN_GLOB_c512", "wespeaker_ecapa_c512", 0),
        ("ecapa_tdnn", "ECAPA_TDNN_GLOB_c1024", "wespeaker_ecapa_c1024", 0),
        ("campplus", "CAMPPlus", "wespeaker_campplus", 3 * 512),  # bias, weight and bias that theirs lacks
    ],
)
def test_embeddings(
    name: str, function: str, list_name: str, difference: int, tmp_path: Path, shared_data: Path
) -> None:
    size = {"ecapa_tdnn": 192, "campplus": 512}.get(name, 256)
    theirs = built(name, function, 80, size)
    assert shapes_of(theirs) == listed(list_name).shapes
    ours = converted(tmp_path, "wespeaker", theirs.state_dict())
    assert count(ours) == count(theirs) + difference
    for waveform in speech(shared_data):
        error = relative_error(embedded(ours, waveform), embedding(theirs, waveform))
        print(f"{function}, {waveform.shape[1] / 16000:.1f} s: {error:.1e}")
        # They add 1e-7 to the variance, which ours has as a floor: most of the difference.
        assert error < 1e-4


@pytest.mark.parametrize("depth", [152, 221, 293])
def test_deep_resnets_are_listed(depth: int) -> None:
    with torch.device("meta"):
        theirs = getattr(module("resnet"), f"ResNet{depth}")(80, 256)
    assert shapes_of(theirs) == listed(f"wespeaker_resnet{depth}").shapes


def test_other_poolings_and_norms(tmp_path: Path, shared_data: Path) -> None:
    models = {
        "ecapa": built("ecapa_tdnn", "ECAPA_TDNN_c512", 40, 64, emb_bn=True),
        "astp": built("resnet", "ResNet18", 40, 64, pooling_func="ASTP"),
        "tap": built("resnet", "ResNet18", 40, 64, pooling_func="TAP"),
    }
    for name, theirs in models.items():
        config = "model_args: {pooling_func: TAP}" if name == "tap" else ""
        companions = {"config.yaml": config} if config else None
        ours = converted(tmp_path / name, "wespeaker", theirs.state_dict(), companions)
        assert count(ours) == count(theirs)
        for waveform in speech(shared_data):
            assert relative_error(embedded(ours, waveform), embedding(theirs, waveform, 40)) < 1e-4, name


@pytest.mark.parametrize("size", [0, 2, 3, 6])
def test_redimnet(size: int, tmp_path: Path, shared_data: Path) -> None:
    theirs = built("redimnet", f"ReDimNetB{size}")
    assert shapes_of(theirs) == listed(f"wespeaker_redimnet_b{size}").shapes
    for name, parameter in theirs.named_parameters():
        if ".inputs_weights." in name and not name.endswith(".0"):
            nn.init.normal_(parameter)
    config = "dataset_args: {fbank_args: {frame_shift: 15, frame_length: 25}}"
    ours = converted(tmp_path, "wespeaker", theirs.state_dict(), {"config.yaml": config})
    mels = 60 if size == 0 else 72
    for waveform in speech(shared_data):
        error = relative_error(embedded(ours, waveform), embedding(theirs, waveform, mels, 15.0))
        print(f"ReDimNetB{size}: {error:.1e}")
        assert error < 1e-4
