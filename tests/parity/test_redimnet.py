"""The authors' ReDimNet, with random weights, gives the same embeddings as ours."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model_tools import count, model_config, randomise_norms, relative_error, speaker_model

REMEDY = "git clone https://github.com/IDRnD/ReDimNet; export SPKEXP_REDIMNET=$PWD/ReDimNet"

PROJECTIONS = {"q": "query", "k": "key", "v": "value", "out": "output"}
BLOCKS_2D = {"convnext": "convnext_like", "resnet": "basic_resnet", "resnet_gate": "basic_resnet_fwse"}


@pytest.fixture
def wrap(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their class, front end to embedding."""
    folder = os.environ.get("SPKEXP_REDIMNET")
    if not folder or not Path(folder, "redimnet/model.py").is_file():
        pytest.skip(REMEDY)
    pytest.importorskip("scipy", reason="their features need scipy")
    monkeypatch.syspath_prepend(folder)
    from redimnet.model import ReDimNetWrap

    return ReDimNetWrap


def built(wrap: Any, name: str) -> Any:
    cfg = model_config(name)
    encoder = cfg.encoder
    lists = (encoder.strides, encoder.num_blocks, encoder.expansions, encoder.time_reductions)
    torch.manual_seed(0)
    model = wrap(
        F=cfg.features.num_mels,
        C=encoder.channels,
        block_1d_type="conv+att",
        block_2d_type=BLOCKS_2D[encoder.block_2d],
        stages_setup=[(s, n, e, [(3, 3)], r or None) for s, n, e, r in zip(*lists, strict=True)],
        group_divisor=encoder.group_channels,
        out_channels=None,
        hop_length=240,
        global_context_att=True,
        embed_dim=192,
    ).eval()
    randomise_norms(model)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".w"):  # of the weighted sums, zero at first
            nn.init.normal_(parameter)
    return model


RENAMED: list[tuple[str, Any]] = [
    (r"backbone\.stem\.0\.", "encoder.stem."),
    (r"backbone\.stem\.1\.", "encoder.stem_norm.norm."),
    (r"backbone\.fin_wght1d\.w", "encoder.outputs.weight"),
    (r"backbone\.stage(\d)\.0\.w", r"encoder.stages.\1.inputs.weight"),
    (r"backbone\.stage(\d)\.2\.", r"encoder.stages.\1.pool."),
    (r"backbone\.stage(\d)\.(\d+)\.conv_block\.", lambda m: f"encoder.stages.{m[1]}.blocks.{int(m[2]) - 3}."),
    (r"backbone\.stage(\d)\.(\d+)\.0\.", lambda m: f"encoder.stages.{m[1]}.blocks.{int(m[2]) - 3}.conv."),
    (r"backbone\.stage(\d)\.(\d+)\.1\.", lambda m: f"encoder.stages.{m[1]}.blocks.{int(m[2]) - 3}.norm."),
    (r"backbone\.stage(\d)\.(\d+)\.3\.", lambda m: f"encoder.stages.{m[1]}.blocks.{int(m[2]) - 3}.pointwise."),
    (r"backbone\.stage(\d)\.\d+\.", r"encoder.stages.\1.time."),
    (r"red_dim_conv\.0\.", "reduce."),
    (r"red_dim_conv\.1\.", "norm.norm."),
    (r"exp_dim_conv\.", "expand."),
    (r"tcm\.4\.attention\.(q|k|v|out)_proj\.", lambda m: f"attention.{PROJECTIONS[m[1]]}."),
    (r"tcm\.4\.layer_norm\.", "attention.norm1."),
    (r"tcm\.4\.final_layer_norm\.", "attention.norm2."),
    (r"tcm\.4\.feed_forward\.intermediate_dense\.", "attention.feed_in."),
    (r"tcm\.4\.feed_forward\.output_dense\.", "attention.feed_out."),
    (r"tcm\.(\d)\.", r"convolutions.\1."),
    (r"dwconvs\.0\.", "conv."),
    (r"pwconv1\.", "pointwise."),
    (r"conv(\d)pw\.", r"pointwise\1."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.se\.squeeze\.", ".gate.squeeze."),
    (r"\.se\.exitation\.", ".gate.excite."),
    (r"^pool\.linear2\.", "pooling.scores."),
    (r"^pool\.linear1\.bias", "pooling.hidden.bias"),
    (r"^bn\.", "pooling_norm."),
    (r"^linear\.", "embedding."),
]


def load(theirs: nn.Module, ours: nn.Module) -> None:
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        # Of the first stage's only input, a softmax of one: not learned, not there in ours.
        if name.startswith("spec.") or name == "backbone.stage0.0.w":
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.squeeze(0) if name.endswith(("inputs.weight", "outputs.weight")) else tensor
    # [frame; mean; deviation] is one matrix there and two here
    whole = state.pop("pool.linear1.weight")
    channels = whole.shape[1] // 3
    state["pooling.hidden.weight"] = whole[:, :channels]
    state["pooling.context.weight"] = whole[:, channels:, 0]
    ours.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", [f"redimnet_b{i}" for i in range(7)])
def test_redimnet(wrap: Any, name: str) -> None:
    theirs, ours = built(wrap, name), speaker_model(name).eval()
    load(theirs, ours)
    assert count(ours) == count(theirs) - 1
    for num_frames in (7, 134):
        features = torch.randn(2, ours.features.out_channels, num_frames)
        with torch.no_grad():
            hidden = theirs.backbone(features.unsqueeze(1))
            expected = theirs.linear(theirs.bn(theirs.pool(hidden)))
            error = relative_error(ours.embed(features, torch.tensor([num_frames, num_frames])), expected)
            print(f"{name}, {num_frames} frames: {error:.1e}")
            assert error < 1e-4
