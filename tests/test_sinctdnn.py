"""SincTDNN, and the filterbank and normalisation that it shares with RawNet3, against slow references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.sincnet import InstanceNorm, SincFilterbank
from spkexp.models.sinctdnn import SincTDNN
from tests.model_tools import count, randomise_norms, relative_error, speaker_model


def small() -> SincTDNN:
    torch.manual_seed(0)
    model = SincTDNN(1, 16000, 8, 31, 4, [6, 5], 3, 2, [7, 9], [3, 1], [2, 1], 0.01)
    randomise_norms(model)
    for norm in (model.waveform_norm, *model.instance_norms):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    return model.eval()


def test_size_is_that_of_the_published_network() -> None:
    tdnn = [(60, 512, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (512, 1500, 1)]
    convolutions = [(80, 60, 5), (60, 60, 5)]
    sizes = sum(i * o * k + o for i, o, k in (*tdnn, *convolutions))
    norms = 2 * (1 + 80 + 60 + 60) + 2 * (4 * 512 + 1500)
    model = speaker_model("sinctdnn").eval()
    assert count(model) == sizes + norms + 80 + 3000 * 512 + 512 == 4_346_366

    # 32000 samples: 3175 frames of 251, then a third, less 4, a third, less 4, a third; then less 4, 4 and 6.
    frames = [1054, 347, 111, 107, 101, 101, 101]
    products = sum(t * i * o * k for t, (i, o, k) in zip(frames, (*convolutions, *tdnn), strict=True))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.encoder(torch.randn(1, 1, 32000), None)
    assert counted.get_total_flops() == 2 * (products + 3175 * 80 * 251)
    assert model.encoder.receptive_field == 4771
    assert speaker_model("sinctdnn", sinc_stride=5).encoder.receptive_field == 2511


def test_filters_are_windowed_differences_of_low_pass_filters() -> None:
    """Equation 4 of Ravanelli and Bengio with numpy's sinc, and the same with cosines, in float64."""
    filterbank = SincFilterbank(10, 51, 1, 16000)
    with torch.no_grad():
        filterbank.low_hz[2] *= -1  # as good as its magnitude
        low, high = (edge.double().numpy() for edge in filterbank.bands())
        even, odd = filterbank.filters().double().squeeze(1).chunk(2)
    time = np.arange(-25, 26) / 16000
    window = np.hamming(51) / (2 * (high - low))
    expected = (2 * high * np.sinc(2 * high * time) - 2 * low * np.sinc(2 * low * time)) * window
    np.testing.assert_allclose(even.numpy(), expected, atol=1e-5)
    time[25] = 1.0  # where the limit is 0
    expected = (np.cos(2 * np.pi * low * time) - np.cos(2 * np.pi * high * time)) / (np.pi * time) * window
    expected[:, 25] = 0.0
    np.testing.assert_allclose(odd.numpy(), expected, atol=1e-5)


def test_filters_pass_their_bands_and_positive_frequencies_only() -> None:
    filterbank = SincFilterbank(40, 251, 1, 16000)
    low, high = (edge.detach().numpy() for edge in filterbank.bands())
    even, odd = filterbank.filters().detach().squeeze(1).double().numpy().reshape(2, 20, 251)
    response = np.abs(np.fft.fft(even + 1j * odd, 16000)) * 2 * (high - low) / 16000  # a bin a Hz
    # Around a circle of 16 kHz, of which the upper half are the negative frequencies.
    from_centre = np.abs((np.arange(16000) - (low + high) / 2 + 8000) % 16000 - 8000)
    inside = from_centre < (high - low) / 2 - 150  # the window blurs an edge by the half of its main lobe, 127 Hz
    outside = from_centre > (high - low) / 2 + 150
    assert np.abs(response[inside] - 2).max() < 0.02
    assert response[outside].max() < 0.02


def test_bands_begin_side_by_side_on_the_mel_scale_and_keep_a_width() -> None:
    filterbank = SincFilterbank(80, 251, 10, 16000)
    low, band = filterbank.low_hz.detach().flatten(), filterbank.band_hz.detach().flatten()
    torch.testing.assert_close(low[:-1] + band[:-1], low[1:])
    mel = 2595 * torch.log10(1 + low / 700)
    torch.testing.assert_close(mel.diff(), mel.diff().mean().expand(39), rtol=1e-4, atol=0)
    assert low[0] == pytest.approx(30)
    assert low[-1] + band[-1] == pytest.approx(7900)
    with torch.no_grad():
        filterbank.low_hz[0] = 1e6
    low, high = filterbank.bands()
    assert (high - low).min() >= 50
    assert filterbank.filters().isfinite().all()


def slow_instance_norm(x: Tensor, norm: InstanceNorm) -> Tensor:
    """One utterance (C, T) in float64."""
    mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, correction=0, keepdim=True)
    weight, bias = norm.weight.double()[:, None], norm.bias.double()[:, None]
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


