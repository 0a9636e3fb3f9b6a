"""The contract of augmentations and their composition: whose draws, whose rows, and where what was read arrives."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spkexp.augment.augmentation import (
    Augmentation,
    Material,
    RowAugmentation,
    Signal,
    column,
    power,
    silence_behind,
)
from spkexp.augment.chain import OneOf, Parallel, Sequence, prepared
from spkexp.counter import Keys, item_keys

SAMPLES = 8


class Add(RowAugmentation):
    """Adds a number: `constant`, so that a row tells what was done to it."""

    def __init__(self, probability: float, constant: float) -> None:
        super().__init__(probability)
        self.constant = constant

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        return waveform + self.constant, lengths


class AddDraw(RowAugmentation):
    """Adds the row's own random number."""

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        return waveform + column(self.uniform(key, 0), waveform), lengths


class AddFetched(RowAugmentation):
    """Reads for each row the last digits of its key and a number that names this augmentation, and adds both."""

    num_material = 2

    def __init__(self, probability: float, name: float) -> None:
        super().__init__(probability)
        self.name = name

    def fetch(self, key: Keys, samples: int, material: Material) -> list[Tensor]:
        assert samples == SAMPLES
        material.bad.append((f"file{self.name:g}", "broken"))
        return [digits(key), torch.full((len(key), 1), self.name)]

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        own, name = material
        assert torch.equal(own, digits(key))  # of these rows, in their order
        assert (name == self.name).all()
        return waveform + own + name, lengths


class Halve(RowAugmentation):
    """Makes rows shorter, and leaves something behind their new length."""

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        return waveform + 7, lengths // 2


def digits(key: Keys) -> Tensor:
    return torch.from_numpy((key % np.uint64(1000)).astype(np.float32))[:, None]


def keys(count: int) -> Keys:
    return item_keys(1, 2, np.arange(count))


def signal(count: int) -> Signal:
    """Row i holds 1000 i in all its samples."""
    wave = (1000.0 * torch.arange(count)[:, None]).expand(count, SAMPLES).clone()
    return Signal(wave, torch.full((count,), SAMPLES), keys(count), np.arange(count))


def run(augmentation: Augmentation, batch: Signal) -> Signal:
    """Reads and applies; everything that was read must be used up, and the keys of the rows known beforehand."""
    material = Material()
    expected = augmentation.read(batch.key, SAMPLES, material)
    left = iter(material.tensors)
    out = augmentation(batch, left)
    assert list(left) == []
    assert np.array_equal(out.key, expected)
    assert len(out.waveform) == len(out.lengths) == len(out.key) == len(out.source)
    return out


def part(batch: Signal, rows: slice) -> Signal:
    return Signal(batch.waveform[rows], batch.lengths[rows], batch.key[rows], batch.source[rows])


def everything() -> Augmentation:
    """All kinds of composition within one another."""
    return prepared(
        Sequence(
            {
                "first": AddFetched(0.5, 0.1),
                "either": OneOf(
                    0.8,
                    {
                        "fetched": AddFetched(0.7, 0.2),
                        "chain": Sequence({"a": AddDraw(0.5), "b": AddFetched(0.9, 0.3)}),
                        "inner": OneOf(0.5, {"x": AddDraw(1.0), "y": AddFetched(1.0, 0.4)}, None),
                    },
                    {"fetched": 1.0, "chain": 2.0, "inner": 1.0},
                ),
                "copies": Parallel(
                    True,
                    {"more": Parallel(False, {"p": AddDraw(0.5), "q": AddFetched(0.5, 0.5)}), "draw": AddDraw(1.0)},
                ),
                "last": AddFetched(0.5, 0.6),
            }
        )
    )


def test_sequence_applies_its_steps_in_order() -> None:
    class Double(RowAugmentation):
        def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * waveform, lengths

    one = run(Sequence({"add": Add(1.0, 3.0), "double": Double(1.0)}), signal(2))
    other = run(Sequence({"double": Double(1.0), "add": Add(1.0, 3.0)}), signal(2))
    assert one.waveform[:, 0].tolist() == [6, 2006]
    assert other.waveform[:, 0].tolist() == [3, 2003]


