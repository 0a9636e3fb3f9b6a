"""The Conformer's parts against the papers' formulas in float64, its padding, and its size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.attention import RelativeSelfAttention, key_mask, relative_positions
from spkexp.models.conformer import Conformer, ConvolutionModule
from spkexp.models.subsampling import Subsampling
from tests.model_tools import count, randomise_norms, relative_error, speaker_model


def small(subsampling: int, relative_shift: bool) -> Conformer:
    torch.manual_seed(0)
    return Conformer(
        in_channels=20,
        channels=16,
        num_blocks=2,
        attention_heads=4,
        feedforward_channels=24,
        kernel_size=5,
        subsampling=subsampling,  # type: ignore[arg-type]
        relative_shift=relative_shift,
        dropout=0.0,
    )


def slow_attention(attention: RelativeSelfAttention, x: Tensor, length: int) -> Tensor:
    """One utterance (T, C) by the formula, number by number; keys beyond `length` do not exist."""
    num_frames, channels = x.shape
    width = channels // attention.num_heads
    query, key, value = (
        layer(x).view(num_frames, -1, width) for layer in (attention.query, attention.key, attention.value)
    )

    def r(step: int) -> Tensor:
        angles = [step / 10000 ** (2 * (channel // 2) / channels) for channel in range(channels)]
        code = [math.cos(angle) if channel % 2 else math.sin(angle) for channel, angle in enumerate(angles)]
        return attention.position(torch.tensor(code, dtype=x.dtype)).view(-1, width)

    rows = []
    for i in range(num_frames):
        heads = []
        for h in range(attention.num_heads):
            u, v = attention.content_bias[h], attention.position_bias[h]
            scores = [
                ((query[i, h] + u) @ key[j, h] + (query[i, h] + v) @ r(i - j if attention.relative else j)[h])
                / math.sqrt(width)
                for j in range(length)
            ]
            heads.append(torch.softmax(torch.stack(scores), dim=0) @ value[:length, h])
        rows.append(torch.cat(heads))
    return attention.out(torch.stack(rows))


@pytest.mark.parametrize("relative", [True, False])
def test_attention_with_positions(relative: bool) -> None:
    torch.manual_seed(0)
    attention = RelativeSelfAttention(8, 2, 0.0, relative).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    positions = relative_positions(6, 8, relative, x.device).double()
    with torch.no_grad():
        for lengths in (None, torch.tensor([6, 4])):
            actual = attention(x, key_mask(lengths, 6), positions)
            for row, length in enumerate([6, 6] if lengths is None else [6, 4]):
                expected = slow_attention(attention, x[row], length)
                assert relative_error(actual[row], expected) < 1e-6  # the positions are float32


def test_convolution_module() -> None:
    """Pointwise, gated linear unit, depthwise over zeros, batch normalisation, swish, pointwise: figure 2."""
    torch.manual_seed(0)
    module = ConvolutionModule(4, 3).double().eval()
    randomise_norms(module)
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        values, gates = module.gated(x).split(4, dim=1)
        gated = F.pad(values * torch.sigmoid(gates), (0, 0, 1, 1))
        weight = module.depthwise.weight[:, 0]
        y = torch.stack([(gated[t : t + 3] * weight.T).sum(dim=0) for t in range(5)]) + module.depthwise.bias
        norm = module.norm
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        expected = module.pointwise(y * torch.sigmoid(y))
        assert relative_error(module(x.unsqueeze(0), None)[0], expected) < 1e-9
        behind = torch.cat([x, torch.full((3, 4), 1e3)]).unsqueeze(0)
        assert relative_error(module(behind, torch.tensor([5]))[0, :5], expected) < 1e-9


def test_convolution_statistics_are_those_of_valid_frames() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(4, 3).train()
    x, lengths = torch.randn(2, 9, 4), torch.tensor([9, 5])
    module(x, lengths)
    inputs = []
    with torch.no_grad():
        for row, length in enumerate(lengths.tolist()):
            gated = F.glu(module.gated(x[row, :length]), dim=1)
            inputs.append(module.depthwise(gated.T.unsqueeze(0))[0])
    frames = torch.cat(inputs, dim=1)  # 14 of them
    assert torch.allclose(module.norm.running_mean, 0.1 * frames.mean(dim=1), atol=1e-6)
    assert torch.allclose(module.norm.running_var, 0.9 + 0.1 * frames.var(dim=1), atol=1e-6)


@pytest.mark.parametrize(("factor", "frames"), [(1, [1, 2, 7, 8]), (2, [1, 1, 3, 3]), (4, [1, 1, 1, 1])])
def test_subsampling_frames(factor: int, frames: list[int]) -> None:
    torch.manual_seed(0)
    module = Subsampling(9, 6, factor)  # type: ignore[arg-type]
    features = torch.randn(4, 9, 8)
    lengths = torch.tensor([1, 2, 7, 8])
    together, left = module(features, lengths)
    assert left.tolist() == frames
    for row, (before, after) in enumerate(zip(lengths.tolist(), frames, strict=True)):
        alone, _ = module(features[row : row + 1, :, :before], None)
        assert alone.shape == (1, 6, after)
        assert relative_error(together[row, :, :after], alone[0]) < 1e-6
    # 31 frames: (31 - 3) // 2 + 1 = 15, and (15 - 3) // 2 + 1 = 7
    assert module(torch.randn(1, 9, 31), None)[0].shape[2] == {1: 31, 2: 15, 4: 7}[factor]


def test_subsampling_halves_by_a_convolution_and_a_linear_layer() -> None:
    torch.manual_seed(0)
    module = Subsampling(9, 6, 2)
    features = torch.randn(1, 9, 8)
    hidden = F.conv2d(
        features.unsqueeze(1), module.convolutions[0].weight, module.convolutions[0].bias, stride=2
    ).relu()
    assert hidden.shape == (1, 6, 4, 3)
    frames = [
        module.projection.weight[:, :, 0] @ hidden[0, :, :, t].flatten() + module.projection.bias for t in range(3)
    ]
    assert relative_error(module(features, None)[0][0], torch.stack(frames, dim=1)) < 1e-5


@pytest.mark.parametrize("relative_shift", [True, False])
@pytest.mark.parametrize("subsampling", [1, 2, 4])
def test_an_utterance_alone_equals_itself_among_garbage(subsampling: int, relative_shift: bool) -> None:
    model = small(subsampling, relative_shift).eval()
    randomise_norms(model)
    lengths = torch.tensor([40, 23, 6, 1])
    features = torch.randn(4, 20, 40)
    for row, length in enumerate(lengths.tolist()):
        features[row, :, length:] = 1e3
    with torch.no_grad():
        together, frames = model(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model(features[row : row + 1, :, :length], None)
            assert int(frames[row]) == alone.shape[2]
            assert relative_error(together[row, :, : frames[row]], alone[0]) < 1e-5


def test_training_does_not_hear_the_padding() -> None:
    lengths = torch.tensor([30, 17])
    features = torch.randn(2, 20, 30)
    results = []
    for filling in (0.0, 1e3):
        model = small(2, True).train()
        features[1, :, 17:] = filling
        hidden, frames = model(features, lengths)
        weight = torch.linspace(-1, 1, model.out_channels)[:, None]
        sum((hidden[row, :, : frames[row]] * weight).sum() for row in range(2)).backward()
        results.append([model.blocks[1].convolution.norm.running_var, *(p.grad for p in model.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.allclose(clean, dirty, rtol=1e-4, atol=1e-6)


def test_size_is_the_published_one() -> None:
    """The authors' zyzisyz/mfa_conformer with 1/2 subsampling has as many parameters (tests/parity)."""
    model = speaker_model("conformer").eval()
    assert count(model) == 19_759_424
    with FlopCounterMode(display=False) as counter:
        model.embed(torch.randn(1, 80, 200), torch.tensor([200]))
    # 99 frames of 39 bins: subsampling 9 * 256 * 39 + 9984 * 256; a block 4 * 256 * 2048 in feed-forward, 4 * 256² and
    # the position's 256² and two products of 99 * 256 in attention, 3 * 256² + 15 * 256 in convolution.
    frame = 9 * 256 * 39 + 9984 * 256 + 6 * (4 * 256 * 2048 + 8 * 256**2 + 2 * 99 * 256 + 15 * 256)
    pooling = 2 * 1536 * 128  # of a frame, to and from the attention
    expected = 99 * (frame + pooling) + 3072 * 128 + 3072 * 192
    assert counter.get_total_flops() / 2 == expected == 1_891_366_656


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"kernel_size": 4}, "kernel_size=4"), ({"attention_heads": 3}, "attention_heads=3"), ({"subsampling": 3}, "=3")],
)
def test_wrong_sizes_are_named(changed: dict[str, int], words: str) -> None:
    sizes = {"channels": 16, "num_blocks": 1, "attention_heads": 4, "feedforward_channels": 24, "kernel_size": 5}
    with pytest.raises(ValueError, match=words):
        Conformer(20, **{**sizes, "subsampling": 2, **changed}, relative_shift=True, dropout=0.0)  # type: ignore[arg-type]


def test_too_few_mel_bins_are_named() -> None:
    with pytest.raises(ValueError, match="6 mel bins"):
        Subsampling(6, 8, 4)
