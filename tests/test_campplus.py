"""CAM++: sizes of the published model, the mask by its formula, dense blocks with and without autograd, padding."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.campplus import CAMPlusPlus, DenseBlock, DenseLayer, segment_mean
from tests.model_tools import count, randomise_norms, relative_error, speaker_model

SMALL = {
    "front_channels": 4,
    "channels": 16,
    "growth_rate": 4,
    "bottleneck_channels": 8,
    "context_channels": 6,
    "num_layers": [2, 3],
    "kernel_sizes": [3, 3],
    "dilations": [1, 2],
    "segment_frames": 10,
}


def small(in_channels: int = 16, **changes: object) -> CAMPlusPlus:
    torch.manual_seed(0)
    return CAMPlusPlus(in_channels, **{**SMALL, **changes})


def test_parameters_are_those_of_3d_speaker() -> None:
    # Theirs has 7,176,224: no bias in the linear layer (512), no weight and bias in the norm behind it (2 x 512).
    assert count(speaker_model("campplus")) == 7_176_224 + 512 + 2 * 512


def test_multiplications_are_the_published_ones() -> None:
    model = speaker_model("campplus").eval().to("meta")
    features = torch.empty(1, 80, 200, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden, frames = model.encoder(features, None)
        model.embedding(model.pooling(hidden, frames))
    # 3D-Speaker's and WeSpeaker's CAMPPlus compute the mask for each of the 100 frames of a segment; we do it once.
    mask = 52 * (128 * 64 + 64 * 32)
    macs = counter.get_total_flops() // 2 + 99 * mask
    assert macs == 1_126_207_488  # counted likewise on theirs
    assert macs == pytest.approx(1.15e9, rel=0.03)  # WeSpeaker's README, which also counts what is no product


def test_mean_of_segments() -> None:
    x = torch.arange(7.0).repeat(2, 1, 1)
    full = segment_mean(x, None, 3)
    assert full[0, 0].tolist() == [1.0, 4.0, 6.0]
    padded = segment_mean(x.masked_fill(torch.arange(7) >= 5, 0.0), torch.tensor([5, 5]), 3)
    assert padded[0, 0].tolist() == [1.0, 3.5, 0.0]


def mask_by_frame(layer: DenseLayer, x: Tensor) -> Tensor:
    """The mask of one utterance (C, T), a frame at a time, in float64."""
    squeeze, excite = layer.squeeze.double(), layer.excite.double()
    columns = []
    for t in range(x.shape[1]):
        first = t // layer.segment_frames * layer.segment_frames
        context = x.mean(dim=1) + x[:, first : first + layer.segment_frames].mean(dim=1)
        hidden = torch.relu(squeeze.weight[:, :, 0] @ context + squeeze.bias)
        columns.append(torch.sigmoid(excite.weight[:, :, 0] @ hidden + excite.bias))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("num_frames", [1, 10, 11, 25])
def test_mask_follows_its_formula(num_frames: int) -> None:
    torch.manual_seed(0)
    layer = DenseLayer(6, 4, 8, 5, 3, 1, segment_frames=10).double()
    x = torch.randn(2, 8, 25, dtype=torch.float64)
    lengths = torch.tensor([num_frames, 25])
    x[0, :, num_frames:] = 0.0
    mask = layer.mask(x, lengths)
    expected = mask_by_frame(layer, x[0, :, :num_frames])
    assert torch.allclose(mask[0, :, :num_frames], expected, atol=1e-12)
    assert torch.allclose(layer.mask(x[:1, :, :num_frames], None).expand(-1, -1, num_frames)[0], expected, atol=1e-12)
    assert torch.allclose(mask[1], mask_by_frame(layer, x[1]), atol=1e-12)


def test_dense_block_is_the_same_with_and_without_autograd() -> None:
    torch.manual_seed(0)
    block = DenseBlock([DenseLayer(6 + 4 * i, 4, 8, 5, 3, 1, 10) for i in range(3)]).eval()
    randomise_norms(block)
    x = torch.randn(2, 6, 25)
    outputs = block(x, None)
    with torch.no_grad():
        assert torch.allclose(block(x, None), outputs, atol=1e-6)
    assert outputs.shape == (2, block.out_channels, 25)
    assert outputs[:, :6].equal(x)  # what entered, then a layer's output after the other
    assert torch.allclose(outputs[:, 6:10], block.layers[0](x, None), atol=1e-6)
    assert torch.allclose(outputs[:, 10:14], block.layers[1](outputs[:, :10], None), atol=1e-6)


def test_padding_has_no_influence() -> None:
    encoder = small()
    randomise_norms(encoder)
    features = torch.randn(3, 16, 60)
    lengths = torch.tensor([60, 37, 1])
    garbage = features.masked_fill((torch.arange(60) >= lengths[:, None]).unsqueeze(1), 1e3)
    encoder.eval()
    together, frames = encoder(garbage, lengths)
    assert frames.tolist() == [30, 19, 1]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = encoder(features[row : row + 1, :, :length], None)
        assert relative_error(together[row, :, : frames[row]], alone[0]) < 1e-5


def test_statistics_in_training_are_those_of_valid_frames() -> None:
    buffers = []
    for value in (0.0, 1e3):
        encoder = small().train()
        features = torch.randn(2, 16, 60, generator=torch.Generator().manual_seed(1))
        features[1, :, 30:] = value
        encoder(features, torch.tensor([60, 30]))
        buffers.append(torch.cat([buffer.flatten().float() for buffer in encoder.buffers()]))
    assert torch.allclose(buffers[0], buffers[1], rtol=1e-5)


def test_any_number_of_features() -> None:
    hidden, _ = small(in_channels=23).eval()(torch.randn(1, 23, 40), None)
    assert hidden.shape == (1, 12, 20)  # (16 + 2 * 4) / 2 = 12, (12 + 3 * 4) / 2 = 12


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="kernel_sizes has 4"):
        small(kernel_sizes=[3, 4])
    with pytest.raises(ValueError, match="dilations has 1"):
        small(dilations=[1])


def test_exported_graph_serves_shorter_and_longer_utterances() -> None:
    encoder = small().eval()
    randomise_norms(encoder)
    any_size = torch.export.Dim.DYNAMIC
    example = (torch.randn(3, 16, 50), torch.tensor([50, 30, 5]))
    with torch.no_grad():
        graph = torch.export.export(
            encoder, example, dynamic_shapes=({0: any_size, 2: any_size}, {0: any_size})
        ).module()
        for num_frames in (7, 20, 131):
            features, lengths = torch.randn(2, 16, num_frames), torch.tensor([num_frames, 4])
            assert relative_error(graph(features, lengths)[0], encoder(features, lengths)[0]) < 1e-5
