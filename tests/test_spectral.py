"""SpecAugment: where masks lie, how wide they are and what they leave, against the paper's rules and slow counts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spkexp.augment.spectral import SpecAugment
from spkexp.counter import Keys, item_keys
from spkexp.errors import UserError

BINS, FRAMES = 40, 100


def keys(count: int, epoch: int = 0) -> Keys:
    return item_keys(5, epoch, np.arange(count))


def features(rows: int, lengths: list[int] | None = None) -> Tensor:
    """Nowhere zero, and zero behind the lengths, as LogMel gives them."""
    x = 3 + torch.rand(rows, BINS, FRAMES, generator=torch.Generator().manual_seed(0))
    if lengths is not None:
        x *= torch.arange(FRAMES) < torch.tensor(lengths)[:, None, None]
    return x


def spans(flags: np.ndarray) -> tuple[int, int]:
    """(first, number) of the true values, which lie together."""
    where = np.flatnonzero(flags)
    if len(where) == 0:
        return 0, 0
    assert len(where) == where[-1] - where[0] + 1
    return int(where[0]), len(where)


def test_one_frequency_mask_is_uniform_in_width_and_place() -> None:
    x = features(6000)
    out = SpecAugment(1.0, 1, 9, 0, 0, 1.0, "zero")(x, None, keys(6000))
    masked = (out == 0).numpy()
    assert (masked.all(axis=2) == masked.any(axis=2)).all()  # whole bins
    found = [spans(row) for row in masked[:, :, 0]]
    widths = np.array([width for _, width in found])
    assert np.bincount(widths, minlength=10) / 6000 == pytest.approx([0.1] * 10, abs=0.02)
    widest = np.array([first for first, width in found if width == 9])
    assert np.bincount(widest, minlength=32).min() > 0
    assert widest.max() == 31
    assert widest.mean() == pytest.approx(15.5, abs=1.2)
    np.testing.assert_array_equal(out.numpy()[~masked], x.numpy()[~masked])


def test_one_time_mask_is_limited_to_a_share_of_the_rows_own_frames() -> None:
    lengths = [100, 50, 10, 4, 1] * 800
    x = features(4000, lengths)
    out = SpecAugment(1.0, 0, 0, 1, 20, 0.25, "zero")(x, torch.tensor(lengths), keys(4000))
    masked = ((out == 0) & (x != 0)).numpy()
    assert (masked.all(axis=1) == masked.any(axis=1)).all()  # whole frames
    assert torch.equal(out == 0, torch.from_numpy(masked) | (x == 0))
    for length, most in ((100, 20), (50, 12), (10, 2), (4, 1), (1, 0)):
        rows = masked[np.array(lengths) == length][:, 0]
        found = [spans(row) for row in rows]
        widths = np.bincount([width for _, width in found], minlength=most + 1)
        assert len(widths) == most + 1
        assert widths / 800 == pytest.approx([1 / (most + 1)] * (most + 1), abs=0.045)
        if most:
            starts = [first for first, width in found if width == most]
            assert max(starts) <= length - most
            # The last frame that may be masked is, sooner or later.
            assert rows[:, : length - 1].any()
            assert length == 100 or rows[:, length - 1].any()


def test_several_masks_of_both_kinds() -> None:
    """The mask is a set of whole bins and a set of whole frames; no more of each than their masks can cover."""
    x = features(300)
    out = SpecAugment(1.0, 2, 8, 3, 10, 1.0, "zero")(x, None, keys(300))
    masked = (out == 0).numpy()
    bins, frames = masked.all(axis=2), masked.all(axis=1)
    assert np.array_equal(masked, bins[:, :, None] | frames[:, None, :])
    assert bins.sum(axis=1).max() <= 16
    assert frames.sum(axis=1).max() <= 30
    assert bins.sum(axis=1).max() > 9
    assert frames.sum(axis=1).max() > 15
    # The mean of two widths of 0..8 that sometimes overlap, and of three of 0..10.
    assert 6.5 < bins.sum(axis=1).mean() < 8.2
    assert 12.5 < frames.sum(axis=1).mean() < 15.2
    assert len({row.tobytes() for row in masked}) > 290  # each row has its own


def test_the_mean_is_the_rows_own_over_its_frames() -> None:
    lengths = [100, 30, 7]
    x = features(3, lengths) * torch.tensor([1.0, -2.0, 5.0])[:, None, None]
    augment = SpecAugment(1.0, 2, 30, 2, 50, 1.0, "mean")
    out = augment(x, torch.tensor(lengths), keys(3))
    for row, (before, after, length) in enumerate(zip(x.double(), out.double(), lengths, strict=True)):
        changed = before != after
        assert changed.any(), row
        assert after[changed].numpy() == pytest.approx(float(before[:, :length].mean()), rel=1e-5)
        assert not changed[:, length:].any()
    full = augment(features(3), None, keys(3))
    assert full[full != features(3)].unique().numel() == 3


def test_zero_is_the_mean_of_normalised_features() -> None:
    x = features(4)
    x -= x.mean(dim=2, keepdim=True)
    zero, mean = (SpecAugment(1.0, 2, 9, 2, 9, 1.0, value)(x, None, keys(4)) for value in ("zero", "mean"))  # type: ignore[arg-type]
    torch.testing.assert_close(zero, mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", ["zero", "mean"])
def test_a_row_depends_on_its_key_alone_and_the_rest_is_left(value: str) -> None:
    lengths = [100, 60, 33, 80] * 3
    x = features(12, lengths)
    before = x.clone()
    augment = SpecAugment(0.6, 2, 8, 2, 20, 0.5, value)  # type: ignore[arg-type]
    whole = augment(x, torch.tensor(lengths), keys(12))
    assert torch.equal(x, before)
    for part in (slice(0, 5), slice(5, 12), slice(3, 4)):
        own = augment(x[part], torch.tensor(lengths[part]), keys(12)[part])
        torch.testing.assert_close(own, whole[part], atol=1e-6, rtol=0)
    # Padded further, as in another batch: the same masks.
    padded = torch.nn.functional.pad(x, (0, 17))
    torch.testing.assert_close(augment(padded, torch.tensor(lengths), keys(12))[..., :FRAMES], whole, atol=1e-6, rtol=0)
    assert not torch.equal(augment(x, torch.tensor(lengths), keys(12, epoch=1)), whole)
    left = (whole == x).flatten(1).all(dim=1)
    assert 1 <= left.sum() < 11


def test_probability() -> None:
    x = features(2000)
    changed = (SpecAugment(0.3, 4, 9, 4, 20, 1.0, "zero")(x, None, keys(2000)) != x).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(SpecAugment(0.0, 4, 9, 4, 20, 1.0, "zero")(x, None, keys(2000)), x)
    assert torch.equal(SpecAugment(1.0, 0, 9, 0, 20, 1.0, "zero")(x, None, keys(2000)), x)


def test_gradients_pass_outside_the_masks() -> None:
    x = features(2).requires_grad_()
    out = SpecAugment(1.0, 1, 20, 1, 30, 1.0, "zero")(x, None, keys(2))
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (out != 0).float())


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"augment\.features.frequency_width: .* 40 bins .* 40"):
        SpecAugment(1.0, 1, BINS, 0, 0, 1.0, "zero")(features(1), None, keys(1))
    with pytest.raises(ValueError, match="at most 31, got 32"):
        SpecAugment(1.0, 16, 4, 16, 4, 1.0, "zero")
