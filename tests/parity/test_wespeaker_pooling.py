"""WeSpeaker's poolings, with random weights, give the same vectors as ours."""

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from torch import Tensor

from spkexp.models.pooling import AttentivePooling, MeanPooling, MultiHeadAttentivePooling, StatisticsPooling
from tests.model_tools import count, relative_error

REMEDY = "git clone https://github.com/wenet-e2e/wespeaker; export SPKEXP_WESPEAKER=$PWD/wespeaker"


@pytest.fixture(scope="module")
def poolings() -> ModuleType:
    file = Path(os.environ.get("SPKEXP_WESPEAKER", "/missing"), "wespeaker/models/pooling_layers.py")
    if not file.is_file():
        pytest.skip(REMEDY)
    # The file alone: its package imports all of WeSpeaker.
    spec = importlib.util.spec_from_file_location("pooling_layers", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stacked(state: dict[str, Tensor], num_queries: int, num_heads: int, num_layers: int) -> dict[str, Tensor]:
    """Their networks, one for each query and head, as the groups of our convolutions: heads outside, queries inside."""
    return {
        f"layers.{layer}.{part}": torch.cat(
            [
                state[f"n_query.{query}.heads_att_trans.{head}.att_{layer}.{part}"]
                for head in range(num_heads)
                for query in range(num_queries)
            ]
        )
        for layer in range(num_layers)
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("scores", ["frame", "channel"])
@pytest.mark.parametrize(("queries", "heads", "layers"), [(2, 8, 2), (1, 4, 1), (3, 2, 3), (1, 1, 2)])
def test_multi_query_multi_head(
    poolings: ModuleType, queries: int, heads: int, layers: int, scores: Literal["frame", "channel"]
) -> None:
    torch.manual_seed(0)
    d_s = 2 if scores == "channel" else 1
    theirs = poolings.MQMHASTP(64, layers, queries, heads, d_s, bottleneck_dim=16)
    ours = MultiHeadAttentivePooling(64, queries, heads, layers, 16, scores, 1e-7)
    ours.load_state_dict(stacked(theirs.state_dict(), queries, heads, layers), strict=True)
    assert count(ours) == count(theirs)
    assert ours.out_channels == theirs.get_out_dim()
    for frames in (2, 50, 201):
        hidden = torch.randn(3, 64, frames) * 3
        with torch.no_grad():
            # In float64, for in float32 their E[x²] - E[x]² is only right to 1e-4.
            expected = theirs.double()(hidden.double())
            assert relative_error(ours(hidden, None), expected) < 1e-5


def test_one_query_and_one_head_are_the_attentive_pooling(poolings: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = poolings.MHASTP(64, layer_num=2, head_num=1, d_s=1, bottleneck_dim=16)
    ours = AttentivePooling(64, 16, "mean_and_deviation", 1e-7)
    names = [("heads_att_trans.0.att_0.", "hidden."), ("heads_att_trans.0.att_1.", "scores.")]
    state = {re.sub(a, b, name): x for a, b in names for name, x in theirs.state_dict().items() if name.startswith(a)}
    ours.load_state_dict(state, strict=True)
    hidden = torch.randn(3, 64, 50) * 3
    with torch.no_grad():
        assert relative_error(ours(hidden, None), theirs.double()(hidden.double())) < 1e-5


def test_mean_and_statistics_of_two_dimensional_encoders(poolings: ModuleType) -> None:
    hidden = torch.randn(3, 8, 10, 50) * 3
    flat = hidden.flatten(1, 2)
    assert relative_error(MeanPooling(80)(flat, None), poolings.TAP()(hidden)) < 1e-6
    # Theirs adds 1e-7 to the variance, ours is at least 1e-7.
    assert relative_error(StatisticsPooling(80, 1e-7)(flat, None), poolings.TSTP()(hidden)) < 1e-6
