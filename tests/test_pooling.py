"""The poolings beyond those of tests/test_models.py, each against a slow reference in float64, frame by frame."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from spkexp.models.pooling import (
    AttentivePooling,
    MeanPooling,
    MultiHeadAttentivePooling,
    RectifiedAttentiveStatisticsPooling,
    StatisticsPooling,
)
from tests.model_tools import randomise_norms

FLOOR = 1e-6
LENGTHS = torch.tensor([9, 4, 2])


def attentive(statistics: Literal["mean", "mean_and_deviation"]) -> AttentivePooling:
    return sharpened(AttentivePooling(6, 5, statistics, FLOOR))


def multi_head(scores: Literal["frame", "channel"], num_layers: int = 2) -> MultiHeadAttentivePooling:
    return sharpened(MultiHeadAttentivePooling(6, 3, 2, num_layers, 5, scores, FLOOR))


def rectified(context: bool) -> RectifiedAttentiveStatisticsPooling:
    return sharpened(RectifiedAttentiveStatisticsPooling(6, 5, context, FLOOR))


def sharpened(pooling: nn.Module) -> nn.Module:
    """Weights large enough that attention is far from the plain mean."""
    torch.manual_seed(0)
    for parameter in pooling.parameters():
        nn.init.normal_(parameter, 0.0, 0.7)
    randomise_norms(pooling)
    return pooling.eval()


POOLINGS = {
    "mean": lambda: MeanPooling(6),
    "statistics": lambda: StatisticsPooling(6, FLOOR),
    "attentive mean": lambda: attentive("mean"),
    "attentive statistics": lambda: attentive("mean_and_deviation"),
    "multi-head, a score a frame": lambda: multi_head("frame"),
    "multi-head, a score a channel": lambda: multi_head("channel", 3),
    "multi-head, linear": lambda: multi_head("channel", 1),
    "rectified": lambda: rectified(False),
    "rectified with context": lambda: rectified(True),
}
every_pooling = pytest.mark.parametrize("name", POOLINGS)


def weighted(frames: list[Tensor], scores: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the frames under the softmax of their scores, one number or one a channel."""
    weights = [score.exp() for score in scores]
    total = torch.stack(weights).sum(dim=0)
    mean = torch.stack([w / total * h for w, h in zip(weights, frames, strict=True)]).sum(dim=0)
    squares = torch.stack([w / total * (h - mean) ** 2 for w, h in zip(weights, frames, strict=True)]).sum(dim=0)
    return mean, squares.clamp(min=FLOOR).sqrt()


def slow(pooling: nn.Module, hidden: Tensor) -> Tensor:
    """One utterance (C, T), float64."""
    state = {name: tensor.double().squeeze(-1) for name, tensor in pooling.state_dict().items()}
    frames = list(hidden.T)
    match pooling:
        case MeanPooling():
            return sum(frames[1:], frames[0]) / len(frames)
        case StatisticsPooling():
            mean = sum(frames[1:], frames[0]) / len(frames)
            variance = sum((h - mean) ** 2 for h in frames) / max(len(frames) - 1, 1)
            return torch.cat([mean, variance.clamp(min=FLOOR).sqrt()])
        case AttentivePooling():
            inner = [(state["hidden.weight"] @ h + state["hidden.bias"]).tanh() for h in frames]
            mean, deviation = weighted(frames, [state["scores.weight"].view(-1) @ a for a in inner])
            return mean if pooling.statistics == "mean" else torch.cat([mean, deviation])
        case RectifiedAttentiveStatisticsPooling():
            scores = []
            mean = hidden.mean(dim=1)
            variance = ((hidden - mean[:, None]) ** 2).sum(dim=1) / max(len(frames) - 1, 1)
            for h in frames:
                a = state["hidden.weight"] @ h + state["hidden.bias"]
                if "context.weight" in pooling.state_dict():
                    context = torch.cat([mean, variance.clamp(min=FLOOR).sqrt()])
                    a = a + pooling.state_dict()["context.weight"].double() @ context
                scale = state["norm.weight"] / (state["norm.running_var"] + 1e-5).sqrt()
                a = (a.clamp(min=0) - state["norm.running_mean"]) * scale + state["norm.bias"]
                scores.append(state["scores.weight"] @ a + state["scores.bias"])
            return torch.cat(weighted(frames, scores))
        case MultiHeadAttentivePooling():
            results = []
            for query in range(3):
                for head in range(2):
                    chunks = [h.chunk(2)[head] for h in frames]
                    scores = chunks
                    for index in range(len(pooling.layers)):
                        # Of six networks those of a head lie side by side.
                        weight = state[f"layers.{index}.weight"].chunk(6)[3 * head + query]
                        bias = state[f"layers.{index}.bias"].chunk(6)[3 * head + query]
                        scores = [weight @ (a if index == 0 else a.tanh()) + bias for a in scores]
                    results += weighted(chunks, scores)
            return torch.cat(results)
    raise TypeError(pooling)


