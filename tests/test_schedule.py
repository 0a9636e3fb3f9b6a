"""Schedules are pure functions of the step; values worked out by hand."""

import math

import pytest

from spkexp.schedule import Constant, Cosine, Cyclic, Exponential, Linear


def test_constant_with_warm_up() -> None:
    schedule = Constant(warmup_epochs=0.5, total_steps=100, steps_per_epoch=8)
    assert [schedule(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_from_one_to_final() -> None:
    schedule = Linear(final=0.1, warmup_epochs=0.0, total_steps=11, steps_per_epoch=5)
    assert schedule(0) == 1.0
    assert schedule(5) == pytest.approx(0.55)
    assert schedule(10) == pytest.approx(0.1)
    assert schedule(50) == pytest.approx(0.1)


def test_cosine() -> None:
    schedule = Cosine(final=0.0 + 1e-9, warmup_epochs=0.0, total_steps=5, steps_per_epoch=5)
    expected = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert [schedule(step) for step in range(5)] == pytest.approx(expected, abs=1e-8)


def test_exponential_as_wespeaker() -> None:
    # WeSpeaker: initial_lr * exp(iteration / max_iter * log(final_lr / initial_lr)), times the warm-up ratio.
    schedule = Exponential(final=5e-4, warmup_epochs=1.0, total_steps=101, steps_per_epoch=10)
    for step in (0, 4, 9, 50, 100):
        expected = math.exp(step / 100 * math.log(5e-5 / 0.1)) * min(1.0, (step + 1) / 10)
        assert schedule(step) == pytest.approx(expected, rel=1e-12)


def test_cyclic_triangle() -> None:
    schedule = Cyclic(floor=0.2, half_cycle_steps=4, total_steps=100, steps_per_epoch=1)
    assert [schedule(step) for step in range(9)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert schedule(8 * 1000 + 3) == pytest.approx(0.8)


def test_speechbrains_cycle() -> None:
    # base_lr 1e-8, max_lr 1e-3, step_size 65,000: the formula of SpeechBrain's CyclicLRScheduler.
    schedule = Cyclic(floor=1e-5, half_cycle_steps=65000, total_steps=1, steps_per_epoch=1)
    for step in (0, 1, 30_000, 65_000, 100_000, 130_000, 200_000):
        cycle = math.floor(1 + step / 130_000)
        x = abs(step / 65_000 - 2 * cycle + 1)
        assert 1e-3 * schedule(step) == pytest.approx(1e-8 + (1e-3 - 1e-8) * max(0, 1 - x), rel=1e-9)
