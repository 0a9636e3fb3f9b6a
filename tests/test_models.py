"""Encoders, pooling and SpeakerModel: published sizes, masks, short inputs, precision."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spkexp.models.ecapa import ECAPA
from spkexp.models.layers import TDNN, frame_mean, pad_frames
from spkexp.models.pooling import AttentiveStatisticsPooling, StatisticsPooling
from spkexp.models.xvector import XVector
from tests.model_tools import count, randomise_norms, relative_error, speaker_model


def small_encoder(name: str, padding: str) -> nn.Module:
    """With batch-normalisation statistics that are not those of a fresh layer."""
    torch.manual_seed(0)
    encoder: nn.Module
    if name == "ecapa":
        encoder = ECAPA(12, 16, [5, 3, 3], [1, 2, 4], 4, 8, 20, True, padding)  # type: ignore[arg-type]
    else:
        encoder = XVector(12, [16, 16, 20], [5, 3, 3], [1, 2, 3], padding, 0.01)  # type: ignore[arg-type]
    randomise_norms(encoder)
    return encoder


def attentive(channels: int, correction: int = 1, norm: bool = False) -> AttentiveStatisticsPooling:
    torch.manual_seed(0)
    return AttentiveStatisticsPooling(
        channels=channels,
        attention_channels=6,
        global_context=True,
        context_correction=correction,
        attention_norm=norm,
        variance_floor=1e-7,
    )


def ecapa_size(mels: int, c: int, se: int, aggregated: int, attention: int, embedding: int) -> int:
    """Parameters of ECAPA with scale 8 and three blocks, counted from the paper's figure 2."""

    def convolution(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel + outputs

    def norm(channels: int) -> int:
        return 2 * channels

    width = c // 8
    block = 2 * (convolution(c, c, 1) + norm(c)) + 7 * (convolution(width, width, 3) + norm(width))
    block += convolution(c, se, 1) + convolution(se, c, 1)
    pooled = convolution(3 * aggregated, attention, 1) + convolution(attention, aggregated, 1) + norm(2 * aggregated)
    first = convolution(mels, c, 5) + norm(c)
    return first + 3 * block + convolution(3 * c, aggregated, 1) + pooled + convolution(2 * aggregated, embedding, 1)


@pytest.mark.parametrize(
    ("name", "expected", "by_formula"),
    [
        ("ecapa", 14_657_088, ecapa_size(80, 1024, 128, 1536, 128, 192)),  # published: 14.7 M; WeSpeaker 14.65 M
        ("ecapa_512", 6_190_720, ecapa_size(80, 512, 128, 1536, 128, 192)),  # published: 6.2 M; WeSpeaker 6.19 M
        ("ecapa_small", 614_832, ecapa_size(80, 128, 64, 384, 64, 192)),
        ("xvector", 4_211_604, None),
    ],
)
def test_number_of_parameters(name: str, expected: int, by_formula: int | None) -> None:
    if by_formula is None:
        sizes = [(24, 512, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (512, 1500, 1)]
        by_formula = sum(a * b * k + 3 * b for a, b, k in sizes) + 3000 * 512 + 512
    assert count(speaker_model(name)) == by_formula == expected


def test_multiply_accumulates_are_the_published_ones() -> None:
    """2.65 G for ECAPA-1024 at 2 s (WeSpeaker's README), 200 frames of the network without its features."""
    model = speaker_model("ecapa").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.embed(torch.zeros(1, 80, 200), torch.tensor([200]))
    # Theirs computes the attention's view of the whole utterance, 2 · 1536 → 128, once a frame; ours once.
    saved = 199 * 2 * 1536 * 128
    assert round((counter.get_total_flops() / 2 + saved) / 1e9, 2) == 2.65


def test_reflection_at_each_rows_own_end() -> None:
    x = torch.tensor([[1.0, 2, 3, 4, 5], [1, 2, 3, 9, 9], [1, 2, 9, 9, 9], [7, 9, 9, 9, 9]]).unsqueeze(1)
    padded = pad_frames(x, torch.tensor([5, 3, 2, 1]), 2, "reflect").squeeze(1)
    assert padded[0].tolist() == [3, 2, 1, 2, 3, 4, 5, 4, 3]
    assert padded[1, :7].tolist() == [3, 2, 1, 2, 3, 2, 1]
    assert padded[2, :6].tolist() == [1, 2, 1, 2, 1, 2]  # back and forth
    assert padded[3, :5].tolist() == [7, 7, 7, 7, 7]
    assert pad_frames(x[3:, :, :1], None, 2, "reflect").flatten().tolist() == [7, 7, 7, 7, 7]


def test_zeros_at_each_rows_own_end() -> None:
    x = torch.tensor([[[1.0, 2, 3]], [[4, 9, float("nan")]]])
    padded = pad_frames(x, torch.tensor([3, 1]), 1, "zeros").squeeze(1)
    assert padded.tolist() == [[0, 1, 2, 3, 0], [0, 4, 0, 0, 0]]


def test_mean_over_valid_frames() -> None:
    x = torch.tensor([[[1.0, 2, 6]], [[4, 8, float("inf")]]])
    assert frame_mean(x, torch.tensor([3, 2])).flatten().tolist() == [3, 6]
    assert frame_mean(x[:1], None).flatten().tolist() == [3]


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("name", ["ecapa", "xvector"])
def test_encoder_ignores_padding(name: str, padding: str) -> None:
    encoder = small_encoder(name, padding).eval()
    lengths = torch.tensor([30, 17, 5, 2, 1])
    features = torch.randn(5, 12, 30) * 3
    for row, length in enumerate(lengths):
        features[row, :, length:] = 1e3  # garbage
    hidden, kept = encoder(features, lengths)
    assert kept is lengths
    for row, length in enumerate(lengths.tolist()):
        alone, _ = encoder(features[row : row + 1, :, :length], None)
        assert relative_error(hidden[row, :, :length], alone[0]) < 1e-5


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("name", ["ecapa", "xvector"])
def test_training_statistics_ignore_padding(name: str, padding: str) -> None:
    lengths = torch.tensor([20, 9])
    features = torch.randn(2, 12, 20)
    longer = torch.cat([features, torch.full((2, 12, 7), 50.0)], dim=2)
    results = []
    for batch in (features, longer):
        encoder = small_encoder(name, padding).train()
        hidden, _ = encoder(batch, lengths)
        norms = [m.running_mean for m in encoder.modules() if isinstance(m, nn.BatchNorm1d)]
        results.append((hidden[1, :, :9], torch.cat(norms)))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("name", ["ecapa_small", "xvector"])
def test_embedding_alone_equals_embedding_in_a_batch(name: str, padding: str) -> None:
    model = speaker_model(name, padding=padding).eval()
    randomise_norms(model)
    lengths = torch.tensor([16000, 9000, 1600, 400, 150])
    waveform = torch.randn(5, 16000) * 0.1
    with torch.no_grad():
        together = model(waveform, lengths)
        assert torch.equal(together, model(waveform, lengths))
        for row, length in enumerate(lengths.tolist()):
            alone = model(waveform[row : row + 1, :length], torch.tensor([length]))
            assert relative_error(together[row], alone[0]) < 1e-5


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("lengths", [None, [1, 1]])
@pytest.mark.parametrize("name", ["ecapa", "xvector"])
def test_one_frame_has_finite_gradients(name: str, padding: str, lengths: list[int] | None) -> None:
    encoder = small_encoder(name, padding).train()
    features = torch.randn(2, 12, 1, requires_grad=True)
    sizes = None if lengths is None else torch.tensor(lengths)
    for pooling in (StatisticsPooling(20, 1e-10), attentive(20)):
        pooled = pooling(*encoder(features, sizes))
        assert pooled.isfinite().all()
        pooled.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
        assert features.grad is not None
        assert features.grad.isfinite().all()


@pytest.mark.parametrize("name", ["ecapa_small", "xvector"])
def test_bf16_autocast_is_close_to_float32(name: str) -> None:
    model = speaker_model(name).eval()
    waveform, lengths = torch.randn(4, 8000) * 0.1, torch.tensor([8000, 8000, 8000, 5000])
    exact = model(waveform, lengths)
    gradients = torch.autograd.grad(exact.square().sum(), model.embedding.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = model.extract_features(waveform, lengths)
        assert features.dtype == torch.float32
        assert torch.equal(features, model.extract_features(waveform, lengths)[0])
        rough = model(waveform, lengths)
    rough_gradients = torch.autograd.grad(rough.float().square().sum(), model.embedding.weight)[0]
    assert relative_error(rough.float(), exact) < 0.03  # bfloat16 has 8 bits
    assert relative_error(rough_gradients, gradients) < 0.06


def test_statistics_by_hand() -> None:
    pooling = StatisticsPooling(channels=2, variance_floor=1e-10)
    hidden = torch.tensor([[[1.0, 2, 6], [5, 5, 5]], [[1, 3, 99], [4, 10, 99]]])
    # means 3, 5 and 2, 7; deviations sqrt(14/2), floor, sqrt(2/1), sqrt(18/1)
    expected = torch.tensor([[3, 5, 7**0.5, 1e-5], [2, 7, 2**0.5, 18**0.5]])
    torch.testing.assert_close(pooling(hidden, torch.tensor([3, 2])), expected)
    torch.testing.assert_close(pooling(hidden[:1], None), expected[:1])
    # A large mean must not cancel the variance.
    torch.testing.assert_close(pooling(hidden[:1] + 4096, None)[:, 2:], expected[:1, 2:], atol=1e-3, rtol=0)


def slow_attentive(pooling: AttentiveStatisticsPooling, h: Tensor, correction: int) -> Tensor:
    """One utterance (C, T), float64, frame by frame: equations 1 to 4 of Desplanques et al. 2020."""
    w = pooling.hidden.weight[:, :, 0].double()
    v = pooling.scores.weight[:, :, 0].double()
    mean = h.mean(dim=1)
    context = torch.cat([mean, ((h - mean[:, None]) ** 2).sum(dim=1).div(h.shape[1] - correction).sqrt()])
    assert pooling.context is not None
    scores = []
    for frame in h.T:
        inner = w @ frame + pooling.context.weight.double() @ context + pooling.hidden.bias.double()
        scores.append(v @ inner.tanh() + pooling.scores.bias.double())
    weights = torch.stack(scores, dim=1).exp()
    weights = weights / weights.sum(dim=1, keepdim=True)
    centre = (weights * h).sum(dim=1)
    return torch.cat([centre, ((weights * h**2).sum(dim=1) - centre**2).sqrt()])


@pytest.mark.parametrize("correction", [0, 1])
def test_attentive_statistics_against_a_slow_reference(correction: int) -> None:
    pooling = attentive(5, correction)
    hidden, lengths = torch.randn(3, 5, 9), torch.tensor([9, 4, 2])
    pooled = pooling(hidden, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = slow_attentive(pooling, hidden[row, :, :length].double(), correction)
        torch.testing.assert_close(pooled[row].double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooling(hidden[:1], None), pooled[:1])


@pytest.mark.parametrize("norm", [False, True])
def test_attention_sums_to_one_over_valid_frames(norm: bool) -> None:
    lengths = torch.tensor([9, 4, 1])
    weights = attentive(5, norm=norm).eval().attention(torch.randn(3, 5, 9) * 5, lengths)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 5))
    for row, length in enumerate(lengths.tolist()):
        assert (weights[row, :, length:] == 0).all()


@pytest.mark.parametrize("lengths", [None, [6, 3]])
def test_pooling_gradients(lengths: list[int] | None) -> None:
    hidden = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    sizes = None if lengths is None else torch.tensor(lengths)
    for pooling in (StatisticsPooling(3, 1e-10), attentive(3), attentive(3, norm=True).eval()):
        module = pooling.double()
        assert torch.autograd.gradcheck(lambda h, m=module: m(h, sizes), hidden)


@pytest.mark.parametrize("lengths", [None, [4, 2]])
def test_constant_input_has_a_finite_gradient(lengths: list[int] | None) -> None:
    sizes = None if lengths is None else torch.tensor(lengths)
    for pooling in (StatisticsPooling(3, 1e-10), attentive(3)):
        hidden = torch.full((2, 3, 4), 2.5, requires_grad=True)
        pooling(hidden, sizes).sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.isfinite().all()


def test_exported_graph_serves_other_sizes_and_padded_batches() -> None:
    model = speaker_model("ecapa_small").eval()
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples", min=560)  # two frames
    waveform, lengths = torch.randn(3, 8000) * 0.1, torch.tensor([8000, 5000, 300])
    sizes = {"waveform": {0: batch, 1: samples}, "lengths": {0: batch}}
    exported = torch.export.export(model, (waveform, lengths), dynamic_shapes=sizes).module()
    with torch.no_grad():
        for size in (12000, 700):
            waveform, lengths = torch.randn(2, size) * 0.1, torch.tensor([size, 600])
            assert relative_error(exported(waveform, lengths), model(waveform, lengths)) < 1e-5


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="dilations has 2"):
        XVector(8, [4, 4, 4], [3, 3, 3], [1, 1], "zeros", 0.0)
    with pytest.raises(ValueError, match=r"res2net_scale=8 .* divide channels=12"):
        ECAPA(8, 12, [5, 3], [1, 2], 8, 4, 8, False, "zeros")
    with pytest.raises(ValueError, match="kernel_size=4: an odd number"):
        TDNN(2, 2, 4, 1, "zeros", 0.0, norm=False)
    model = speaker_model("ecapa_small")
    with pytest.raises(ValueError, match="lengths from 900 to 1200 samples in a batch of 1000"):
        model(torch.zeros(2, 1000), torch.tensor([900, 1200]))
    with pytest.raises(TypeError, match="number of samples"):
        model(torch.zeros(2, 1000), torch.tensor([1.0, 0.5]))
