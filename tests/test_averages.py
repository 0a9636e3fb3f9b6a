"""The moving average of the weights, against its formula in float64."""

import numpy as np
import torch
from torch import nn

from spkexp.averages import MovingAverage, in_place_of


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_every_update_is_the_formula() -> None:
    module = network()
    average = MovingAverage(module, decay=0.8)
    expected = {name: tensor.double().numpy().copy() for name, tensor in module.state_dict().items()}
    for update in range(1, 60):
        module(torch.randn(5, 3))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        average.update()
        decay = min(0.8, (1 + update) / (10 + update))
        for name, tensor in module.state_dict().items():
            value = tensor.double().numpy()
            expected[name] = decay * expected[name] + (1 - decay) * value if tensor.is_floating_point() else value
    for name, tensor in average.tensors.items():
        np.testing.assert_allclose(tensor.double().numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.tensors["1.num_batches_tracked"] == 59
    assert not torch.equal(average.tensors["0.weight"], module.state_dict()["0.weight"])


def test_it_goes_on_from_its_state() -> None:
    def train(module: nn.Module, average: MovingAverage, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                module[0].weight.fill_(step)  # type: ignore[index, operator]
            average.update()

    whole, broken = network(), network()
    unbroken = MovingAverage(whole, 0.99)
    train(whole, unbroken, range(20))
    first = MovingAverage(broken, 0.99)
    train(broken, first, range(7))
    second = MovingAverage(network(), 0.99)
    second.load(first.state())
    second.module = broken
    train(broken, second, range(7, 20))
    assert torch.equal(unbroken.tensors["0.weight"], second.tensors["0.weight"])


def test_weights_come_back_after_others_took_their_place() -> None:
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    others = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    parameter = module[0].weight  # type: ignore[index]
    try:
        with in_place_of(module, others) as own:
            assert not parameter.any()
            assert all(torch.equal(own[name], before[name]) for name in before)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert module[0].weight is parameter  # type: ignore[index]  # an optimizer holds on to it
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
