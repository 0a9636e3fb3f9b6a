"""Several losses of the same embeddings."""

import pytest
import torch
from torch import nn

from spkexp.losses.combined import Combined
from spkexp.losses.head import Loss
from spkexp.losses.margin import AAMSoftmax
from tests.loss_tools import CLASSES, METRIC, grouped, margin_head, sphereface2


def parts() -> dict[str, Loss]:
    torch.manual_seed(0)
    head = margin_head(AAMSoftmax, ramp="linear", ramp_epochs=[0, 2])
    return {"triplet": METRIC["triplet-all"](), "aam": head, "ge2e": METRIC["ge2e-softmax"]()}


def test_is_the_weighted_sum() -> None:
    embedding, label = grouped()
    losses = parts()
    combined = Combined(losses, {"triplet": 0.5, "aam": 1.0, "ge2e": 0.25}).double()
    output = combined(embedding, label, 10)
    each = {name: loss(embedding, label, 10) for name, loss in losses.items()}
    expected = 0.5 * each["triplet"].loss + each["aam"].loss + 0.25 * each["ge2e"].loss
    torch.testing.assert_close(output.loss, expected)
    # The head classifies: accuracy and margin are its own.
    assert output.accuracy == each["aam"].accuracy != each["triplet"].accuracy
    assert combined.classifier is losses["aam"]
    assert combined.margin_at(10) == pytest.approx(0.1)
    assert combined.needs_pairs


def test_without_a_head_the_first_speaks() -> None:
    losses = parts()
    combined = Combined({"triplet": losses["triplet"], "ge2e": losses["ge2e"]}, {"triplet": 1.0, "ge2e": 1.0})
    embedding, label = grouped()
    assert combined.classifier is None
    assert combined(embedding, label, 0).accuracy == losses["triplet"](embedding, label, 0).accuracy


def test_none_leaves_one_out() -> None:
    losses = parts()
    combined = Combined({"aam": losses["aam"], "ge2e": None}, {"aam": 2.0, "ge2e": 1.0}).double()
    embedding, label = grouped()
    torch.testing.assert_close(combined(embedding, label, 0).loss, 2 * losses["aam"](embedding, label, 0).loss)
    assert not combined.needs_pairs


def test_known_classes_and_all_else_are_taken_over() -> None:
    new, old = (Combined(parts(), {"triplet": 1.0, "aam": 1.0, "ge2e": 1.0}) for _ in range(2))
    for parameter in old.parameters():
        nn.init.normal_(parameter)
    before = new.losses["aam"].weight.detach().clone()
    assert new.take(old.state_dict(), torch.tensor([2]), torch.tensor([CLASSES - 1])) == []
    torch.testing.assert_close(new.losses["aam"].weight[2], old.losses["aam"].weight[-1])
    torch.testing.assert_close(new.losses["aam"].weight[3:], before[3:])
    torch.testing.assert_close(new.losses["ge2e"].log_w, old.losses["ge2e"].log_w)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], {}, "losses: give at least one"),
        (["aam"], {}, "weights must be given for aam, got none"),
        (["aam"], {"aam": 1.0, "ge2": 1.0}, "weights must be given for aam, got aam, ge2"),
        (
            ["aam", "sphere"],
            {"aam": 1.0, "sphere": 1.0},
            "aam and sphere have classes each, and one at most can classify",
        ),
        (["type"], {"type": 1.0}, "losses.type: torch has no module of this name; choose another"),
        (["a.b"], {"a.b": 1.0}, "losses.a.b: torch has no module of this name; choose another"),
        (["linear"], {"linear": 1.0}, "losses.linear: must be a loss, but Linear is none"),
    ],
)
def test_mistakes(names: list[str], weights: dict[str, float], message: str) -> None:
    known = {**parts(), "sphere": sphereface2(), "type": METRIC["ge2e-softmax"](), "a.b": METRIC["ge2e-softmax"]()}
    with pytest.raises(ValueError, match=message):
        Combined({name: known.get(name, nn.Linear(2, 2)) for name in names}, weights)
