"""Losses that compare utterances, against the papers' sums written out one utterance at a time in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spkexp.losses.contrastive import SupervisedContrastive
from spkexp.losses.ge2e import GE2E
from spkexp.losses.head import Loss
from spkexp.losses.prototypical import AngularPrototypical
from spkexp.losses.triplet import Triplet
from tests.loss_tools import METRIC, grouped

Vector = NDArray[np.float64]


def unit(x: Vector) -> Vector:
    return x / np.linalg.norm(x)


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ge2e(x: Vector, label: list[int], variant: str, w: float, b: float) -> float:
    e, terms = [unit(row) for row in x], []
    for i, speaker in enumerate(label):
        own = [e[j] for j in range(len(e)) if label[j] == speaker and j != i]
        if not own:
            continue
        similarity = {}
        for other in set(label):
            members = own if other == speaker else [e[j] for j in range(len(e)) if label[j] == other]
            similarity[other] = w * cosine(e[i], np.mean(members, axis=0)) + b
        if variant == "softmax":
            terms.append(-similarity[speaker] + math.log(sum(math.exp(s) for s in similarity.values())))
        else:
            rest = [sigmoid(s) for other, s in similarity.items() if other != speaker]
            terms.append(1 - sigmoid(similarity[speaker]) + max(rest))
    return float(np.mean(terms))


def angular_prototypical(x: Vector, label: list[int], w: float, b: float) -> float:
    rows = {speaker: [x[j] for j in range(len(x)) if label[j] == speaker] for speaker in set(label)}
    rows = {speaker: found for speaker, found in rows.items() if len(found) > 1}
    terms = []
    for speaker, found in rows.items():
        similarity = {k: w * cosine(found[-1], np.mean(other[:-1], axis=0)) + b for k, other in rows.items()}
        terms.append(-similarity[speaker] + math.log(sum(math.exp(s) for s in similarity.values())))
    return float(np.mean(terms))


def triplet(x: Vector, label: list[int], mining: str, margin: float) -> float:
    e, count = [unit(row) for row in x], len(x)
    d = [[float(((a - b) ** 2).sum()) for b in e] for a in e]
    terms = []
    for a in range(count):
        positives = [p for p in range(count) if p != a and label[p] == label[a]]
        negatives = [d[a][n] for n in range(count) if label[n] != label[a]]
        if mining == "hardest" and positives:
            terms.append(max(0.0, max(d[a][p] for p in positives) - min(negatives) + margin))
        for p in positives:
            if mining == "all":
                terms += [d[a][p] - n + margin for n in negatives if d[a][p] - n + margin > 0]
            if mining == "semi-hard":
                chosen = min((n for n in negatives if n > d[a][p]), default=max(negatives))
                terms.append(max(0.0, d[a][p] - chosen + margin))
    return float(np.mean(terms))


def supervised_contrastive(x: Vector, label: list[int], temperature: float) -> float:
    z, terms = [unit(row) for row in x], []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and label[p] == label[i]]
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in range(len(z)) if a != i)
        if positives:
            logs = [math.log(math.exp(float(z[i] @ z[p]) / temperature) / total) for p in positives]
            terms.append(-sum(logs) / len(positives))
    return float(np.mean(terms))


REFERENCE = {
    "ge2e-softmax": lambda x, y: ge2e(x, y, "softmax", 10.0, -5.0),
    "ge2e-contrast": lambda x, y: ge2e(x, y, "contrast", 10.0, -5.0),
    "angular-prototypical": lambda x, y: angular_prototypical(x, y, 10.0, -5.0),
    "triplet-all": lambda x, y: triplet(x, y, "all", 0.2),
    "triplet-semi-hard": lambda x, y: triplet(x, y, "semi-hard", 0.2),
    "triplet-hardest": lambda x, y: triplet(x, y, "hardest", 0.2),
    "supervised-contrastive": lambda x, y: supervised_contrastive(x, y, 0.07),
}


def test_all_have_a_reference() -> None:
    assert set(REFERENCE) == set(METRIC)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("seed", range(5))
def test_matches_the_paper(name: str, seed: int) -> None:
    embedding, label = grouped(seed)
    embedding[:, 0] += 1.5 * label  # else random speakers never leave a triplet satisfied
    expected = REFERENCE[name](embedding.numpy(), label.tolist())
    assert METRIC[name]().double()(embedding, label, 0).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", METRIC)
def test_order_of_the_batch_matters_to_the_query_alone(name: str) -> None:
    embedding, label = grouped()
    loss = METRIC[name]().double()
    order = torch.tensor([3, 7, 0, 4, 1, 5, 8, 2, 6])
    found, moved = loss(embedding, label, 0).loss, loss(embedding[order], label[order], 0).loss
    assert (found.item() == pytest.approx(moved.item(), rel=1e-9)) == (name != "angular-prototypical")


# Speakers at right angles: two utterances of speaker 0 on x, two of speaker 1 on y.
CROSS = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
CROSS_LABEL = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # Own similarity w + b, the other speaker's b: -w + log(e^w + 1) = log(1 + e^-w)
        (GE2E("softmax", 2.0, 1.0), math.log(1 + math.exp(-2))),
        (GE2E("contrast", 2.0, -1.0), 1 - sigmoid(1) + sigmoid(-1)),
        (AngularPrototypical(2.0, 1.0), math.log(1 + math.exp(-2))),
        # d(a, p) = 0, d(a, n) = 2
        (Triplet(0.5, "all"), 0.0),
        (Triplet(2.5, "all"), 0.5),
        (Triplet(2.5, "semi-hard"), 0.5),
        (Triplet(2.5, "hardest"), 0.5),
        # One positive at 1, two others at 0: -log(e^2 / (e^2 + 2))
        (SupervisedContrastive(0.5), -math.log(math.exp(2) / (math.exp(2) + 2))),
    ],
)
def test_by_hand(loss: Loss, expected: float) -> None:
    output = loss.double()(CROSS, CROSS_LABEL, 0)
    assert output.loss.item() == pytest.approx(expected, abs=1e-9)
    assert output.accuracy == 1


def test_centroid_leaves_the_utterance_out() -> None:
    """Two opposite utterances of a speaker: were the centroid of both, their cosine with it would be 0, not -1."""
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]], dtype=torch.float64)
    loss = GE2E("softmax", 1.0, 0.0).double()(x, torch.tensor([0, 0, 1, 1]), 0).loss.item()
    # Speaker 0: own -1, the other 0. Speaker 1: own 1, the other (whose centroid is 0) 0.
    assert loss == pytest.approx((math.log(math.e + 1) + math.log(1 + 1 / math.e)) / 2)


def test_semi_hard_negatives() -> None:
    """Anchor at 0°, positive at 40°: of negatives at 20°, 60° and 90° the one at 60° is the nearest that is further."""
    angles = torch.deg2rad(torch.tensor([0.0, 40.0, 20.0, 60.0, 90.0], dtype=torch.float64))
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = Triplet(1.0, "semi-hard").double()(x, torch.tensor([0, 0, 1, 2, 3]), 0).loss.item()

    def distance(degrees: float) -> float:
        return 2 - 2 * math.cos(math.radians(degrees))

    first = distance(40) - distance(60) + 1
    # From the positive, 20° lies to both sides and 50° is beyond 40°.
    second = distance(40) - distance(50) + 1
    assert found == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("name", ["ge2e-softmax", "angular-prototypical"])
def test_scale_is_learnt_and_stays_positive(name: str) -> None:
    """Labels at random: the best scale is 0, and steps as long as these would take it far below."""
    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(64, 2, generator=generator), torch.arange(32).repeat(2)
    loss = METRIC[name]()
    for _ in range(30):
        gradients = torch.autograd.grad(loss(x, label, 0).loss, list(loss.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(loss.parameters(), gradients, strict=True):
                parameter -= 5.0 * gradient
    assert 0 < loss.log_w.exp().item() < 9


def test_accuracy_is_of_the_nearest_other_utterance() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 15.0, 90.0, 100.0, 200.0]))
    x = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5], [2], [1], [3], [1]])
    # 0° finds 10° of its speaker; 10° finds 15°, 15° finds 10°: wrong; 90° and 100° find each other; 200° is alone.
    label = torch.tensor([0, 0, 1, 2, 2, 1])
    # The one at 200° has a partner at 15°, but finds 100°.
    assert METRIC["ge2e-softmax"]()(x, label, 0).accuracy == pytest.approx(3 / 6)
    alone = torch.tensor([0, 0, 1, 2, 2, 3])
    assert METRIC["ge2e-softmax"]()(x, alone, 0).accuracy == pytest.approx(3 / 4)


@pytest.mark.parametrize("name", METRIC)
def test_a_step_against_the_gradient_gathers_the_speakers(name: str) -> None:
    embedding, label = grouped()
    loss = METRIC[name]()
    x = embedding.float().requires_grad_()
    before = loss(x, label, 0)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(loss(x, label, 0).loss, x)
        x = (x - 0.05 * gradient).detach().requires_grad_()
    after = loss(x, label, 0)
    assert after.loss < before.loss
    # Semi-hard mining looks at no negative that is nearer than the positive, as long as there is one beyond.
    assert after.accuracy > before.accuracy or before.accuracy == 1 or name == "triplet-semi-hard"