def test_an_empty_sequence_and_probabilities_of_zero_and_one() -> None:
    batch = signal(500)
    assert run(Sequence({}), batch) is batch
    assert run(AddFetched(0.0, 1.0), batch) is batch
    assert torch.equal(run(Add(1.0, 2.0), batch).waveform, batch.waveform + 2)
    assert torch.equal(run(OneOf(0.0, {"a": Add(1.0, 1.0)}, None), batch).waveform, batch.waveform)
    assert torch.equal(run(OneOf(1.0, {"a": Add(1.0, 1.0)}, None), batch).waveform, batch.waveform + 1)
    with pytest.raises(ValueError, match="probability"):
        Add(-0.1, 1.0)


def test_the_share_of_rows_that_are_changed() -> None:
    batch = signal(10_000)
    changed = run(Add(0.3, 1.0), batch).waveform[:, 0] - batch.waveform[:, 0]
    assert changed.mean().item() == pytest.approx(0.3, abs=0.015)
    assert set(changed.tolist()) == {0.0, 1.0}


def test_the_shares_of_one_of() -> None:
    choices = {"a": Add(1.0, 1.0), "b": Add(1.0, 2.0), "c": Add(0.5, 3.0)}
    batch = signal(20_000)._replace(waveform=torch.zeros(20_000, SAMPLES))
    # Not drawn, or drawn for "c", which leaves every second row: 0.4 and half of c's share.
    for weights, expected in (
        (None, [0.4 + 0.1, 0.2, 0.2, 0.1]),
        ({"a": 3.0, "c": 4.0, "b": 1.0}, [0.4 + 0.15, 0.225, 0.075, 0.15]),
    ):
        out = run(prepared(OneOf(0.6, choices, weights)), batch).waveform - batch.waveform
        counts = np.bincount(out[:, 0].long().numpy(), minlength=4) / 20_000
        assert counts == pytest.approx(expected, abs=0.012)


def test_one_of_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="weights must be given for a, b, got a, x"):
        OneOf(1.0, {"a": Add(1.0, 1.0), "b": Add(1.0, 1.0)}, {"a": 1.0, "x": 1.0})
    with pytest.raises(ValueError, match=r"choices\.b: Parallel"):
        OneOf(1.0, {"b": Sequence({"c": Parallel(True, {"d": Add(1.0, 1.0)})})}, None)
    with pytest.raises(ValueError, match="choices: "):
        OneOf(1.0, {}, None)


def test_parallel_maps_rows_to_the_batch() -> None:
    out = run(prepared(Parallel(True, {"a": Add(1.0, 1.0), "b": Add(1.0, 2.0)})), signal(3))
    assert out.waveform[:, 0].tolist() == [0, 1000, 2000, 1, 1001, 2001, 2, 1002, 2002]
    assert out.source.tolist() == [0, 1, 2] * 3
    assert len(set(out.key.tolist())) == 9
    without = run(prepared(Parallel(False, {"a": Add(1.0, 1.0), "b": Add(1.0, 2.0)})), signal(3))
    assert torch.equal(without.waveform, out.waveform[3:])
    assert np.array_equal(without.key, out.key[3:])


