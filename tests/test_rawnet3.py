"""RawNet3 against slow references and its published size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.rawnet3 import FeatureMapScaling, RawNet3
from tests.model_tools import count, randomise_norms, relative_error, speaker_model


def small() -> RawNet3:
    torch.manual_seed(0)
    model = RawNet3(1, 16000, 0.97, 8, 31, 4, 12, 3, [2, 3, 4], [3, 2], 4, 10)
    randomise_norms(model)
    for block in model.blocks:
        nn.init.normal_(block.scaling.alpha)
    return model.eval()


def test_size_is_that_of_the_published_network() -> None:
    """16.3 M parameters; the authors' code has two unused batch normalisations of 512 parameters more."""

    def block(before: int) -> int:
        width = 1024 // 8
        res2 = 7 * (3 * width * width + width + 2 * width)
        skip = before * 1024 if before != 1024 else 0
        return (before * 1024 + 3 * 1024) + res2 + (1024 * 1024 + 3 * 1024) + skip + (1024 * 1024 + 2 * 1024)

    encoder = 2 + 256 + block(256) + 2 * block(1024) + 3 * 1024 * 1536 + 1536
    pooling = 3 * 1536 * 128 + 128 + 2 * 128 + 128 * 1536 + 1536
    model = speaker_model("rawnet3").eval()
    assert count(model.encoder) == encoder
    assert count(model) == encoder + pooling + 2 * 3072 + 3072 * 256 + 256 == 16_279_298
    assert model.encoder.receptive_field == 391

    # 32000 samples are 3175 frames of 251, pooled by 5 and by 3.
    width = 7 * 3 * 128 * 128
    products = 3175 * (256 * 251 + 2 * 256 * 1024 + width + 1024 * 1024)
    products += (635 + 211) * (2 * 1024 * 1024 + width) + 211 * 3 * 1024 * 1536
    products += 3 * 1024 * 1024  # scaling: once an utterance
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.encoder(torch.randn(1, 1, 32000), None)
    assert counted.get_total_flops() == 2 * products


def slow_front(model: RawNet3, x: Tensor) -> Tensor:
    """One utterance (samples,) -> log magnitudes (filters, frames), in float64, frame by frame."""
    emphasised = x.clone()
    emphasised[0] = x[0] - 0.97 * x[1]
    emphasised[1:] = x[1:] - 0.97 * x[:-1]
    x = (emphasised - emphasised.mean()) / (emphasised.var(correction=0) + 1e-4).sqrt()
    filters = model.filterbank.filters().double()[:, 0]
    frames = [x[t : t + 31] for t in range(0, len(x) - 30, 4)]
    logarithms = torch.stack([((filters * frame).sum(dim=1).abs() + 1e-6).log() for frame in frames], dim=1)
    return logarithms - logarithms.mean(dim=1, keepdim=True)


def layer(x: Tensor, module: nn.Module) -> Tensor:
    """1x1 or dilated convolution with zeros beyond the ends, ReLU, batch normalisation of (C, T)."""
    conv, norm = module.conv, module.norm
    x = F.conv1d(x, conv.weight.double(), conv.bias.double(), padding="same", dilation=conv.dilation).clamp(min=0)
    if norm is None:
        return x
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
    return (x - norm.running_mean.double()[:, None]) * scale[:, None] + norm.bias.double()[:, None]


def greatest(x: Tensor, size: int) -> Tensor:
    return torch.stack([x[:, t : t + size].amax(dim=1) for t in range(0, x.shape[1] - size + 1, size)], dim=1)


def slow_block(x: Tensor, block: nn.Module) -> Tensor:
    skip = x if isinstance(block.skip, nn.Identity) else block.skip.weight[:, :, 0].double() @ x
    y = layer(x, block.before)
    groups = list(y.chunk(4))
    for index, convolution in enumerate(block.res2.convolutions, start=1):
        heard = groups[index] if index == 1 else groups[index] + groups[index - 1]
        groups[index] = layer(heard, convolution)
    y = greatest(layer(torch.cat(groups), block.after) + skip, block.pool_size)
    gain = torch.sigmoid(block.scaling.gain.weight.double() @ y.mean(dim=1) + block.scaling.gain.bias.double())
    return (y + block.scaling.alpha.double()) * gain[:, None]


def slow(model: RawNet3, x: Tensor) -> Tensor:
    first = slow_block(slow_front(model, x), model.blocks[0])
    second = slow_block(first, model.blocks[1])
    third = slow_block(greatest(first, 2) + second, model.blocks[2])
    return layer(torch.cat([greatest(first, 2), second, third]), model.aggregation)


def test_encoder_against_a_slow_reference_whatever_lies_behind_a_row() -> None:
    model = small().double()
    waveform, lengths = torch.randn(4, 1, 700, dtype=torch.float64) * 0.2, torch.tensor([700, 555, 100, 20])
    assert model.receptive_field == (3 * 2 - 1) * 4 + 31
    garbage = waveform.clone()
    for row, length in enumerate(lengths.tolist()):
        garbage[row, :, length:] = 1e3
    hidden, frames = model(garbage, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = F.pad(waveform[row, 0, :length], (0, max(0, model.receptive_field - length)))
        expected = slow(model, alone)
        assert frames[row] == expected.shape[1]
        assert relative_error(hidden[row, :, : expected.shape[1]], expected) < 1e-9
    full, none = model(waveform[:1], None)
    assert none is None
    assert relative_error(full[0], slow(model, waveform[0, 0])) < 1e-9


def test_training_statistics_ignore_padding() -> None:
    waveform = torch.randn(2, 1, 700) * 0.2
    full, padded = small().train(), small().train()
    full(waveform, None)
    padded(F.pad(waveform, (0, 300), value=1e3), torch.tensor([700, 700]))
    expected = full.state_dict()
    for name, tensor in padded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_feature_map_scaling_by_hand() -> None:
    scaling = FeatureMapScaling(1)
    nn.init.constant_(scaling.alpha, 0.5)
    nn.init.constant_(scaling.gain.weight, 2.0)
    nn.init.constant_(scaling.gain.bias, -6.0)
    scaled = scaling(torch.tensor([[[2.0, 4, 99]]]), torch.tensor([2]))  # mean 3, gain 1/2
    assert scaled[0, 0, :2].tolist() == [1.25, 2.25]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"in_channels=80; it hears one waveform, spkexp.features.Waveform"):
        RawNet3(80, 16000, 0.97, 8, 31, 4, 12, 3, [2, 3, 4], [3, 2], 4, 10)
    with pytest.raises(ValueError, match="dilations has 2 entries and pool_sizes 2"):
        RawNet3(1, 16000, 0.97, 8, 31, 4, 12, 3, [2, 3], [3, 2], 4, 10)
    with pytest.raises(ValueError, match="res2net_scale=5 must be at least 2 and divide channels=12"):
        RawNet3(1, 16000, 0.97, 8, 31, 4, 12, 3, [2, 3, 4], [3, 2], 5, 10)
