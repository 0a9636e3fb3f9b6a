"""3D-Speaker's CAM++, with random weights, gives the same embeddings as ours."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model_tools import count, randomise_norms, relative_error, speaker_model

REMEDY = "git clone https://github.com/modelscope/3D-Speaker; export SPKEXP_3DSPEAKER=$PWD/3D-Speaker"


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    folder = os.environ.get("SPKEXP_3DSPEAKER")
    if not folder or not Path(folder, "speakerlab/models/campplus/DTDNN.py").is_file():
        pytest.skip(REMEDY)
    monkeypatch.syspath_prepend(folder)
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    torch.manual_seed(0)
    model = CAMPPlus(feat_dim=80, embedding_size=512, memory_efficient=False).eval()
    randomise_norms(model)
    return model


RENAMED: list[tuple[str, Any]] = [
    (r"head\.layer(\d)\.(\d)\.", lambda m: f"encoder.front.blocks.{2 * int(m[1]) - 2 + int(m[2])}."),
    (r"head\.(conv|bn)1\.", r"encoder.front.first.\1."),
    (r"head\.(conv|bn)2\.", r"encoder.front.last.\1."),
    (r"(blocks\.\d)\.(conv|bn)1\.", r"\1.first.\2."),
    (r"(blocks\.\d)\.(conv|bn)2\.", r"\1.second.\2."),
    (r"shortcut\.0\.", "skip.conv."),
    (r"shortcut\.1\.", "skip.norm."),
    (r"\.bn\.", ".norm."),
    (r"xvector\.block(\d)\.tdnnd(\d+)\.", lambda m: f"encoder.blocks.{int(m[1]) - 1}.layers.{int(m[2]) - 1}."),
    (r"xvector\.transit(\d)\.", lambda m: f"encoder.transitions.{int(m[1]) - 1}."),
    (r"cam_layer\.linear_local\.", "conv."),
    (r"cam_layer\.linear1\.", "squeeze."),
    (r"cam_layer\.linear2\.", "excite."),
    (r"\.linear1\.", ".bottleneck."),
    (r"nonlinear2\.batchnorm\.", "bottleneck_norm."),
    (r"xvector\.tdnn\.linear\.", "encoder.first."),
    (r"xvector\.tdnn\.nonlinear\.batchnorm\.", "encoder.first_norm."),
    (r"xvector\.out_nonlinear\.batchnorm\.", "encoder.norm."),
    (r"xvector\.dense\.linear\.", "embedding."),
    (r"xvector\.dense\.nonlinear\.batchnorm\.", "embedding_norm."),
    (r"(transitions\.\d)\.linear\.", r"\1.conv."),
    (r"nonlinear1?\.batchnorm\.", "norm."),
]


def renamed(name: str) -> str:
    """3D-Speaker's name of a tensor -> ours."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def test_campplus(theirs: nn.Module) -> None:
    ours = speaker_model("campplus").eval()
    state: dict[str, Tensor] = {renamed(name): tensor for name, tensor in theirs.state_dict().items()}
    # Theirs has neither.
    state["embedding.bias"], state["embedding_norm.bias"] = torch.zeros(512), torch.zeros(512)
    state["embedding_norm.weight"] = torch.ones(512)
    state["embedding.weight"] = state["embedding.weight"].squeeze(2)
    ours.load_state_dict(state, strict=True)
    ours.pooling.variance_floor = 1e-20  # WeSpeaker has the yaml's 1e-7, 3D-Speaker none: it shows where a ReLU is dead
    assert count(theirs) == 7_176_224
    for num_frames in (30, 150, 200, 450):  # segments of 200 frames
        features = torch.randn(2, 80, num_frames)
        with torch.no_grad():
            expected = theirs(features.transpose(1, 2))
            actual = ours.embed(features, torch.tensor([num_frames, num_frames]))
            error = relative_error(actual, expected)
            print(f"campplus, {num_frames} frames: {error:.1e}")
            assert error < 1e-5
            # and with masks, in a longer batch
            padded = torch.cat([features, torch.randn(2, 80, 70)], dim=2)
            assert relative_error(ours.embed(padded, torch.tensor([num_frames, num_frames])), expected) < 1e-5
