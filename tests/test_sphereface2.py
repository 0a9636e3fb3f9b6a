"""SphereFace2 against its formula written out in float64."""

import math

import numpy as np
import pytest
import torch

from tests.loss_tools import CLASSES, batch, sphereface2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def g(z: float, t: float) -> float:
    return 2 * ((z + 1) / 2) ** t - 1


@pytest.mark.parametrize("kind", ["C", "A"])
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.2])
@pytest.mark.parametrize("exponent", [1.0, 2.5, 3.0])
def test_matches_the_paper(kind: str, margin: float, exponent: float) -> None:
    torch.manual_seed(1)
    head = sphereface2(margin_type=kind, margin=margin, exponent=exponent, balance=0.6, scale=20.0)
    with torch.no_grad():
        head.bias.fill_(-1.5)
    embedding, label = batch()
    weight, total, turned_back = head.weight.detach().double().numpy(), 0.0, 0
    for x, y in zip(embedding.double().numpy(), label.tolist(), strict=True):
        for j, w in enumerate(weight):
            angle = math.acos(float(w @ x) / (np.linalg.norm(w) * np.linalg.norm(x)))
            if kind == "C":
                z = g(math.cos(angle), exponent) + (-margin if j == y else margin)
            else:
                moved = angle + margin if j == y else angle - margin
                turned_back += not 0 <= moved <= math.pi
                z = g(math.cos(min(max(moved, 0.0), math.pi)), exponent)
            logit = 20.0 * z - 1.5
            total += 0.6 * math.log1p(math.exp(-logit)) if j == y else 0.4 * math.log1p(math.exp(logit))
    assert head(embedding, label, 0).loss.item() == pytest.approx(total / len(label), rel=1e-5)
    assert (turned_back > 0) == (kind == "A" and margin == 1.2)


@pytest.mark.parametrize("kind", ["C", "A"])
@pytest.mark.parametrize("classes", [2, 3, 7, 20_000])
def test_balanced_bias_at_right_angles(kind: str, classes: int) -> None:
    """An embedding at right angles to all classes: what its own class and all others do to the bias cancels."""
    head = sphereface2(margin_type=kind, initial_bias="balanced", num_classes=classes, embedding_size=2).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, 0.0], dtype=torch.float64).expand(classes, 2))
    head(torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.tensor([0]), 0).loss.backward()
    p = g(math.cos(math.pi / 2), 3.0) - 0.2 if kind == "C" else g(math.cos(math.pi / 2 + 0.2), 3.0)
    own = 0.7 * sigmoid(-(32.0 * p + head.bias.item()))
    # The bias is kept in float32.
    assert head.bias.grad.item() == pytest.approx(0.0, abs=1e-5 * own)


def test_zero_bias() -> None:
    assert sphereface2(initial_bias="zero").bias.item() == 0.0


def test_one_class_trains() -> None:
    head = sphereface2(initial_bias="balanced", num_classes=1)
    embedding, label = batch()
    assert head(embedding, torch.zeros_like(label), 0).loss.isfinite()


@pytest.mark.parametrize("kind", ["C", "A"])
def test_falls_with_the_angle_to_the_own_class_and_rises_with_the_others(kind: str) -> None:
    cosine = torch.cos(torch.linspace(0, math.pi, 2001, dtype=torch.float64))
    positive, negative = sphereface2(margin_type=kind).adjusted(cosine, 0.25)
    assert (positive.diff() <= 0).all()
    assert (negative.diff() <= 0).all()
    assert (positive <= negative).all()


def test_scores_are_cosines() -> None:
    head = sphereface2()
    embedding, _ = batch()
    expected = torch.cosine_similarity(embedding[:, None], head.weight[None], dim=-1)
    assert head.scores(embedding).shape == (len(embedding), CLASSES)
    torch.testing.assert_close(head.scores(embedding), expected)
