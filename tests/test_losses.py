"""Heads against formulas written out in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spkexp.losses.margin import AAMSoftmax, AMSoftmax
from spkexp.losses.softmax import Softmax

CLASSES, SIZE, BATCH = 7, 5, 6


def margin_head(kind: type, **changes: object) -> AAMSoftmax | AMSoftmax:
    settings = {"scale": 30.0, "margin": 0.2, "ramp_epochs": [0, 0], "initial_margin": 0.0, "label_smoothing": 0.0}
    return kind(**settings | changes, num_classes=CLASSES, embedding_size=SIZE, steps_per_epoch=10)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, SIZE, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)


def reference(kind: str, embedding: np.ndarray, weight: np.ndarray, label: np.ndarray, s: float, m: float) -> float:
    """The papers' formula, one angle at a time."""
    total = 0.0
    for x, y in zip(embedding, label, strict=True):
        angles = [
            math.acos(max(-1.0, min(1.0, float(w @ x) / (np.linalg.norm(w) * np.linalg.norm(x))))) for w in weight
        ]
        logits = [s * math.cos(angle) for angle in angles]
        if kind == "am":
            logits[y] = s * (math.cos(angles[y]) - m)
        elif angles[y] < math.pi - m:
            logits[y] = s * math.cos(angles[y] + m)
        else:
            logits[y] = s * (math.cos(angles[y]) - m * math.sin(m))
        top = max(logits)
        total += top + math.log(sum(math.exp(z - top) for z in logits)) - logits[y]
    return total / len(label)


@pytest.mark.parametrize(("kind", "head_class"), [("am", AMSoftmax), ("aam", AAMSoftmax)])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_margin_heads_match_the_papers(kind: str, head_class: type, margin: float) -> None:
    embedding, label = batch()
    head = margin_head(head_class, margin=margin)
    expected = reference(
        kind, embedding.double().numpy(), head.weight.detach().double().numpy(), label.numpy(), 30.0, margin
    )
    assert head(embedding, label, step=0).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head_class", [AMSoftmax, AAMSoftmax])
def test_gradient(head_class: type) -> None:
    head = margin_head(head_class).double()
    embedding, label = batch()
    # The head works in float32, so a difference quotient in float64 cannot check it; the formula can, in float64.
    with torch.no_grad():
        weight = head.weight.clone()

    def loss(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        cosine = F.normalize(x) @ F.normalize(w).T
        shifted = head.shift(cosine.gather(1, label[:, None]), head.margin)
        return F.cross_entropy(30.0 * cosine.scatter(1, label[:, None], shifted), label)

    inputs = (embedding.double().requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    single = embedding.clone().requires_grad_()
    head.float()(single, label, step=0).loss.backward()
    expected = torch.autograd.grad(loss(*inputs), inputs[0])[0]
    torch.testing.assert_close(single.grad, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head_class", [AMSoftmax, AAMSoftmax])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_where_the_cosine_is_one(head_class: type, dtype: torch.dtype, sign: float) -> None:
    head = margin_head(head_class)
    label = torch.arange(BATCH) % CLASSES
    embedding = (sign * 3.0 * head.weight.detach()[label]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = head(embedding, label, step=0)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for tensor in (output.loss, embedding.grad, head.weight.grad):
        assert torch.isfinite(tensor).all()


def test_zero_embedding_is_finite() -> None:
    head = margin_head(AAMSoftmax)
    embedding = torch.zeros(BATCH, SIZE, requires_grad=True)
    head(embedding, torch.zeros(BATCH, dtype=torch.long), step=0).loss.backward()
    assert torch.isfinite(embedding.grad).all()


def test_aam_falls_monotonically_with_the_angle() -> None:
    cosine = torch.cos(torch.linspace(0, math.pi, 2001, dtype=torch.float64))
    shifted = margin_head(AAMSoftmax).shift(cosine, 0.5)
    # At θ = π - m the formula changes; it may jump there, but never upwards.
    assert (shifted.diff() < 1e-3).all()


def test_margin_grows_between_its_epochs() -> None:
    head = margin_head(AAMSoftmax, margin=0.4, initial_margin=0.1, ramp_epochs=[2, 4])
    assert [head.margin_at(step) for step in (0, 20)] == [0.1, 0.1]
    assert [head.margin_at(step) for step in (40, 1000)] == [0.4, 0.4]
    # Half way (x = 1/2): 0.4 - 0.3 · 10^-1.5 · 0.5
    assert head.margin_at(30) == pytest.approx(0.4 - 0.3 * 0.0316227766 * 0.5, abs=1e-9)
    ramp = [head.margin_at(step) for step in range(20, 41)]
    assert ramp == sorted(ramp)
    embedding, label = batch()
    assert head(embedding, label, step=0).loss < head(embedding, label, step=100).loss


def test_scores_carry_no_margin() -> None:
    embedding, label = batch()
    head = margin_head(AAMSoftmax, margin=0.5)
    expected = F.normalize(embedding) @ F.normalize(head.weight).T
    torch.testing.assert_close(head(embedding, label, step=0).scores, expected.detach())


def softmax(weights: str, counts: list[int], smoothing: float = 0.0) -> Softmax:
    return Softmax(
        class_weights=weights,
        label_smoothing=smoothing,
        num_classes=CLASSES,
        embedding_size=SIZE,
        class_counts=torch.tensor(counts),
    )


def test_softmax_by_hand() -> None:
    head = softmax("none", [1] * CLASSES, smoothing=0.1)
    embedding, label = batch()
    with torch.no_grad():
        logits = (embedding.double() @ head.linear.weight.double().T + head.linear.bias.double()).numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(BATCH)
    expected = -(0.9 * log_probabilities[rows, label] + 0.1 * log_probabilities.mean(axis=1)).mean()
    assert head(embedding, label, step=0).loss.item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_are_inverse_frequencies() -> None:
    counts = [10, 20, 30, 40, 50, 60, 70]
    head = softmax("inverse_frequency", counts)
    expected = [280 / (7 * count) for count in counts]
    np.testing.assert_allclose(head.class_weight.numpy(), expected, rtol=1e-6)
    # Over the training utterances the weights average to one.
    assert np.dot(expected, counts) / sum(counts) == pytest.approx(1.0)
    embedding, label = batch()
    terms = F.cross_entropy(head.linear(embedding), label, reduction="none")
    by_hand = (terms * torch.tensor(expected)[label]).mean()
    assert head(embedding, label, step=0).loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    # Halves of a batch average to the batch, which the weighted mean of torch would not give.
    halves = [head(embedding[part], label[part], step=0).loss.item() for part in (slice(0, 3), slice(3, 6))]
    assert sum(halves) / 2 == pytest.approx(by_hand.item(), rel=1e-5)