def slow(model: SincTDNN, x: Tensor) -> Tensor:
    """One utterance (1, samples) -> (out_channels, T), in float64, frame by frame where a layer pools or filters."""
    x = slow_instance_norm(x, model.waveform_norm)[0]
    filters = model.filterbank.filters().double()[:, 0]
    frames = [x[t : t + filters.shape[1]] for t in range(0, len(x) - filters.shape[1] + 1, model.filterbank.stride)]
    x = torch.stack([(filters * frame).sum(dim=1).abs() for frame in frames], dim=1)
    for index, norm in enumerate(model.instance_norms):
        if index:
            layer = model.convolutions[index - 1]
            x = F.conv1d(x, layer.weight.double(), layer.bias.double())
        size = model.pool_size
        x = torch.stack([x[:, t : t + size].amax(dim=1) for t in range(0, x.shape[1] - size + 1, size)], dim=1)
        x = slow_instance_norm(x, norm)
        x = torch.where(x > 0, x, 0.01 * x)
    for layer, norm in zip(model.layers, model.norms, strict=True):
        x = F.conv1d(x, layer.weight.double(), layer.bias.double(), dilation=layer.dilation)
        x = torch.where(x > 0, x, 0.01 * x)
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
        x = (x - norm.running_mean.double()[:, None]) * scale[:, None] + norm.bias.double()[:, None]
    return x


def test_encoder_against_a_slow_reference_whatever_lies_behind_a_row() -> None:
    model = small()
    waveform, lengths = torch.randn(4, 1, 900) * 0.2 + 0.1, torch.tensor([900, 777, 400, 20])
    # One frame: 5 of SincNet (the kernel of 3 dilated by 2), 10 pooled, 12, 24, 26, 52 of the filterbank.
    assert model.receptive_field == 51 * 4 + 31
    garbage = waveform.clone()
    for row, length in enumerate(lengths.tolist()):
        garbage[row, :, length:] = 1e3
    hidden, frames = model(garbage, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = waveform[row, :, :length].double()
        expected = slow(model, F.pad(alone, (0, max(0, model.receptive_field - length))))
        assert frames[row] == expected.shape[1]
        assert relative_error(hidden[row, :, : expected.shape[1]].double(), expected) < 1e-5
    full, none = model(waveform[:1], None)
    assert none is None
    assert relative_error(full[0].double(), slow(model, waveform[0].double())) < 1e-5


def test_training_statistics_ignore_padding() -> None:
    waveform = torch.randn(2, 1, 900) * 0.2
    full, padded = small().train(), small().train()
    full(waveform, None)
    padded(F.pad(waveform, (0, 300), value=1e3), torch.tensor([900, 900]))
    for ours, theirs in zip(padded.norms, full.norms, strict=True):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_instance_norm_by_hand() -> None:
    norm = InstanceNorm(1, 1e-12)
    torch.nn.init.constant_(norm.weight, 2.0)
    torch.nn.init.constant_(norm.bias, 1.0)
    x = torch.tensor([[[1.0, 3, 99, 99]], [[0, 3, 3, 6]]])
    # means 2 and 3, deviations 1 and sqrt(18/4)
    normalised = norm(x, torch.tensor([2, 4]))
    torch.testing.assert_close(normalised[0, 0, :2], torch.tensor([-1.0, 3]))
    torch.testing.assert_close(normalised[1, 0], 1 + 2 * torch.tensor([-3.0, 0, 0, 3]) / 4.5**0.5)
    torch.testing.assert_close(norm(x[1:]), normalised[1:])
    # A large offset must not cancel the variance; one frame or a constant is the bias.
    torch.testing.assert_close(norm(x + 4096, torch.tensor([2, 4]))[1], normalised[1], atol=1e-3, rtol=0)
    assert norm(x, torch.tensor([1, 1]))[:, 0, 0].tolist() == [1.0, 1.0]


def test_instance_norm_gradients() -> None:
    norm = InstanceNorm(3, 1e-5).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([6, 3])
    valid = torch.arange(6) < lengths[:, None, None]
    assert torch.autograd.gradcheck(lambda x: norm(x, lengths) * valid, x)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"in_channels=80; it hears one waveform, spkexp.features.Waveform"):
        SincTDNN(80, 16000, 8, 31, 4, [6, 5], 3, 2, [7, 9], [3, 1], [2, 1], 0.01)
    with pytest.raises(ValueError, match="dilations has 1"):
        SincTDNN(1, 16000, 8, 31, 4, [6, 5], 3, 2, [7, 9], [3, 1], [2], 0.01)
    with pytest.raises(ValueError, match="num_filters=7: an even number"):
        SincFilterbank(7, 31, 4, 16000)
    with pytest.raises(ValueError, match="kernel_size=30: an odd number"):
        SincFilterbank(8, 30, 4, 16000)
