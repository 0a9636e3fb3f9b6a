"""Gain and clipping, each row by its own draw, worked out from the waveforms."""

import numpy as np
import pytest
import torch

from spkexp.augment.augmentation import Signal
from spkexp.augment.level import Clipping, Gain
from spkexp.counter import item_keys

RATE = 16_000


def batch(rows: int, samples: int = 400) -> Signal:
    wave = 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(1))
    return Signal(wave, torch.full((rows,), samples), item_keys(3, 0, np.arange(rows)), np.arange(rows))


def test_gain_is_uniform_in_decibels_and_one_number_a_row() -> None:
    signal = batch(4000)
    out = Gain(1.0, [-18, 6])(signal, iter(())).waveform.double()
    before = signal.waveform.double()
    gain_db = 10 * torch.log10(out.square().sum(dim=1) / before.square().sum(dim=1)).numpy()
    assert -18 <= gain_db.min() < -17.9
    assert 5.9 < gain_db.max() <= 6
    assert np.histogram(gain_db, bins=4, range=(-18, 6))[0] / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    expected = before * torch.from_numpy(10 ** (gain_db / 20))[:, None]
    torch.testing.assert_close(out, expected, atol=1e-7, rtol=1e-6)


def test_gain_of_six_decibels_by_hand_and_no_clipping() -> None:
    signal = batch(2)._replace(waveform=torch.tensor([[0.5, -0.75], [0.1, 0.0]]), lengths=torch.tensor([2, 1]))
    out = Gain(1.0, [20, 20])(signal, iter(())).waveform
    torch.testing.assert_close(out, torch.tensor([[5.0, -7.5], [1.0, 0.0]]))


def test_clipping_cuts_at_a_share_of_the_rows_own_peak() -> None:
    signal = batch(2000)
    before = signal.waveform.numpy()
    out = Clipping(1.0, [0.2, 0.8])(signal, iter(())).waveform.numpy()
    share = np.abs(out).max(axis=1) / np.abs(before).max(axis=1)
    assert 0.2 <= share.min() < 0.21
    assert 0.79 < share.max() <= 0.8
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    limit = np.abs(out).max(axis=1, keepdims=True)
    assert np.array_equal(out, np.where(np.abs(before) <= limit, before, np.sign(before) * limit))
    assert (np.abs(before) > limit).any(axis=1).all()


def test_a_silent_row_stays_silent_and_a_share_of_one_changes_nothing() -> None:
    signal = batch(3)
    assert torch.equal(Clipping(1.0, [1, 1])(signal, iter(())).waveform, signal.waveform)
    silent = signal._replace(waveform=torch.zeros(3, 400))
    assert torch.equal(Clipping(1.0, [0.1, 0.5])(silent, iter(())).waveform, torch.zeros(3, 400))


@pytest.mark.parametrize("change", [Gain(0.5, [-10, -1]), Clipping(0.5, [0.1, 0.9])])
def test_probability(change: Gain | Clipping) -> None:
    signal = batch(2000, samples=20)
    changed = (change(signal, iter(())).waveform != signal.waveform).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.04)
    one = change(Signal(*(part[7:8] for part in signal)), iter(())).waveform
    assert torch.equal(one[0], change(signal, iter(())).waveform[7])


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"gain_db: .*\[6, -6\]"):
        Gain(1.0, [6, -6])
    with pytest.raises(ValueError, match=r"gain_db: .*\[1\]"):
        Gain(1.0, [1])
    with pytest.raises(ValueError, match="share: "):
        Clipping(1.0, [0.0, 0.5])
    with pytest.raises(ValueError, match="probability"):
        Gain(1.5, [0, 1])
