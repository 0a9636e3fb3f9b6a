"""Heads against formulas written out in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spkexp.losses.head import Loss
from spkexp.losses.margin import AAMSoftmax, AMSoftmax
from spkexp.losses.softmax import Softmax
from tests.loss_tools import BATCH, CLASSES, EVERY, HEADS, SIZE, batch, grouped, margin_head, sub_centers

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


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


@pytest.fixture(params=EVERY)
def every(request: pytest.FixtureRequest) -> Loss:
    torch.manual_seed(0)
    return EVERY[request.param]()


def test_gradient_of_every_loss(every: Loss) -> None:
    """Of the embeddings and of all parameters, against difference quotients in float64."""
    every = every.double()
    embedding, label = grouped()
    names = [name for name, _ in every.named_parameters()]

    def loss(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(every, state, (x, label, 100)).loss

    inputs = [embedding, *(parameter.detach().clone() for parameter in every.parameters())]
    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in inputs])


def test_float32_agrees_with_float64(every: Loss) -> None:
    embedding, label = grouped()
    results = []
    for dtype in (torch.float32, torch.float64):
        every = every.to(dtype)
        x = embedding.to(dtype).requires_grad_()
        output = every(x, label, 100)
        output.loss.backward()
        results.append((output.loss.detach().double(), x.grad.double()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_computes_in_float32_under_autocast(every: Loss, device: str) -> None:
    embedding, label = (tensor.to(device) for tensor in grouped())
    every = every.to(device)
    x = embedding.to(torch.bfloat16).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        output = every(x, label, 100)
    assert output.loss.dtype == torch.float32
    assert not output.accuracy.requires_grad
    torch.testing.assert_close(output.loss, every(x.float(), label, 100).loss, rtol=0, atol=0)
    output.loss.backward()
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "case", ["one speaker", "no pairs", "a single utterance", "equal", "opposite", "zero", "huge", "tiny"]
)
def test_stays_finite(every: Loss, case: str) -> None:
    embedding, label = grouped()
    x = embedding.float()
    if case == "one speaker":
        label = torch.full_like(label, 3)
    elif case == "no pairs":
        x, label = x[:CLASSES], torch.arange(CLASSES)
    elif case == "a single utterance":
        x, label = x[:1], label[:1]
    elif case == "equal":
        x = x[:1].repeat(len(x), 1)
    elif case == "opposite":  # of a speaker's two utterances, and each on a class's direction or against it
        weight = every.classifier.state_dict().get("weight") if every.classifier else None
        direction = weight[0].reshape(-1, SIZE)[0] if weight is not None else x[0]
        x = torch.stack([direction * (-1) ** index for index in range(len(x))])
    elif case == "zero":
        x = torch.zeros_like(x)
    else:
        x = x * (1e30 if case == "huge" else 1e-30)
    x.requires_grad_()
    output = every(x, label, 100)
    output.loss.backward()
    assert output.loss.isfinite()
    assert 0 <= output.accuracy <= 1
    for tensor in (x.grad, *(parameter.grad for parameter in every.parameters())):
        assert tensor.isfinite().all()


def test_length_of_an_embedding_never_matters_to_a_cosine() -> None:
    embedding, label = grouped()
    head = margin_head(AAMSoftmax).double()
    torch.testing.assert_close(head(1e30 * embedding, label, 0), head(embedding, label, 0))


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


def test_aam_falls_monotonically_with_the_angle() -> None:
    cosine = torch.cos(torch.linspace(0, math.pi, 2001, dtype=torch.float64))
    shifted = margin_head(AAMSoftmax).shift(cosine, 0.5)
    # At θ = π - m the formula changes; it may jump there, but never upwards.
    assert (shifted.diff() < 1e-3).all()


def test_margin_grows_between_its_epochs() -> None:
    head = margin_head(AAMSoftmax, margin=0.4, initial_margin=0.1, ramp_epochs=[2, 4])
    assert [head.margin_at(step) for step in (0, 20)] == [0.1, 0.1]
    assert [head.margin_at(step) for step in (40, 1000)] == [0.4, 0.4]
    # Half way (x = 1/2): 0.4 - 0.3 · 10^-1.5
    assert head.margin_at(30) == pytest.approx(0.4 - 0.3 * 0.0316227766, abs=1e-9)
    ramp = [head.margin_at(step) for step in range(20, 41)]
    assert ramp == sorted(ramp)
    embedding, label = batch()
    assert head(embedding, label, step=0).loss < head(embedding, label, step=100).loss


def test_margin_grows_in_a_straight_line() -> None:
    head = margin_head(AAMSoftmax, margin=0.4, initial_margin=0.1, ramp="linear", ramp_epochs=[2, 4])
    found = [head.margin_at(step) for step in (0, 20, 25, 30, 35, 40, 41)]
    assert found == pytest.approx([0.1, 0.1, 0.175, 0.25, 0.325, 0.4, 0.4])


def test_a_large_margin_from_the_start() -> None:
    head = margin_head(AAMSoftmax, margin=0.5, initial_margin=0.5, ramp_epochs=[0, 0])
    assert {head.margin_at(step) for step in range(30)} == {0.5}


def test_scores_and_accuracy_carry_no_margin() -> None:
    embedding, _ = batch()
    head = margin_head(AAMSoftmax, margin=0.5)
    expected = (F.normalize(embedding) @ F.normalize(head.weight).T).detach()
    torch.testing.assert_close(head.scores(embedding).detach(), expected)
    label = expected.argmax(dim=1)
    # With the margin taken off, at least one would be lost.
    assert (expected.scatter_add(1, label[:, None], torch.full((BATCH, 1), -0.5)).argmax(dim=1) != label).any()
    label[:2] = (label[:2] + 1) % CLASSES
    assert head(embedding, label, step=0).accuracy == pytest.approx(4 / 6)


@pytest.mark.parametrize("name", HEADS)
def test_known_classes_are_taken_over(name: str) -> None:
    """Classes 5 and 0 of one head are 1 and 3 of another: their scores come along, others' stay."""
    torch.manual_seed(1)
    old, new = HEADS[name](), HEADS[name]()
    for parameter in old.parameters():
        torch.nn.init.normal_(parameter)
    embedding, _ = batch()
    before = new.scores(embedding).detach()
    own, theirs = torch.tensor([1, 3]), torch.tensor([5, 0])
    assert new.take(old.state_dict(), own, theirs) == []
    after = new.scores(embedding).detach()
    torch.testing.assert_close(after[:, own], old.scores(embedding).detach()[:, theirs])
    rest = [0, 2, 4, 5, 6]
    torch.testing.assert_close(after[:, rest], before[:, rest])


def test_what_does_not_fit_is_named_and_left() -> None:
    torch.manual_seed(1)
    new, old = sub_centers(3), margin_head(AAMSoftmax)
    before = new.weight.detach().clone()
    every_class = torch.arange(CLASSES)
    assert new.take(old.state_dict(), every_class, every_class) == ["weight"]
    torch.testing.assert_close(new.weight.detach(), before)


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