@every_pooling
def test_against_a_slow_reference_whatever_lies_behind_a_row(name: str) -> None:
    pooling = POOLINGS[name]()
    hidden = torch.randn(3, 6, 9)
    garbage = hidden.clone()
    for row, length in enumerate(LENGTHS.tolist()):
        garbage[row, :, length:] = 1e3
    pooled = pooling(garbage, LENGTHS)
    assert pooled.shape == (3, pooling.out_channels)
    for row, length in enumerate(LENGTHS.tolist()):
        expected = slow(pooling, hidden[row, :, :length].double())
        torch.testing.assert_close(pooled[row].double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooling(hidden[:1], None), pooled[:1], atol=1e-6, rtol=1e-5)


@every_pooling
@pytest.mark.parametrize("lengths", [None, [6, 3]])
def test_gradients(name: str, lengths: list[int] | None) -> None:
    pooling = POOLINGS[name]().double()
    hidden = torch.randn(2, 6, 6, dtype=torch.float64, requires_grad=True)
    sizes = None if lengths is None else torch.tensor(lengths)
    assert torch.autograd.gradcheck(lambda h: pooling(h, sizes), hidden)


@every_pooling
@pytest.mark.parametrize("lengths", [None, [4, 2], [1, 1]])
def test_a_constant_or_one_frame_is_its_own_mean_and_has_a_finite_gradient(
    name: str, lengths: list[int] | None
) -> None:
    pooling = POOLINGS[name]()
    value = torch.arange(1.0, 7.0)
    hidden = value[None, :, None].repeat(2, 1, 4).requires_grad_()
    pooled = pooling(hidden, None if lengths is None else torch.tensor(lengths))
    pooled.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    deviation = torch.full((6,), math.sqrt(FLOOR))
    expected = value if pooling.out_channels == 6 else torch.cat([value, deviation])
    if isinstance(pooling, MultiHeadAttentivePooling):
        expected = torch.cat([value[:3], deviation[:3], value[3:], deviation[3:]]).repeat(3)
    torch.testing.assert_close(pooled.detach(), expected.expand(2, -1), atol=1e-5, rtol=1e-5)


@every_pooling
def test_a_large_common_offset_does_not_cancel(name: str) -> None:
    """Far from zero float32 keeps 2^-11 of a frame at 4096; deviations stay right to that."""
    pooling = POOLINGS[name]()
    hidden = torch.randn(2, 6, 9) + 4096
    if isinstance(pooling, AttentivePooling | MultiHeadAttentivePooling | RectifiedAttentiveStatisticsPooling):
        for parameter in pooling.parameters():
            nn.init.zeros_(parameter)  # uniform weights, for the offset would saturate the scores
    sizes = torch.tensor([9, 5])
    for row, (pooled, length) in enumerate(zip(pooling(hidden, sizes), sizes.tolist(), strict=True)):
        expected = slow(pooling, hidden[row, :, :length].double())
        torch.testing.assert_close(pooled.double(), expected, atol=2e-3, rtol=0)


@every_pooling
def test_statistics_are_float32_under_autocast(name: str) -> None:
    pooling = POOLINGS[name]()
    hidden = torch.randn(2, 6, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooling(hidden.bfloat16(), torch.tensor([9, 5]))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pooling(hidden, torch.tensor([9, 5])), atol=0.2, rtol=0.1)


def test_attention_follows_the_scores() -> None:
    """One channel is the score of its head's frames: softmax of (0, ln 2, ln 5) is (1, 2, 5) / 8."""
    pooling = MultiHeadAttentivePooling(4, 1, 2, 1, 1, "frame", FLOOR)
    with torch.no_grad():
        pooling.layers[0].weight.zero_()
        pooling.layers[0].bias.zero_()
        pooling.layers[0].weight[1, 0] = 1.0  # of the second head, its first channel
    hidden = torch.zeros(1, 4, 3)
    hidden[0, 2] = torch.tensor([1.0, 2.0, 5.0]).log()
    hidden[0, 1] = hidden[0, 3] = torch.tensor([8.0, 16.0, 0.0])
    weights = pooling.attention(hidden, None)[0, :, 0, 0]
    torch.testing.assert_close(weights, torch.tensor([[1 / 3] * 3, [1 / 8, 2 / 8, 5 / 8]]))
    means = pooling(hidden, None)[0].view(2, 2, 2)[:, 0]  # head, statistic, channel
    torch.testing.assert_close(means[:, 1], torch.tensor([8.0, 5.0]))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads=4 must divide the channels=6"):
        MultiHeadAttentivePooling(6, 1, 4, 1, 8, "frame", FLOOR)
