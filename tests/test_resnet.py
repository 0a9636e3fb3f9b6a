"""The residual networks over frequency and time: published sizes, blocks worked by hand, padding, memory format."""

from collections.abc import Callable

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.eres2netv2 import AttentionalFusion, ERes2Block, ERes2NetV2
from spkexp.models.layers2d import ConvNorm, ResidualEncoder
from spkexp.models.pooling import StatisticsPooling
from spkexp.models.res2net import Res2Block, Res2Net
from spkexp.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.model_tools import count, model_config, randomise_norms, relative_error, speaker_model

SMALL = {
    "basic": lambda: ResNet(20, 8, "basic", [1, 2, 1, 1]),
    "bottleneck": lambda: ResNet(20, 4, "bottleneck", [1, 1, 2, 1]),
    "res2net": lambda: Res2Net(20, 8, 32, 3, 2, [1, 1, 1, 2]),
    "eres2netv2": lambda: ERes2NetV2(20, 8, 40, 3, 2, [1, 1, 2, 1]),
}


def small(name: str) -> ResidualEncoder:
    torch.manual_seed(0)
    encoder = SMALL[name]()
    randomise_norms(encoder)
    return encoder


def embedder(name: str) -> nn.ModuleList:
    """Encoder, pooling and linear layer of conf/model/NAME.yaml, without memory."""
    cfg = model_config(name)
    with torch.device("meta"):
        encoder = instantiate(cfg.encoder, in_channels=cfg.features.num_mels)
        pooling = StatisticsPooling(encoder.out_channels, cfg.pooling.variance_floor)
        return nn.ModuleList([encoder, pooling, nn.Linear(pooling.out_channels, cfg.embedding_size)]).eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the classes of WeSpeaker and, for ERes2NetV2, 3D-Speaker
        ("resnet18", 4_105_440),
        ("resnet34", 6_634_336),
        ("resnet101", 15_892_448),
        ("resnet152", 19_814_880),
        ("resnet221", 23_792_224),
        ("resnet293", 28_626_016),
        ("res2net", 4_689_024),
        ("eres2netv2", 17_859_632),
    ],
)
def test_parameters(name: str, parameters: int) -> None:
    assert count(embedder(name)) == parameters


@pytest.mark.parametrize(
    ("name", "frames", "published"),
    [  # in units of 10^9, from WeSpeaker's table of VoxCeleb results and 3D-Speaker's ERes2NetV2.py
        ("resnet34", 200, 4.55),
        ("resnet221", 200, 21.29),
        ("resnet293", 200, 28.10),
        ("res2net", 200, 1.77),
        ("eres2netv2", 300, 12.69),
    ],
)
def test_multiplications(name: str, frames: int, published: float) -> None:
    encoder, pooling, embedding = embedder(name)
    normalised = 0

    def add_outputs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal normalised
        normalised += output.numel()

    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(add_outputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embedding(pooling(*encoder(torch.empty(1, 80, frames, device="meta"), None)))
    # The published figures are thop's, which counts four operations for every output of a batch normalisation.
    assert (counter.get_total_flops() / 2 + 4 * normalised) / 1e9 == pytest.approx(published, abs=0.011)


@pytest.mark.parametrize("depth", [18, 34, 101, 152, 221, 293])
def test_a_resnet_is_named_after_its_layers(depth: int) -> None:
    encoder = embedder(f"resnet{depth}")[0]
    layers = [name for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)]
    assert sum("shortcut" not in name for name in layers) + 1 == depth  # and the linear layer


