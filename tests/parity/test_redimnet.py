"""The authors' ReDimNet with random weights: a converted checkpoint gives its embeddings of speech."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spkexp.errors import UserError
from tests.conversion_tools import converted, embedded, listed, shapes_of, speech
from tests.model_tools import count, model_config, randomise_norms, relative_error

REMEDY = "git clone https://github.com/IDRnD/ReDimNet; export SPKEXP_REDIMNET=$PWD/ReDimNet"
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


def settings(name: str) -> dict[str, Any]:
    """Their arguments for one of conf/model."""
    cfg = model_config(name)
    encoder = cfg.encoder
    lists = (encoder.strides, encoder.num_blocks, encoder.expansions, encoder.time_reductions)
    return {
        "F": cfg.features.num_mels,
        "C": encoder.channels,
        "block_1d_type": "conv+att",
        "block_2d_type": BLOCKS_2D[encoder.block_2d],
        "stages_setup": [(s, n, e, [(3, 3)], r or None) for s, n, e, r in zip(*lists, strict=True)],
        "group_divisor": encoder.group_channels,
        "out_channels": None,
        "hop_length": 240,
        "global_context_att": True,
        "embed_dim": 192,
    }


def built(wrap: Any, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = wrap(**arguments).eval()
    randomise_norms(model)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".w"):  # of the weighted sums, zero at first
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("name", [f"redimnet_b{i}" for i in range(7)])
def test_redimnet(wrap: Any, name: str, tmp_path: Path, shared_data: Path) -> None:
    theirs = built(wrap, **settings(name))
    assert shapes_of(theirs) == listed(name).shapes
    content = {"state_dict": theirs.state_dict(), "model_config": settings(name)}
    ours = converted(tmp_path, "redimnet", content)
    assert count(ours) == count(theirs) - 1
    for waveform in speech(shared_data):
        with torch.no_grad():
            expected = theirs(waveform)
        error = relative_error(embedded(ours, waveform), expected)
        print(f"{name}, {waveform.shape[1] / 16000:.1f} s: {error:.1e}")
        assert error < 1e-4
    # Another rectifier inside the blocks leaves no trace in the tensors.
    content["model_config"] = settings(name) | {"block_2d_type": "convnext_like_relu"}
    with pytest.raises(UserError, match="block_2d_type=convnext_like_relu"):
        converted(tmp_path / "other", "redimnet", content)


def test_other_front_ends_and_norms(wrap: Any, tmp_path: Path, shared_data: Path) -> None:
    spec = {
        "do_spec_aug": False,
        "f_min": 0,
        "f_max": 8000,
        "win_length": 320,
        "do_preemph": False,
        "norm_signal": False,
    }
    arguments = settings("redimnet_b0") | {"hop_length": 160, "emb_bn": True, "num_classes": 4, "spec_params": spec}
    theirs = built(wrap, **arguments)
    content = {"state_dict": theirs.state_dict(), "model_config": arguments}
    ours = converted(tmp_path, "redimnet", content)
    theirs.cls_head = None
    (waveform,) = speech(shared_data, (2.3,))
    with torch.no_grad():
        assert relative_error(embedded(ours, waveform), theirs(waveform)) < 1e-4
    # The checkpoint's own filters are those of its settings, or it is refused.
    content["model_config"] = arguments | {"spec_params": spec | {"f_max": 7600}}
    with pytest.raises(UserError, match="mel filters"):
        converted(tmp_path / "other", "redimnet", content)
