"""Batches are a function of (seed, epoch, item), whoever reads them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from spkexp.augment.augmentation import Material, RowAugmentation
from spkexp.augment.chain import prepared
from spkexp.counter import Keys, item_keys, uniform
from spkexp.data.dataset import Crops, Parts, Reading, WholeUtterances, loader
from spkexp.data.manifest import read_table
from spkexp.data.sampler import RandomSampler, SpeakerSampler, parts_of_batch
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError
from spkexp.meter import BadFiles
from tests.conftest import Corpus

READING = Reading(16_000, resample=False, mix_channels=False)


@pytest.fixture
def utterances(make_corpus: Corpus) -> Utterances:
    return Utterances.of(read_table(make_corpus(speakers=4, utterances=5), None), "speaker")


def parts(steps: range, world: int = 1, rank: int = 0, accumulate: int = 1) -> Parts:
    return Parts(RandomSampler(20, 8), 7, steps, accumulate, world, rank)


def crops_of(utterances: Utterances, seconds: float | None, short: str = "wrap", seed: int = 0) -> Crops:
    return Crops(utterances, READING, seconds, short, seed, one_copy=False, augmentation=None)  # type: ignore[arg-type]


def test_counter_is_uniform_and_independent_of_company() -> None:
    items = np.arange(20_000)
    key = item_keys(1, 2, items)
    draws = uniform(key, 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(np.histogram(draws, 20, (0, 1))[0], 1000, atol=150)
    np.testing.assert_array_equal(uniform(item_keys(1, 2, items[500:510]), 0), draws[500:510])
    others = [item_keys(2, 2, items), item_keys(1, 3, items), item_keys(1, 2, items, 1)]
    for other in (*(uniform(k, 0) for k in others), uniform(key, 1), draws[::-1]):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03


def test_parts_make_up_the_batch_for_any_number_of_processes() -> None:
    batch = np.arange(24)
    for world, accumulate in ((1, 1), (2, 1), (2, 3), (4, 2)):
        shared = [parts_of_batch(batch, accumulate, world, rank) for rank in range(world)]
        ordered = [shared[rank][part] for part in range(accumulate) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(ordered), batch)


def test_resumed_batches_are_those_of_an_unbroken_run() -> None:
    everything = list(parts(range(10)))
    assert list(parts(range(7, 10))) == everything[7:]
    assert {epoch for epoch, _, _ in everything[2]} == {1}
    halves = [list(parts(range(10), world=2, rank=rank)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == everything


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers(utterances: Utterances, workers: int) -> None:
    crops = crops_of(utterances, 0.4, seed=3)
    alone = list(loader(crops, parts(range(4)), 0, pin=False))
    for expected, batch in zip(alone, loader(crops, parts(range(4)), workers, pin=False), strict=True):
        for field in ("waveform", "lengths", "label", "item", "key"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))


def test_crops_are_stretches_of_the_file(utterances: Utterances) -> None:
    crops = crops_of(utterances, 0.25)
    starts = set()
    for epoch in range(12):
        batch = crops.__getitems__([(epoch, 3, 0)])
        wave, _ = soundfile.read(utterances.path[3], dtype="float32")
        windows = np.lib.stride_tricks.sliding_window_view(wave, 4000)
        found = np.flatnonzero((windows == batch.waveform[0].numpy()).all(axis=1))
        assert len(found) == 1
        starts.add(int(found[0]))
    assert len(starts) > 8


@pytest.mark.parametrize("short", ["wrap", "pad"])
def test_utterance_shorter_than_the_crop(utterances: Utterances, short: str) -> None:
    crops = crops_of(utterances, 2.0, short)
    batch = crops.__getitems__([(0, 0, 0), (0, 1, 0)])
    wave, _ = soundfile.read(utterances.path[0], dtype="float32")
    row = batch.waveform[0].numpy()
    assert len(row) == 32_000
    if short == "wrap":
        assert batch.lengths.tolist() == [32_000, 32_000]
        np.testing.assert_array_equal(row, np.tile(wave, 4)[:32_000])
    else:
        assert batch.lengths[0] == len(wave)
        np.testing.assert_array_equal(row[: len(wave)], wave)
        assert not row[len(wave) :].any()


def test_unreadable_file_gives_way_and_is_reported(utterances: Utterances) -> None:
    Path(utterances.path[2]).write_bytes(b"RIFF")
    crops = crops_of(utterances, 0.4)
    batch = crops.__getitems__([(0, 1, 0), (0, 2, 0)])
    assert batch.item[0] == 1
    assert batch.item[1] != 2
    assert batch.label[1] == utterances.label[batch.item[1]]
    assert [entry.id for entry in batch.bad] == [utterances.id[2]]
    assert utterances.path[2] in batch.bad[0].reason
    again = crops.__getitems__([(0, 2, 0), (0, 5, 0)])
    assert again.item[0] == batch.item[1]  # the substitute too is a function of the item
    for item in range(len(utterances)):
        Path(utterances.path[item]).unlink(missing_ok=True)
    batch = crops.__getitems__([(0, 0, 0)])
    assert len(batch.item) == len(batch.label) == 0
    assert len(batch.bad) == 21  # the utterance and 20 others that were drawn in its place
    lenient = BadFiles("skip", 1.0, len(utterances))
    with pytest.raises(UserError, match=r"no such file.* all that were drawn in its place"):
        lenient.add(batch)


def test_an_unreadable_file_counts_once_for_all_its_copies(utterances: Utterances) -> None:
    Path(utterances.path[2]).write_bytes(b"RIFF")
    copies = utterances.with_speed_copies([0.9, 1.1], own_labels=True)
    batch = crops_of(copies, 0.4).__getitems__([(0, 2, 0), (0, 22, 0), (0, 42, 0)])
    assert {entry.id for entry in batch.bad} == {utterances.id[2]}


def test_whole_utterances_are_padded_behind(utterances: Utterances) -> None:
    Path(utterances.path[1]).unlink()
    batch = WholeUtterances(utterances, READING).__getitems__([0, 1, 2])
    assert batch.item.tolist() == [0, 2]
    assert [entry.id for entry in batch.bad] == [utterances.id[1]]
    assert batch.lengths.tolist() == [round(utterances.duration[i] * 16_000) for i in (0, 2)]
    assert not batch.waveform[0, batch.lengths[0] :].any()
    assert len(WholeUtterances(utterances, READING).__getitems__([1]).item) == 0


def test_training_on_whole_utterances_pads_to_the_longest(utterances: Utterances) -> None:
    copies = utterances.with_speed_copies([0.9], own_labels=True)
    batch = crops_of(copies, None).__getitems__([(0, 0, 0), (0, 22, 0)])
    waves = [soundfile.read(copies.path[item], dtype="float32")[0] for item in (0, 22)]
    assert batch.lengths.tolist() == [len(waves[0]), round(len(waves[1]) / 0.9)]
    assert batch.waveform.shape == (2, int(batch.lengths.max()))
    np.testing.assert_array_equal(batch.waveform[0, : len(waves[0])], waves[0])
    assert not batch.waveform[0, len(waves[0]) :].any()


def test_one_copy_draws_among_the_speeds_with_the_label_of_each(utterances: Utterances) -> None:
    copies = utterances.with_speed_copies([0.9, 1.1], own_labels=True)
    crops = Crops(copies, READING, 0.3, "wrap", 0, one_copy=True, augmentation=None)
    used = [crops.__getitems__([(epoch, item, 0) for item in range(20)]) for epoch in range(30)]
    items = torch.stack([batch.item for batch in used])
    assert (items % 20 == torch.arange(20)).all()
    np.testing.assert_allclose(np.bincount((items // 20).flatten(), minlength=3) / 600, 1 / 3, atol=0.07)
    labels = torch.stack([batch.label for batch in used])
    np.testing.assert_array_equal(labels, copies.label[items])
    assert labels.max() == 11


def test_a_repeated_utterance_is_cropped_anew(utterances: Utterances) -> None:
    sampler = SpeakerSampler(utterances.label, 8, 0.1, 2, epoch_hours=40 * 0.1 / 3600)
    steps = list(Parts(sampler, 0, range(5), 1, 1, 0))
    keyed = [key for part in steps for key in part]
    assert len(keyed) == len(set(keyed)) == 40
    assert len({item for _, item, _ in keyed}) <= 20
    item = max({item for _, item, _ in keyed}, key=[item for _, item, _ in keyed].count)
    batch = crops_of(utterances, 0.1).__getitems__([key for key in keyed if key[1] == item])
    assert len({row.numpy().tobytes() for row in batch.waveform}) == len(batch.item) > 1


class Offset(RowAugmentation):
    """Adds to a row the number that the worker read for it."""

    num_material = 1

    def fetch(self, key: Keys, samples: int, material: Material) -> list[Tensor]:
        if (uniform(key, 3) < 0.1).any():
            material.bad.append(("noise.wav", "broken"))
        return [torch.from_numpy(uniform(key, 5))]

    def change(self, waveform: Tensor, lengths: Tensor, key: Keys, *material: Tensor) -> tuple[Tensor, Tensor]:
        return waveform + material[0][:, None], lengths


@pytest.mark.parametrize("workers", [0, 2])
def test_material_is_read_with_the_batch(utterances: Utterances, workers: int) -> None:
    augmentation = prepared(Offset(0.5))
    crops = Crops(utterances, READING, 0.2, "wrap", 0, one_copy=False, augmentation=augmentation)
    batches = loader(crops, parts(range(3)), workers, pin=False)
    if workers:  # what the banks hold in memory is shared by no other way of starting them
        assert batches.multiprocessing_context.get_start_method() == "fork"
    for batch in batches:
        keys = batch.key.numpy().view(np.uint64)
        rows = augmentation.rows(keys)
        assert len(batch.material) == (1 if len(rows) else 0)
        np.testing.assert_array_equal(batch.material[0], uniform(keys[rows], 5))
        assert bool(batch.bad) == bool((uniform(keys[rows], 3) < 0.1).any())
