"""The MFA-Conformer of its authors (zyzisyz/mfa_conformer), with random weights, gives the same embeddings as ours."""

import os
import sys
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.model_tools import count, model_config, randomise_norms, relative_error, speaker_model

REMEDY = "git clone https://github.com/zyzisyz/mfa_conformer; export SPKEXP_MFA_CONFORMER=$PWD/mfa_conformer"

# 1/2 with conv2d2 (the yaml), 1/4 with conv2d
EXPECTED = {"conv2d2": 19_759_424, "conv2d": 19_038_784}


@pytest.fixture
def conformer_cat(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Their module; it needs speechbrain for the pooling, and two names of typeguard 2 and of an older wenet."""
    folder = os.environ.get("SPKEXP_MFA_CONFORMER")
    if not folder or not Path(folder, "module/conformer_cat.py").is_file():
        pytest.skip(REMEDY)
    pytest.importorskip("speechbrain", reason="speechbrain is in the test extra")
    typeguard = types.ModuleType("typeguard")
    typeguard.check_argument_types = lambda: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "typeguard", typeguard)
    # module/__init__.py imports every model and, with them, packages that are not needed here.
    package = types.ModuleType("module")
    package.__path__ = [str(Path(folder, "module"))]
    monkeypatch.setitem(sys.modules, "module", package)
    monkeypatch.syspath_prepend(folder)
    import module.conformer_cat as found  # type: ignore[import-not-found]

    yield found
    for name in [name for name in sys.modules if name.split(".")[0] in ("wenet", "module")]:
        sys.modules.pop(name)


RENAMED = [
    ("conformer.embed.conv.", "encoder.subsampling.convolutions."),
    ("conformer.embed.out.0.", "encoder.subsampling.projection."),
    ("conformer.after_norm.", "encoder.norm."),
    ("conformer.encoders.", "encoder.blocks."),
    (".norm_ff_macaron.", ".norms.0."),
    (".norm_mha.", ".norms.1."),
    (".norm_conv.", ".norms.2."),
    (".norm_ff.", ".norms.3."),
    (".norm_final.", ".norm."),
    (".feed_forward_macaron.", ".first."),
    (".feed_forward.", ".last."),
    (".w_1.", ".expand."),
    (".w_2.", ".contract."),
    (".self_attn.linear_q.", ".attention.query."),
    (".self_attn.linear_k.", ".attention.key."),
    (".self_attn.linear_v.", ".attention.value."),
    (".self_attn.linear_out.", ".attention.out."),
    (".self_attn.linear_pos.", ".attention.position."),
    (".self_attn.pos_bias_u", ".attention.content_bias"),
    (".self_attn.pos_bias_v", ".attention.position_bias"),
    (".conv_module.pointwise_conv1.", ".convolution.gated."),
    (".conv_module.pointwise_conv2.", ".convolution.pointwise."),
    (".conv_module.depthwise_conv.", ".convolution.depthwise."),
    (".conv_module.norm.", ".convolution.norm."),
    ("bn.norm.", "pooling_norm."),
    ("fc.", "embedding."),
    ("pooling.conv.conv.", "pooling.scores."),
    ("pooling.tdnn.norm.norm.", "pooling.norm."),
    ("pooling.tdnn.conv.conv.", "pooling.hidden."),
]


def load(theirs: nn.Module, ours: nn.Module) -> None:
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    state = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        # They lay features out as (time, mel bins), we as (mel bins, time).
        state[name] = tensor.transpose(2, 3) if ".convolutions." in name and tensor.ndim == 4 else tensor
    # [frame; mean; deviation] is one matrix there and two here
    whole = state["pooling.hidden.weight"]
    channels = whole.shape[1] // 3
    state["pooling.hidden.weight"] = whole[:, :channels]
    state["pooling.context.weight"] = whole[:, channels:, 0]
    state = {name: tensor.reshape(shapes[name]) for name, tensor in state.items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("features.") for name in missing)


@pytest.mark.parametrize("layer", ["conv2d2", "conv2d"])
def test_embeddings(conformer_cat: types.ModuleType, layer: str) -> None:
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):
        theirs = conformer_cat.conformer_cat(n_mels=80, embedding_dim=192, input_layer=layer).eval()
    randomise_norms(theirs)
    assert not model_config("conformer").encoder.relative_shift
    ours = speaker_model("conformer", subsampling=2 if layer == "conv2d2" else 4).eval()
    load(theirs, ours)
    assert count(ours) == count(theirs) == EXPECTED[layer]
    for frames in (200, 57, 11):
        features = torch.randn(2, 80, frames)
        with torch.no_grad():
            expected = theirs(features.unsqueeze(1))
            actual = ours.embed(features, torch.tensor([frames, frames]))
        error = relative_error(actual, expected)
        print(layer, frames, f"{error:.1e}")
        assert error < 1e-5
