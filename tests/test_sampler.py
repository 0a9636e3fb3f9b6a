"""What makes up an epoch, worked out by hand or counted."""

import time

import numpy as np
import pytest

from spkexp.data.sampler import BucketSampler, RandomSampler, Sampler, ShardSampler, SpeakerSampler, WeightedSampler
from spkexp.errors import UserError

# Speaker 0 has 60 utterances, speaker 1 has 30, speakers 2 to 11 have 3 each.
LABEL = np.repeat(np.arange(12, dtype=np.int32), [60, 30] + [3] * 10)
N = len(LABEL)
DURATION = np.linspace(1.0, 12.9, N)[np.random.default_rng(0).permutation(N)]
SHARD = (np.arange(N) // 10).astype(np.int32)


def samplers() -> list[Sampler]:
    return [
        RandomSampler(N, 8),
        WeightedSampler(LABEL, 8, 1.0),
        SpeakerSampler(LABEL, 8, 2.0, 2, None),
        BucketSampler(DURATION, 8, None, 40.0, 5, 2),
        ShardSampler(SHARD, 8, 3),
    ]


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: type(sampler).__name__)
def test_an_epoch_is_a_function_of_seed_and_number(sampler: Sampler) -> None:
    first = sampler.epoch(3, 1)
    assert len(first) == sampler.steps_per_epoch
    assert sum(len(batch) for batch in first) == sampler.utterances_per_epoch
    sampler.epoch(3, 0)  # asked in between: nothing is remembered
    for again, batch in zip(sampler.epoch(3, 1), first, strict=True):
        np.testing.assert_array_equal(again, batch)
    for other in (sampler.epoch(3, 2), sampler.epoch(4, 1)):
        assert len(other) == len(first)
        assert any(len(a) != len(b) or (a != b).any() for a, b in zip(other, first, strict=True))
    items = np.concatenate(list(first))
    assert items.min() >= 0
    assert items.max() < N
    if not sampler.repeats:
        assert len(set(items.tolist())) == len(items)


def test_random_covers_everything_but_the_rest() -> None:
    sampler = RandomSampler(20, 6)
    assert (sampler.steps_per_epoch, sampler.utterances_per_epoch) == (3, 18)
    missed = {frozenset(range(20)) - frozenset(np.concatenate(list(sampler.epoch(0, e))).tolist()) for e in range(5)}
    assert all(len(left) == 2 for left in missed)
    assert len(missed) > 2
    with pytest.raises(UserError, match=r"trainer.batch_size: 32 is more than the 20 training utterances"):
        RandomSampler(20, 32)


@pytest.mark.parametrize(("balance", "expected"), [(1.0, 1 / 12), (0.0, 60 / 120), (0.5, 60**0.5)])
def test_weights_by_speaker(balance: float, expected: float) -> None:
    if balance == 0.5:
        expected /= 60**0.5 + 30**0.5 + 10 * 3**0.5
    sampler = WeightedSampler(LABEL, 8, balance)
    drawn = np.concatenate([np.concatenate(list(sampler.epoch(0, epoch))) for epoch in range(100)])
    assert np.mean(LABEL[drawn] == 0) == pytest.approx(expected, abs=0.015)
    counts = np.bincount(drawn, minlength=N)[:60]  # within a speaker all come equally often
    assert counts.max() < 1.8 * counts.mean()


def test_batches_of_speakers() -> None:
    sampler = SpeakerSampler(LABEL, 10, 2.0, 2, epoch_hours=1.0)
    assert sampler.steps_per_epoch == 180  # 1,800 crops of 2 s
    batches = sampler.epoch(0, 0)
    for batch in batches:
        pairs = batch.reshape(5, 2)
        assert (LABEL[pairs[:, 0]] == LABEL[pairs[:, 1]]).all()
        assert len(set(LABEL[pairs[:, 0]])) == 5
        assert (pairs[:, 0] != pairs[:, 1]).all()
    # Two batches of five speakers are a turn of twelve: nobody comes twice in it.
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(set(LABEL[np.concatenate([first, second])])) == 10
    speakers = np.bincount(LABEL[np.concatenate(list(batches))], minlength=12)
    assert speakers.min() > 0.75 * speakers.mean()
    # All pairs of a speaker's three utterances come about equally often.
    pairs = [tuple(sorted(pair)) for batch in batches for pair in batch.reshape(-1, 2).tolist() if LABEL[pair[0]] == 5]
    assert set(pairs) == {(99, 100), (99, 101), (100, 101)}


