"""The Transformer encoder against torch's own, its padding and its size."""

import math

import pytest
import torch
from torch import nn

from spkexp.models.attention import sinusoids
from spkexp.models.transformer import Transformer
from tests.model_tools import count, relative_error, speaker_model


def small(subsampling: int, dropout: float) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        in_channels=10,
        channels=16,
        num_layers=2,
        attention_heads=4,
        feedforward_channels=24,
        subsampling=subsampling,  # type: ignore[arg-type]
        dropout=dropout,
    )


def torch_encoder(model: Transformer) -> nn.TransformerEncoder:
    """torch's pre-norm encoder with the weights of `model`."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, len(model.layers), nn.LayerNorm(16), enable_nested_tensor=False)
    encoder.norm.load_state_dict(model.norm.state_dict())
    for theirs, ours in zip(encoder.layers, model.layers, strict=True):
        attention = [ours.attention.query, ours.attention.key, ours.attention.value]
        theirs.self_attn.in_proj_weight.data = torch.cat([part.weight for part in attention])
        theirs.self_attn.in_proj_bias.data = torch.cat([part.bias for part in attention])
        theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
        theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
        theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())
        theirs.linear1.load_state_dict(ours.feed_forward.expand.state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward.contract.state_dict())
    return encoder.eval()


def test_layers_are_those_of_torch() -> None:
    model = small(1, 0.3).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    features, lengths = torch.randn(3, 10, 12), torch.tensor([12, 7, 1])
    with torch.no_grad():
        projected = features.transpose(1, 2) @ model.subsampling.projection.weight[:, :, 0].T
        x = projected + model.subsampling.projection.bias + sinusoids(torch.arange(12), 16)
        padding = torch.arange(12) >= lengths[:, None]
        expected = torch_encoder(model)(x, src_key_padding_mask=padding).transpose(1, 2)
        actual, left = model(features, lengths)
        assert left is lengths
        for row, length in enumerate(lengths.tolist()):
            assert relative_error(actual[row, :, :length], expected[row, :, :length]) < 1e-5
        whole = torch_encoder(model)(x).transpose(1, 2)
        assert relative_error(model(features, None)[0], whole) < 1e-5


def test_sinusoids() -> None:
    table = sinusoids(torch.tensor([0, 3, -2]), 4)
    slow = 1 / 10000 ** (2 / 4)
    for row, t in enumerate([0, 3, -2]):
        expected = [math.sin(t), math.cos(t), math.sin(t * slow), math.cos(t * slow)]
        assert torch.allclose(table[row], torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("subsampling", [1, 2, 4])
def test_an_utterance_alone_equals_itself_among_garbage(subsampling: int) -> None:
    model = small(subsampling, 0.3).eval()
    lengths = torch.tensor([40, 23, 6, 1])
    features = torch.randn(4, 10, 40)
    for row, length in enumerate(lengths.tolist()):
        features[row, :, length:] = 1e3
    with torch.no_grad():
        together, frames = model(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model(features[row : row + 1, :, :length], None)
            assert int(frames[row]) == alone.shape[2]
            assert relative_error(together[row, :, : frames[row]], alone[0]) < 1e-5


def test_dropout_is_for_training_alone() -> None:
    model, features = small(1, 0.3), torch.randn(2, 10, 9)
    assert not torch.equal(model(features, None)[0], model(features, None)[0])
    model.eval()
    assert torch.equal(model(features, None)[0], model(features, None)[0])


def test_size_of_the_study() -> None:
    """Log-mel to 512 channels; a layer has 4 square matrices, twice 512 by 2048, and two normalisations; one more."""
    layer = 4 * (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 2 * 2 * 512
    model = speaker_model("transformer")
    assert count(model.encoder) == 80 * 512 + 512 + 3 * layer + 2 * 512
    assert count(model) == 9_762_048
