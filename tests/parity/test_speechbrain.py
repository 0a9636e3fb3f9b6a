"""SpeechBrain's ECAPA-TDNN and x-vector, with random weights, give the same embeddings as ours."""

import pytest
import torch
from torch import Tensor, nn

from spkexp.models.ecapa import ECAPA
from spkexp.models.pooling import AttentiveStatisticsPooling, StatisticsPooling
from spkexp.models.xvector import XVector

pytest.importorskip("speechbrain", reason="speechbrain is in the test extra")
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.Xvector import Xvector


class Embedder(nn.Module):
    """Encoder, pooling and linear layer, without features."""

    def __init__(self, encoder: nn.Module, pooling: nn.Module, norm: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pooling, self.pooling_norm, self.embedding = encoder, pooling, norm, embedding

    def forward(self, features: Tensor) -> Tensor:
        return self.embedding(self.pooling_norm(self.pooling(*self.encoder(features, None))))


def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters of batch normalisation that are not those of a fresh layer."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)


def ecapa_name(name: str) -> str:
    """SpeechBrain's name of a tensor -> ours."""
    name = name.replace(".conv.conv.", ".conv.").replace(".norm.norm.", ".norm.")
    first = [("blocks.0.", "encoder.first."), ("mfa.", "encoder.aggregation."), ("fc.conv.", "embedding.")]
    first += [("asp_bn.norm.", "pooling_norm."), ("asp.conv.", "pooling.scores."), ("asp.tdnn.norm.", "pooling.norm.")]
    first += [("asp.tdnn.conv.", "pooling.hidden.")]
    first += [(f"blocks.{i}.", f"encoder.blocks.{i - 1}.") for i in (1, 2, 3)]
    for theirs, ours in first:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    name = name.replace(".conv.conv.", ".").replace("scores.conv.", "scores.").replace(".tdnn1.", ".before.")
    name = name.replace(".tdnn2.", ".after.").replace(".res2net_block.blocks.", ".mixer.convolutions.")
    return name.replace(".se_block.conv1.conv.", ".excitation.squeeze.").replace(
        ".se_block.conv2.conv.", ".excitation.excite."
    )


def load_ecapa(theirs: nn.Module, ours: Embedder) -> None:
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    state = {ecapa_name(name): tensor for name, tensor in theirs.state_dict().items()}
    # [frame; mean; deviation] is one matrix there and two here
    whole = state["pooling.hidden.weight"]
    channels = whole.shape[1] // 3
    state["pooling.hidden.weight"] = whole[:, :channels]
    state["pooling.context.weight"] = whole[:, channels:, 0]
    ours.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in state.items()}, strict=True)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("channels", "aggregated"), [(64, 96), (1024, 3072)])
def test_ecapa(channels: int, aggregated: int) -> None:
    torch.manual_seed(0)
    theirs = ECAPA_TDNN(80, lin_neurons=192, channels=[channels] * 4 + [aggregated]).eval()
    encoder = ECAPA(
        in_channels=80,
        channels=channels,
        kernel_sizes=[5, 3, 3, 3],
        dilations=[1, 2, 3, 4],
        res2net_scale=8,
        se_channels=128,
        aggregation_channels=aggregated,
        aggregation_norm=True,
        padding="reflect",
    )
    pooling = AttentiveStatisticsPooling(
        channels=aggregated,
        attention_channels=128,
        global_context=True,
        context_correction=0,
        attention_norm=True,
        variance_floor=1e-12,
    )
    norm, linear = nn.BatchNorm1d(2 * aggregated), nn.Linear(2 * aggregated, 192)
    ours = Embedder(encoder, pooling, norm, linear).eval()
    randomise(theirs)
    load_ecapa(theirs, ours)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert sizes[0] == sizes[1]
    if channels == 1024:
        assert sizes[0] == 20_767_552
    features = torch.randn(3, 80, 120)
    with torch.no_grad():
        expected = theirs(features.transpose(1, 2)).squeeze(1)
        assert relative_error(ours(features), expected) < 1e-5


def test_xvector() -> None:
    torch.manual_seed(0)
    theirs = Xvector(in_channels=24).eval()
    # SpeechBrain adds noise of 1e-5 to 9e-5 to the mean and 1e-5 to the deviation, in evaluation too.
    theirs.blocks[15].eps = 0.0
    encoder = XVector(24, [512, 512, 512, 512, 1500], [5, 3, 3, 1, 1], [1, 2, 3, 1, 1], "reflect", 0.01)
    ours = Embedder(encoder, StatisticsPooling(3000 // 2, 1e-10), nn.Identity(), nn.Linear(3000, 512)).eval()
    randomise(theirs)
    state = {}
    for name, tensor in theirs.state_dict().items():
        _, index, *rest = name.split(".")
        layer, part = divmod(int(index), 3)
        if int(index) == 16:
            state[f"embedding.{rest[-1]}"] = tensor
        else:
            state[f"encoder.layers.{layer}.{('conv', None, 'norm')[part]}.{rest[-1]}"] = tensor
    ours.load_state_dict(state, strict=True)
    features = torch.randn(3, 24, 120)
    with torch.no_grad():
        assert relative_error(ours(features), theirs(features.transpose(1, 2)).squeeze(1)) < 1e-5
