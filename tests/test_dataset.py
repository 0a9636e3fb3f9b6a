"""Batches are a function of (seed, epoch, item), whoever reads them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from spkexp.counter import uniform
from spkexp.data.dataset import Crops, Parts, Reading, WholeUtterances, loader
from spkexp.data.manifest import Utterances, read_table
from spkexp.data.sampler import RandomSampler, parts_of_batch
from spkexp.errors import UserError
from spkexp.meter import BadFiles
from tests.conftest import Corpus

READING = Reading(16_000, resample=False, mix_channels=False)


@pytest.fixture
def utterances(make_corpus: Corpus) -> Utterances:
    return Utterances.of(read_table(make_corpus(speakers=4, utterances=5), None), "speaker")


def parts(steps: range, world: int = 1, rank: int = 0, accumulate: int = 1) -> Parts:
    return Parts(RandomSampler(20), 7, 8, steps, 2, accumulate, world, rank)


def test_counter_is_uniform_and_independent_of_company() -> None:
    items = np.arange(20_000)
    draws = uniform(1, 2, items, 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(np.histogram(draws, 20, (0, 1))[0], 1000, atol=150)
    np.testing.assert_array_equal(uniform(1, 2, items[500:510], 0), draws[500:510])
    for other in (uniform(2, 2, items, 0), uniform(1, 3, items, 0), uniform(1, 2, items, 1), draws[::-1]):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03


def test_an_epoch_is_every_utterance_once() -> None:
    sampler = RandomSampler(20)
    first, second = sampler.epoch(0, 0), sampler.epoch(0, 1)
    assert sorted(first) == sorted(second) == list(range(20))
    assert (first != second).any()


def test_parts_make_up_the_batch_for_any_number_of_processes() -> None:
    batch = np.arange(24)
    for world, accumulate in ((1, 1), (2, 1), (2, 3), (4, 2)):
        shared = [parts_of_batch(batch, accumulate, world, rank) for rank in range(world)]
        ordered = [shared[rank][part] for part in range(accumulate) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(ordered), batch)


def test_resumed_batches_are_those_of_an_unbroken_run() -> None:
    everything = list(parts(range(10)))
    assert list(parts(range(7, 10))) == everything[7:]
    assert {epoch for epoch, _ in everything[2]} == {1}
    halves = [list(parts(range(10), world=2, rank=rank)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == everything


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers(utterances: Utterances, workers: int) -> None:
    crops = Crops(utterances, READING, 0.4, "wrap", seed=3)
    alone = list(loader(crops, parts(range(4)), 0, pin=False))
    for expected, batch in zip(alone, loader(crops, parts(range(4)), workers, pin=False), strict=True):
        for field in ("waveform", "lengths", "label", "item"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))


def test_crops_are_stretches_of_the_file(utterances: Utterances) -> None:
    crops = Crops(utterances, READING, 0.25, "wrap", seed=0)
    starts = set()
    for epoch in range(12):
        batch = crops.__getitems__([(epoch, 3)])
        wave, _ = soundfile.read(utterances.path[3], dtype="float32")
        windows = np.lib.stride_tricks.sliding_window_view(wave, 4000)
        found = np.flatnonzero((windows == batch.waveform[0].numpy()).all(axis=1))
        assert len(found) == 1
        starts.add(int(found[0]))
    assert len(starts) > 8


@pytest.mark.parametrize("short", ["wrap", "pad"])
def test_utterance_shorter_than_the_crop(utterances: Utterances, short: str) -> None:
    crops = Crops(utterances, READING, 2.0, short, seed=0)
    batch = crops.__getitems__([(0, 0), (0, 1)])
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
    crops = Crops(utterances, READING, 0.4, "wrap", seed=0)
    batch = crops.__getitems__([(0, 1), (0, 2)])
    assert batch.item[0] == 1
    assert batch.item[1] != 2
    assert batch.label[1] == utterances.label[batch.item[1]]
    assert [entry.id for entry in batch.bad] == [utterances.id[2]]
    assert utterances.path[2] in batch.bad[0].reason
    again = crops.__getitems__([(0, 2), (0, 5)])
    assert again.item[0] == batch.item[1]  # the substitute too is a function of the item
    for item in range(len(utterances)):
        Path(utterances.path[item]).unlink(missing_ok=True)
    batch = crops.__getitems__([(0, 0)])
    assert len(batch.item) == len(batch.label) == 0
    assert len(batch.bad) == 21  # the utterance and 20 others that were drawn in its place
    lenient = BadFiles("skip", 1.0, len(utterances))
    with pytest.raises(UserError, match=r"no such file.* all that were drawn in its place"):
        lenient.add(batch)


def test_whole_utterances_are_padded_behind(utterances: Utterances) -> None:
    Path(utterances.path[1]).unlink()
    batch = WholeUtterances(utterances, READING).__getitems__([0, 1, 2])
    assert batch.item.tolist() == [0, 2]
    assert [entry.id for entry in batch.bad] == [utterances.id[1]]
    assert batch.lengths.tolist() == [round(utterances.duration[i] * 16_000) for i in (0, 2)]
    assert not batch.waveform[0, batch.lengths[0] :].any()
    assert len(WholeUtterances(utterances, READING).__getitems__([1]).item) == 0