def test_a_speaker_with_too_few_utterances_gives_them_again() -> None:
    label = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1], dtype=np.int32)
    batch = SpeakerSampler(label, 8, 2.0, 4, epoch_hours=8 * 2 / 3600).epoch(0, 0)[0].reshape(2, 4)
    few = batch[label[batch[:, 0]] == 0][0]
    assert set(few.tolist()) == {0, 1, 2}
    assert len(set(batch[label[batch[:, 0]] == 1][0].tolist())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABEL, 9, 2.0, 2, None), r"trainer.batch_size: 9 is no multiple of data.sampler.utterances_per_speaker=2"),
        ((LABEL, 64, 2.0, 2, None), r"needs 32 speakers, and there are 12; choose a smaller trainer.batch_size"),
        ((LABEL, 8, None, 2, 1.0), r"data.sampler.epoch_hours: counts crops, so it needs data.crop_seconds"),
        ((LABEL, 8, 2.0, 2, 0.002), r"epoch_hours: 0.002 h are 4 crops of .*=2, too few for one batch of .*=8; choose"),
    ],
)
def test_impossible_batches_of_speakers(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpeakerSampler(*arguments)


def test_buckets_keep_the_budget() -> None:
    sampler = BucketSampler(DURATION, 16, None, 40.0, 5, 2)
    for batch in sampler.epoch(0, 0):
        assert len(batch) % 2 == 0
        assert len(batch) <= 16
        assert DURATION[batch].max() * len(batch) <= 40.0
    # The buckets are 24 utterances of 1 to 3.3 s, to 5.7, 8.1, 10.5 and 12.9 s: the longest of each bounds its batches.
    lengths = sorted({len(batch) for batch in sampler.epoch(0, 0)})
    assert lengths == [2, 4, 6, 12]
    padding = sum(DURATION[b].max() * len(b) - DURATION[b].sum() for b in sampler.epoch(0, 0))
    assert padding < 0.25 * DURATION.sum()
    with pytest.raises(UserError, match=r"data.sampler.batch_seconds: 20 s cannot hold .*multiple_of=2 .* 12.9 s"):
        BucketSampler(DURATION, 16, None, 20.0, 5, 2)
    with pytest.raises(UserError, match=r"data.sampler.multiple_of: 3 .* do not fill one batch of 4; choose at most 3"):
        BucketSampler(DURATION[:3], 16, None, 400.0, 10, 4)
    with pytest.raises(UserError, match=r"crops are all of 2 s; set data.crop_seconds=null"):
        BucketSampler(DURATION, 16, 2.0, 40.0, 5, 2)


@pytest.mark.parametrize(("num", "buckets", "multiple"), [(960, 20, 4), (60, 20, 4), (21, 9, 4), (5, 9, 1)])
def test_buckets_leave_no_utterance_out_for_ever(num: int, buckets: int, multiple: int) -> None:
    """A bucket may hold less than the seconds and trainer.batch_size allow."""
    duration = np.random.default_rng(0).uniform(1, 4, num)
    sampler = BucketSampler(duration, 64, None, 120.0, buckets, multiple)
    seen = set()
    for epoch in range(40):
        for batch in sampler.epoch(0, epoch):
            assert len(batch) % multiple == 0
            seen |= set(batch.tolist())
    assert seen == set(range(num))
    assert sampler.utterances_per_epoch > num / 2


def test_shards_are_read_few_at_a_time() -> None:
    sampler = ShardSampler(SHARD, 10, 3)
    order = np.concatenate(list(sampler.epoch(0, 0)))
    assert sorted(order.tolist()) == list(range(N))
    windows = [set(SHARD[order[first : first + 30]].tolist()) for first in range(0, N, 30)]
    assert [len(window) for window in windows] == [3, 3, 3, 3]
    assert len(set(SHARD[order[:10]])) > 1  # shuffled together
    assert windows != [
        set(SHARD[np.concatenate(list(sampler.epoch(0, 1)))[f : f + 30]].tolist()) for f in (0, 30, 60, 90)
    ]
    with pytest.raises(UserError, match=r"needs utterances in shards"):
        ShardSampler(None, 10, 3)


def test_a_million_utterances_are_shuffled_within_seconds() -> None:
    """Going on in the middle of an epoch costs its order alone, not what came before."""
    begin = time.process_time()
    label = (np.arange(1_100_000) // 180).astype(np.int32)
    for sampler in (RandomSampler(len(label), 512), SpeakerSampler(label, 512, 2.0, 2, None)):
        assert len(sampler.epoch(0, 7)[2000]) == 512
    assert time.process_time() - begin < 10  # a tenth of that where nothing else runs; a loop over utterances is more