def test_labels_after_any_composition() -> None:
    """Row i began as 1000 i, and what is added stays far below: the thousands are the source."""
    out = run(prepared(Parallel(True, {"a": Parallel(False, {"x": AddDraw(1.0), "y": AddDraw(1.0)})})), signal(50))
    assert len(out.waveform) == 150
    assert np.array_equal((out.waveform[:, 0] // 1000).long().numpy(), out.source)


def test_parts_may_have_any_name() -> None:
    names = ["type", "double", "values", "copy", "index", "read"]
    out = run(prepared(Sequence({name: Add(1.0, 1.0) for name in names})), signal(2))
    assert out.waveform[:, 0].tolist() == [6, 1006]


def test_parallel_without_anything() -> None:
    batch = signal(3)
    assert torch.equal(run(Parallel(True, {}), batch).waveform, batch.waveform)
    with pytest.raises(ValueError, match="branches: "):
        Parallel(False, {})


def test_copies_of_copies_have_keys_of_their_own() -> None:
    """Two Parallels one after the other: four rows of each, and all of them draw for themselves."""
    copies = {"first": Parallel(True, {"a": Add(1.0, 1.0)}), "second": Parallel(True, {"b": Add(1.0, 2.0)})}
    out = run(prepared(Sequence({**copies, "draw": AddDraw(1.0)})), signal(10))
    assert len(set(out.key.tolist())) == 40
    assert len(set((out.waveform[:, 0] % 1).tolist())) > 35


def test_draws_do_not_depend_on_how_the_batch_is_split() -> None:
    augmentation = everything()
    batch = signal(37)
    whole = run(augmentation, batch)
    rows_of_whole = zip(whole.source, whole.key, whole.waveform, strict=True)
    by_row = {(source, int(key)): wave for source, key, wave in rows_of_whole}
    assert len(by_row) == 4 * 37
    seen = 0
    for rows in (slice(0, 1), slice(1, 20), slice(20, 37)):
        out = run(augmentation, part(batch, rows))
        for source, key, wave in zip(out.source, out.key, out.waveform, strict=True):
            assert torch.equal(wave, by_row[source, int(key)])
            seen += 1
    assert seen == 4 * 37
    again = run(everything(), batch)
    assert torch.equal(again.waveform, whole.waveform)


def test_what_was_read_arrives_where_it_was_asked_for() -> None:
    """AddFetched itself checks whose material it gets; here it is asked in every place, and its failures kept."""
    material = Material()
    everything().read(keys(200), SAMPLES, material)
    assert {name for name, _ in material.bad} == {f"file0.{i}" for i in range(1, 7)}
    assert all(reason == "broken" for _, reason in material.bad)
    assert len(material.tensors) == 2 * len(material.bad)
    run(everything(), signal(200))


def test_each_part_draws_for_itself() -> None:
    augmentation = everything()
    indices = [module.index for module in augmentation.modules() if isinstance(module, Augmentation)]
    assert sorted(indices) == list(range(len(indices)))
    assert len(indices) == 16
    key = keys(5000)
    draws = np.array([m.uniform(key, 0) for m in augmentation.modules() if isinstance(m, Augmentation)])
    assert np.abs(np.corrcoef(draws) - np.eye(16)).max() < 0.06
    streams = np.array([augmentation.uniform(key, stream) for stream in (0, 1, 2, 63)])
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.06
    low, high = augmentation.uniform(key, 5, -3.0, 7.0).min(), augmentation.uniform(key, 5, -3.0, 7.0).max()
    assert -3 <= low < -2.9
    assert 6.9 < high < 7


def test_rows_that_get_shorter_are_silent_behind() -> None:
    batch = signal(40)
    out = run(prepared(Halve(0.5)), batch)
    shorter = out.lengths == SAMPLES // 2
    assert 5 < shorter.sum() < 35
    assert (out.waveform[shorter, SAMPLES // 2 :] == 0).all()
    assert torch.equal(out.waveform[shorter, : SAMPLES // 2], batch.waveform[shorter, : SAMPLES // 2] + 7)
    assert torch.equal(out.waveform[~shorter], batch.waveform[~shorter])
    assert torch.equal(batch.waveform, signal(40).waveform)  # never in place
    one_of = run(prepared(OneOf(1.0, {"halve": Halve(1.0)}, None)), batch)
    assert (one_of.lengths == SAMPLES // 2).all()
    assert (one_of.waveform[:, SAMPLES // 2 :] == 0).all()


def test_power_and_silence_by_hand() -> None:
    wave = torch.tensor([[1.0, -3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert power(wave, torch.tensor([2, 4, 0])).flatten().tolist() == pytest.approx([5.0, 4.0, 0.0])
    assert silence_behind(wave, torch.tensor([1, 3, 0]))[:2].tolist() == [[1, 0, 0, 0], [2, 2, 2, 0]]
    assert silence_behind(wave, torch.tensor([4, 5, 4])) is wave


def test_what_a_part_leaves_unread_is_noticed_here() -> None:
    """The helper of these tests can fail: material of another batch does not fit."""
    augmentation = prepared(AddFetched(1.0, 1.0))
    material = Material()
    augmentation.read(keys(3), SAMPLES, material)
    with pytest.raises(AssertionError):
        augmentation(part(signal(6), slice(3, 6)), iter(material.tensors))
