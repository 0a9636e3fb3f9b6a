"""ReDimNet: sizes of the published models, the reshaping and the weighted sum by hand, padding."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.redimnet import ReDimNet, WeightedSum, _WeightedSum, to_1d, to_2d
from spkexp.models.redimnet_blocks import FrequencyGate
from tests.model_tools import count, randomise_norms, relative_error, speaker_model

# The authors' ReDimNetWrap with the sizes in conf/model: parameters that learn, and multiplications for the 134 frames
# that their front end makes of 2 s, behind it. Paper (README of IDRnD/ReDimNet): millions and G.
PUBLISHED = {
    "redimnet_b0": (1_004_250, 412_939_680, 1.0, 0.43),
    "redimnet_b1": (2_126_936, 601_903_872, 2.2, 0.54),
    "redimnet_b2": (5_067_056, 1_039_802_112, 4.7, 0.90),
    "redimnet_b3": (3_225_020, 2_920_603_968, 3.0, 3.00),
    "redimnet_b4": (6_441_520, 4_737_477_888, 6.3, 4.80),
    "redimnet_b5": (7_659_760, 8_822_055_168, 9.2, 9.87),
    "redimnet_b6": (15_015_472, 20_126_149_632, 15.0, 20.27),
}
# All elements of the released checkpoints b2-vox2-ft_lm.pt and b5-vox2-ft_lm.pt, as others report them.
CHECKPOINTS = {"redimnet_b2": 5_100_983, "redimnet_b5": 7_709_351}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiplications_are_the_published_ones(name: str) -> None:
    parameters, macs, millions, giga = PUBLISHED[name]
    model = speaker_model(name).eval()
    assert count(model) == parameters
    # B5 of the paper has more parameters than the authors' checkpoint of it, B2 fewer.
    assert parameters == pytest.approx(millions * 1e6, rel=0.17 if name == "redimnet_b5" else 0.08)
    if name in CHECKPOINTS:
        norms = sum(buffer.numel() for module in (model.encoder, model.pooling_norm) for buffer in module.buffers())
        front_end = 2 + 400 + 257 * 72  # pre-emphasis, window, mel filters
        frozen = 1  # weight of the first stage's only input
        assert parameters + norms + front_end + frozen == CHECKPOINTS[name]
    model = model.to("meta")
    features = torch.empty(1, model.features.out_channels, 134, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden, frames = model.encoder(features, None)
        model.embedding(model.pooling(hidden, frames))
    # Their pooling multiplies the context of the utterance with its weights for each frame, ours once.
    context = 2 * model.encoder.out_channels * 128 * 133
    assert counter.get_total_flops() // 2 + context == macs
    assert macs == pytest.approx(giga * 1e9, rel=0.16)


def test_reshaping_keeps_the_channels_of_a_frequency_together() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # (B, C, F, T)
    signal = to_1d(x)
    for channel in range(3):
        for frequency in range(4):
            assert signal[:, 3 * frequency + channel].equal(x[:, channel, frequency])
    assert to_2d(signal, 4).equal(x)
    pooled = to_2d(signal, 2)  # two frequencies with 6 channels: those of frequencies 0 and 1 are in frequency 0
    assert pooled[:, :, 0].flatten().sort().values.equal(x[:, :, :2].flatten().sort().values)


def test_weighted_sum() -> None:
    torch.manual_seed(0)
    total = WeightedSum(3, 4).double()
    torch.nn.init.normal_(total.weight)
    signals = [torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.softmax(total.weight.detach(), dim=0)
    expected = torch.stack([w * s for w, s in zip(weight, signals, strict=True)]).sum(dim=0)
    torch.testing.assert_close(total(signals), expected)
    assert torch.autograd.gradcheck(
        lambda w, *s: _WeightedSum.apply(w, *s), (total.weight.detach().requires_grad_(), *signals)
    )


def test_gate_is_of_valid_frames() -> None:
    torch.manual_seed(0)
    gate = FrequencyGate(3, 4).double()
    x = torch.randn(2, 5, 3, 7, dtype=torch.float64)
    gains = gate(x, torch.tensor([4, 7]))
    for row, length in enumerate((4, 7)):
        hidden = torch.relu(gate.squeeze.weight @ x[row, :, :, :length].mean(dim=(0, 2)) + gate.squeeze.bias)
        expected = torch.sigmoid(gate.excite.weight @ hidden + gate.excite.bias)
        assert torch.allclose(gains[row, 0, :, 0], expected)
        assert torch.allclose(gate(x[row : row + 1, :, :, :length], None)[0, 0, :, 0], expected)


SMALL: dict[str, Any] = {
    "channels": 4,
    "group_channels": 2,
    "strides": [1, 2, 3],
    "num_blocks": [1, 2, 1],
    "expansions": [2, 1, 1],
    "time_reductions": [0, 6, 4],
    "time_kernel_sizes": [3, 7],
    "num_heads": 2,
}


def small(**changes: Any) -> ReDimNet:
    torch.manual_seed(0)
    return ReDimNet(**{"in_channels": 12, "block_2d": "resnet_gate", **SMALL, **changes})


@pytest.mark.parametrize("block_2d", ["convnext", "resnet", "resnet_gate"])
def test_padding_has_no_influence(block_2d: str) -> None:
    encoder = small(block_2d=block_2d).eval()
    randomise_norms(encoder)
    features = torch.randn(3, 12, 30)
    lengths = torch.tensor([30, 17, 1])
    garbage = features.masked_fill((torch.arange(30) >= lengths[:, None]).unsqueeze(1), 1e3)
    together, frames = encoder(garbage, lengths)
    assert frames is lengths
    assert together.shape == (3, encoder.out_channels, 30)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = encoder(features[row : row + 1, :, :length], None)
        assert relative_error(together[row, :, :length], alone[0]) < 1e-5


@pytest.mark.parametrize("block_2d", ["convnext", "resnet_gate"])
def test_statistics_in_training_are_those_of_valid_frames(block_2d: str) -> None:
    buffers = []
    for value in (0.0, 1e3):
        encoder = small(block_2d=block_2d).train()
        features = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1))
        features[1, :, 15:] = value
        encoder(features, torch.tensor([30, 15]))
        buffers.append(torch.cat([buffer.flatten().float() for buffer in encoder.buffers()]))
    assert torch.allclose(buffers[0], buffers[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [1, 2, 5]}, r"strides=\[1, 2, 5\] must divide in_channels=12"),
        ({"num_blocks": [1, 2]}, "num_blocks has 2"),
        ({"channels": 5}, "group_channels=2 must divide the 5 channels"),
        ({"num_heads": 5}, "num_heads=5 must divide"),
        ({"time_kernel_sizes": [3, 4]}, r"time_kernel_sizes=\[3, 4\]"),
    ],
)
def test_wrong_sizes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**{"expansions": [1, 1, 1], **changes})
