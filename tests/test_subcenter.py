"""Sub-centres and the inter-top-k penalty, against the papers' formulas written out in float64."""

import math

import numpy as np
import pytest
import torch

from spkexp.losses.margin import AAMSoftmax
from spkexp.losses.subcenter import InterTopKAAM
from tests.loss_tools import CLASSES, batch, inter_top_k, margin_head, sub_centers


def reference(head: InterTopKAAM, margin: float, penalty: float, top_k: int) -> float:
    embedding, label = (tensor.numpy() for tensor in batch())
    weight, total = head.weight.detach().double().numpy(), 0.0
    for x, y in zip(embedding.astype(np.float64), label, strict=True):
        angles = [
            min(math.acos(float(w @ x) / (np.linalg.norm(w) * np.linalg.norm(x))) for w in centers)
            for centers in weight
        ]
        others = sorted((angle, j) for j, angle in enumerate(angles) if j != y)
        logits = [head.scale * math.cos(angle) for angle in angles]
        for angle, j in others[:top_k]:
            logits[j] = head.scale * math.cos(angle - penalty)
        logits[y] = head.scale * (
            math.cos(angles[y] + margin)
            if angles[y] < math.pi - margin
            else math.cos(angles[y]) - margin * math.sin(margin)
        )
        top = max(logits)
        total += top + math.log(sum(math.exp(z - top) for z in logits)) - logits[y]
    return total / len(label)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sub_centers_match_the_paper(count: int) -> None:
    torch.manual_seed(2)
    head = sub_centers(count)
    assert head.weight.shape == (CLASSES, count, 5)
    assert head(*batch(), step=0).loss.item() == pytest.approx(reference(head, 0.2, 0.0, 0), rel=1e-5)


def test_one_sub_center_is_aam() -> None:
    head, plain = sub_centers(1), margin_head(AAMSoftmax)
    plain.load_state_dict({"weight": head.weight.detach()[:, 0]})
    torch.testing.assert_close(head(*batch(), step=0), plain(*batch(), step=0), rtol=1e-6, atol=1e-6)


def test_only_the_nearest_sub_center_learns() -> None:
    head = sub_centers(3)
    embedding = head.weight.detach()[:, 1] * 4.0  # each class's second direction, exactly
    head(embedding, torch.arange(CLASSES), 0).loss.backward()
    direction = torch.nn.functional.normalize(embedding)
    nearest = (direction @ torch.nn.functional.normalize(head.weight.detach()[0], dim=-1).T).argmax(dim=1)
    learns = (head.weight.grad[0].abs().sum(dim=1) > 0).tolist()
    assert learns == [index in nearest.tolist() for index in range(3)]


@pytest.mark.parametrize(("top_k", "count"), [(0, 3), (1, 1), (2, 3), (CLASSES - 1, 2)])
def test_inter_top_k_matches_the_paper(top_k: int, count: int) -> None:
    torch.manual_seed(3)
    head = inter_top_k(top_k=top_k, sub_centers=count, penalty=0.1)
    assert head(*batch(), step=0).loss.item() == pytest.approx(reference(head, 0.2, 0.1, top_k), rel=1e-5)


def test_penalty_grows_with_the_margin() -> None:
    torch.manual_seed(3)
    head = inter_top_k(penalty=0.06, ramp="linear", ramp_epochs=[0, 2])  # 10 steps an epoch
    for step, share in ((0, 0.0), (5, 0.25), (20, 1.0)):
        expected = reference(head, 0.2 * share, 0.06 * share, 2)
        assert head(*batch(), step=step).loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_margin_leaves_the_penalty() -> None:
    torch.manual_seed(3)
    head = inter_top_k(margin=0.0, penalty=0.06)
    assert head(*batch(), step=0).loss.item() == pytest.approx(reference(head, 0.0, 0.06, 2), rel=1e-5)


def test_top_k_of_too_few_classes() -> None:
    with pytest.raises(ValueError, match="top_k=7: of 7 classes 6 are others; choose fewer"):
        inter_top_k(top_k=CLASSES)
