"""The plain convolutional encoders against torch's layers, their padding and their size."""

import pytest
import torch
from torch import Tensor, nn

from spkexp.models.conv import Conv1d, Conv2d
from tests.model_tools import count, randomise_norms, relative_error, speaker_model

SIZES = {"channels": [8, 12, 6], "kernel_sizes": [5, 3, 1], "strides": [1, 2, 3]}


def small(dimensions: int) -> Conv1d | Conv2d:
    torch.manual_seed(0)
    model = (Conv1d if dimensions == 1 else Conv2d)(10, **SIZES).eval()
    randomise_norms(model)
    return model


def reference(model: Conv1d | Conv2d, features: Tensor, dimensions: int) -> Tensor:
    """The same layers, one after the other, of one utterance."""
    x = features if dimensions == 1 else features.unsqueeze(1)
    for layer, kernel_size, stride in zip(model.layers, SIZES["kernel_sizes"], SIZES["strides"], strict=True):
        padded = nn.functional.pad(x, [kernel_size // 2] * 2 * dimensions)
        convolution = nn.functional.conv1d if dimensions == 1 else nn.functional.conv2d
        x = layer.norm(convolution(padded, layer.conv.weight, stride=stride)).relu()
    return x.flatten(1, -2) if dimensions == 2 else x


@pytest.mark.parametrize("dimensions", [1, 2])
def test_each_utterance_in_a_batch_is_convolved_alone(dimensions: int) -> None:
    model = small(dimensions)
    # 10 bins become 10, 5 and 2
    assert model.out_channels == (6 if dimensions == 1 else 6 * 2)
    lengths = torch.tensor([25, 14, 2, 1])
    features = torch.randn(4, 10, 25)
    for row, length in enumerate(lengths.tolist()):
        features[row, :, length:] = 1e3
    with torch.no_grad():
        together, frames = model(features, lengths)
        assert frames.tolist() == [5, 3, 1, 1]  # ⌈⌈T / 2⌉ / 3⌉
        for row, length in enumerate(lengths.tolist()):
            expected = reference(model, features[row : row + 1, :, :length], dimensions)
            assert expected.shape == (1, model.out_channels, frames[row])
            assert relative_error(together[row : row + 1, :, : frames[row]], expected) < 1e-5
            assert relative_error(model(features[row : row + 1, :, :length], None)[0], expected) < 1e-5


@pytest.mark.parametrize("dimensions", [1, 2])
def test_training_statistics_are_those_of_valid_frames(dimensions: int) -> None:
    torch.manual_seed(0)
    model = (Conv1d if dimensions == 1 else Conv2d)(10, **SIZES).train()
    features, lengths = torch.randn(2, 10, 20), torch.tensor([20, 9])
    model(features, lengths)
    layer = model.layers[0]  # keeps the number of frames
    with torch.no_grad():
        rows = [features[row : row + 1, :, :length] for row, length in enumerate(lengths.tolist())]
        outputs = [layer.conv(row if dimensions == 1 else row.unsqueeze(1)) for row in rows]
    values = torch.cat([output[0].flatten(1) for output in outputs], dim=1)
    assert torch.allclose(layer.norm.running_mean, 0.1 * values.mean(dim=1), atol=1e-5)
    assert torch.allclose(layer.norm.running_var, 0.9 + 0.1 * values.var(dim=1), atol=1e-5)


def test_sizes() -> None:
    """Weights without bias, and twice the channels in normalisation; then mean and deviation to the embedding."""
    weights = 5 * (80 * 256 + 256 * 256 + 256 * 384 + 384 * 384) + 2 * (256 + 256 + 384 + 384)
    assert count(speaker_model("conv1d")) == weights + (2 * 384 + 1) * 256 == 1_858_304
    weights = 9 * (32 + 32 * 64 + 64 * 128 + 128 * 256) + 2 * (32 + 64 + 128 + 256)
    # 80 mel bins, halved four times
    assert count(speaker_model("conv2d")) == weights + (2 * 256 * 5 + 1) * 256 == 1_043_936


@pytest.mark.parametrize("kind", [Conv1d, Conv2d])
def test_wrong_sizes_are_named(kind: type[Conv1d] | type[Conv2d]) -> None:
    with pytest.raises(ValueError, match="kernel_sizes has 1"):
        kind(10, [8, 8], [3], [1, 1])
    with pytest.raises(ValueError, match="kernel_size=4"):
        kind(10, [8], [4], [1])