def make_identity(block: nn.Module) -> None:
    """Every convolution passes its channels on, where there are as many out as in; batch normalisation does nothing."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12


def frames_of(*channels: float) -> Tensor:
    """(1, C, 3, 4), each channel constant; a 3x3 identity kernel keeps it so."""
    return torch.tensor(channels).view(1, -1, 1, 1).expand(1, -1, 3, 4).clone()


@pytest.mark.parametrize("block", [BasicBlock(2, 2, 2, 1), Bottleneck(2, 2, 2, 1)])
def test_resnet_block(block: nn.Module) -> None:
    make_identity(block.eval())
    # relu(relu(x) + x)
    torch.testing.assert_close(block(frames_of(3.0, -2.0), None)[0], frames_of(6.0, 0.0))


def test_res2_block_adds_the_group_before_and_passes_the_last() -> None:
    block = Res2Block(64, 3, 3, 1, 3, 1).eval()
    make_identity(block)
    # Groups of one channel: y_1 = 1, y_2 = 2 + 1, y_3 = x_3 = 4, and the skip.
    torch.testing.assert_close(block(frames_of(1.0, 2.0, 4.0), None)[0], frames_of(2.0, 5.0, 8.0))
    # Each rectifier stops at 20: y_2 = min(15 + 15, 20), out_1 = min(15 + 15, 20); -3 becomes 0.
    torch.testing.assert_close(block(frames_of(15.0, 15.0, -3.0), None)[0], frames_of(20.0, 20.0, 0.0))


def test_eres2_block_adds_or_fuses_the_group_before() -> None:
    block = ERes2Block(64, 3, False, 3, 1, 3, 1).eval()
    make_identity(block)
    # y_1 = 1, y_2 = 2 + 1, y_3 = 4 + 3, and the skip.
    torch.testing.assert_close(block(frames_of(1.0, 2.0, 4.0), None)[0], frames_of(2.0, 5.0, 11.0))
    block = ERes2Block(64, 2, True, 8, 4, 8, 1).eval()
    make_identity(block)
    excite = block.get_submodule("fusions.0.excite")
    nn.init.zeros_(excite.weight)
    x = frames_of(*[1.0] * 4, *[3.0] * 4)
    # The attention tanh(b) is 1/2 everywhere: y_2 = 3/2 y_1 + 1/2 x_2.
    nn.init.constant_(excite.bias, torch.atanh(torch.tensor(0.5)).item())
    torch.testing.assert_close(block(x, None)[0], frames_of(*[2.0] * 4, *[6.0] * 4))


def test_fusion_by_hand() -> None:
    fusion = AttentionalFusion(4).double().eval()
    for norm in (fusion.squeeze_norm, fusion.excite_norm):
        norm.eps = 1e-12
    nn.init.constant_(fusion.squeeze.weight, 0.25)
    nn.init.constant_(fusion.excite.weight, 0.5)
    for convolution in (fusion.squeeze, fusion.excite):
        nn.init.zeros_(convolution.bias)
    x, y = frames_of(1.0, 1.0, 1.0, 1.0).double(), frames_of(0.0, 0.0, 0.0, -2.0).double()
    # z = (4 · 1 - 2) / 4 = 1/2, u = tanh(silu(z) / 2)
    hidden = torch.tensor(0.5, dtype=torch.float64)
    u = torch.tanh(hidden * torch.sigmoid(hidden) / 2)
    torch.testing.assert_close(fusion(x, y, None), x * (1 + u) + y * (1 - u))


def test_batch_normalisation_sees_valid_frames_of_the_output_alone() -> None:
    layer = ConvNorm(1, 1, 1, 2).train()
    nn.init.ones_(layer.conv.weight)
    x = torch.full((2, 1, 3, 7), 1e3)
    x[0] = torch.arange(7.0)  # of stride 2: 0, 2, 4, 6
    x[1, :, :, :3] = torch.tensor([1.0, 9.0, 5.0])  # 1, 5
    y, lengths = layer(x, torch.tensor([7, 3]))
    assert lengths.tolist() == [4, 2]
    assert y.shape == (2, 1, 2, 4)
    torch.testing.assert_close(layer.norm.running_mean, torch.tensor([0.1 * 3.0]))  # momentum 0.1, mean 18 / 6


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_what_lies_behind_the_lengths_has_no_influence(name: str, training: bool) -> None:
    lengths = torch.tensor([37, 22, 9, 1])
    features = torch.randn(4, 20, 37)
    outputs = []
    for filler in (0.0, 1e3):
        padded = features.clone()
        for row, length in enumerate(lengths.tolist()):
            padded[row, :, length:] = filler
        encoder = small(name).train(training)
        hidden, strided = encoder(padded.requires_grad_(), lengths)
        assert strided.tolist() == [5, 3, 2, 1]  # halved three times, rounded up
        assert hidden.shape == (4, encoder.out_channels, 5)
        outputs.append(torch.cat([hidden[row, :, :length] for row, length in enumerate(strided.tolist())], dim=1))
        gradient = torch.autograd.grad(outputs[-1].square().sum(), padded)[0]
        assert all(not gradient[row, :, length:].any() for row, length in enumerate(lengths.tolist()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    if not training:
        for row, length in enumerate(lengths.tolist()):
            alone, none = encoder(features[row : row + 1, :, :length], None)
            assert none is None
            assert relative_error(hidden[row : row + 1, :, : alone.shape[2]], alone) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_frequencies_of_a_channel_stay_together(name: str) -> None:
    encoder = small(name).eval()
    last: dict[str, Tensor] = {}
    encoder.stages[-1].register_forward_hook(lambda module, inputs, output: last.update(hidden=output[0]))
    hidden, _ = encoder(torch.randn(2, 20, 16), None)
    channels, frequencies = last["hidden"].shape[1:3]
    assert frequencies == 3  # 20 halved three times, rounded up
    assert hidden.shape == (2, channels * frequencies, 2)
    if name != "eres2netv2":  # whose fusion comes behind the stages
        torch.testing.assert_close(hidden[:, 3 * 5 + 1], last["hidden"][:, 5, 1])


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_from_end_to_end(name: str) -> None:
    """No block falls back to the other memory format, which would copy, and the values are the same."""
    encoder = small(name).eval()
    features = torch.randn(2, 20, 37)
    expected, _ = encoder(features, None)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other_format = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> None:
        if not output[0].is_contiguous(memory_format=torch.channels_last):
            other_format.append(module)

    for module in encoder.modules():
        if isinstance(module, ConvNorm):
            module.register_forward_hook(look)
    hidden, _ = encoder(features, None)
    assert not other_format
    assert relative_error(hidden, expected) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(80, 32, "basic", []), "num_blocks"),
        (lambda: ResNet(80, 32, "basic", [3, 0]), "num_blocks"),
        (lambda: Res2Net(80, 32, 32, 1, 2, [1, 1]), "scale=1"),
        (lambda: Res2Net(80, 8, 4, 2, 2, [1, 1]), "base_width=4"),
        (lambda: ERes2NetV2(80, 32, 26, 1, 2, [1, 1]), "scale=1"),
        (lambda: ERes2NetV2(80, 32, 26, 2, 2, [1]), "num_blocks"),
        (lambda: ERes2NetV2(80, 4, 26, 2, 2, [1, 1]), "raise channels"),
    ],
)
def test_impossible_sizes(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("channels", [4, 12, 16])
def test_the_layout_in_memory_is_one_that_torch_trains_in(channels: int) -> None:
    """torch 2.11 crashes, or worse, in the backward pass of narrow convolutions with their channels innermost."""
    encoder = speaker_model("resnet18", channels=channels).encoder.train()
    layouts = []
    encoder.stages[0].register_forward_hook(
        lambda module, args, output: layouts.append(output[0].is_contiguous(memory_format=torch.channels_last))
    )
    for _ in range(3):
        hidden, _ = encoder(torch.randn(4, 80, 78), None)
        hidden.square().mean().backward()
    assert layouts == [channels == 16] * 3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
