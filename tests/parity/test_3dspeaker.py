"""3D-Speaker's encoders with random weights: a converted checkpoint gives their embeddings of speech."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from spkexp.errors import UserError
from tests.conversion_tools import converted, embedded, listed, peer_module, shapes_of, speech
from tests.model_tools import count, randomise_norms, relative_error

REMEDY = "git clone https://github.com/modelscope/3D-Speaker; export SPKEXP_3DSPEAKER=$PWD/3D-Speaker"


def module(name: str) -> ModuleType:
    folder = os.environ.get("SPKEXP_3DSPEAKER")
    return peer_module("speakerlab", Path(folder) if folder else None, f"models.{name}", REMEDY)


def embedding(model: nn.Module, waveform: Tensor) -> Tensor:
    """speakerlab.process.processor.FBank: Kaldi's features of a waveform in [-1, 1], less their mean."""
    features = kaldi.fbank(waveform, num_mel_bins=80, sample_frequency=16000, dither=0)
    with torch.no_grad():
        return model((features - features.mean(dim=0, keepdim=True)).unsqueeze(0))


ERES2NETV2 = ("eres2net.ERes2NetV2", "ERes2NetV2")


@pytest.mark.parametrize(
    ("module_name", "function", "named", "list_name", "difference"),
    [
        (*ERES2NETV2, {}, "3dspeaker_eres2netv2", 0),
        (*ERES2NETV2, {"baseWidth": 24, "scale": 4, "expansion": 4}, "3dspeaker_eres2netv2_w24s4ep4", 0),
        ("campplus.DTDNN", "CAMPPlus", {"embedding_size": 512, "memory_efficient": False}, "3dspeaker_campplus", 1536),
        ("res2net.Res2Net", "Res2Net", {"embedding_size": 192}, "3dspeaker_res2net", 0),
        ("resnet.ResNet", "ResNet", {"embedding_size": 256, "two_emb_layer": False}, "3dspeaker_resnet34", 0),
        ("ecapa_tdnn.ECAPA_TDNN", "ECAPA_TDNN", {"channels": [1024] * 4 + [3072]}, "3dspeaker_ecapa", 0),
    ],
)
def test_embeddings(
    module_name: str,
    function: str,
    named: dict[str, Any],
    list_name: str,
    difference: int,
    tmp_path: Path,
    shared_data: Path,
) -> None:
    torch.manual_seed(0)
    first = "input_size" if function == "ECAPA_TDNN" else "feat_dim"
    theirs = getattr(module(module_name), function)(**{first: 80}, **named).eval()
    assert shapes_of(theirs) == listed(list_name).shapes
    randomise_norms(theirs)
    ours = converted(tmp_path, "3dspeaker", theirs.state_dict())
    assert count(ours) == count(theirs) + difference
    for waveform in speech(shared_data):
        error = relative_error(embedded(ours, waveform), embedding(theirs, waveform))
        print(f"{list_name}, {waveform.shape[1] / 16000:.1f} s: {error:.1e}")
        assert error < 1e-4


def test_two_layers_behind_the_pooling_are_refused(tmp_path: Path) -> None:
    theirs = module("resnet.ResNet").ResNet(feat_dim=80, embedding_size=256)
    with pytest.raises(UserError, match="two_emb_layer=True"):
        converted(tmp_path, "3dspeaker", theirs.state_dict())
