"""Splits and trials: disjoint where they must be, seeded, and exactly the pairs they promise."""

import logging
from collections import Counter

import numpy as np
import polars as pl
import pytest

from spkexp.data.split import by_speaker, by_utterance, split_table
from spkexp.data.trials import make_trials
from spkexp.errors import UserError

SPEAKERS = np.repeat([f"s{i:02d}" for i in range(20)], 10)
SHARES = [0.8, 0.1, 0.1]


def test_by_speaker_is_disjoint_and_seeded() -> None:
    parts = by_speaker(SPEAKERS, SHARES, seed=3)
    of_speaker = {speaker: set(parts[speaker == SPEAKERS]) for speaker in np.unique(SPEAKERS)}
    assert all(len(found) == 1 for found in of_speaker.values())
    assert Counter(next(iter(found)) for found in of_speaker.values()) == {"train": 16, "val": 2, "test": 2}
    np.testing.assert_array_equal(parts, by_speaker(SPEAKERS, SHARES, seed=3))
    assert (parts != by_speaker(SPEAKERS, SHARES, seed=4)).any()
    assert set(by_speaker(SPEAKERS, [1.0, 0.0, 0.0], seed=0)) == {"train"}
    with pytest.raises(UserError, match="3 speakers are too few"):
        by_speaker(SPEAKERS[:30], SHARES, seed=0)


def test_by_utterance_keeps_every_speaker_in_train(caplog: pytest.LogCaptureFixture) -> None:
    speakers = np.concatenate([SPEAKERS, ["lonely"], ["pair", "pair"]])
    with caplog.at_level(logging.INFO):
        parts = by_utterance(speakers, SHARES, seed=0)
    assert Counter(parts[:200]) == {"train": 160, "val": 20, "test": 20}
    for name in ("val", "test"):
        assert set(speakers[parts == name]) <= set(speakers[parts == "train"])
    assert set(parts[200:]) == {"train"}
    assert "2 of 22 speakers have too few utterances" in caplog.text
    assert (parts != by_utterance(speakers, SHARES, seed=1)).any()


def test_the_column_is_honoured() -> None:
    table = pl.DataFrame({"id": list("abcd"), "speaker": list("wxyz"), "split": ["train", "Dev", "eval", "train"]})
    found = split_table(table, "speaker", "auto", SHARES, seed=0)
    assert {name: part["id"].to_list() for name, part in found.items()} == {
        "train": ["a", "d"],
        "val": ["b"],
        "test": ["c"],
    }
    with pytest.raises(UserError, match="'train-clean-100'"):
        split_table(table.with_columns(pl.lit("train-clean-100").alias("split")), "speaker", "auto", SHARES, 0)
    with pytest.raises(UserError, match="no column 'split'"):
        split_table(table.drop("split"), "speaker", "column", SHARES, 0)
    with pytest.raises(UserError, match="must add up to 1"):
        split_table(table, "speaker", "utterance", [0.5, 0.1, 0.1], 0)
    with pytest.raises(UserError, match="no utterance is left for training"):
        split_table(table.filter(pl.col("split") == "eval"), "speaker", "auto", SHARES, 0)


def test_all_pairs() -> None:
    label = np.array([0, 1, 0, 2])
    trials = make_trials(label, max_pairs=100, seed=0)
    pairs = set(zip(trials.enroll.tolist(), trials.test.tolist(), trials.target.tolist(), strict=True))
    assert pairs == {(0, 1, False), (0, 2, True), (0, 3, False), (1, 2, False), (1, 3, False), (2, 3, False)}
    assert make_trials(np.array([0, 1, 2]), 100, 0) is None
    assert make_trials(np.array([0, 0, 0]), 100, 0) is None


@pytest.mark.parametrize("seed", [0, 1])
def test_sample_is_balanced_and_without_repetition(seed: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 15, 30)))
    trials = make_trials(label, max_pairs=400, seed=seed)
    assert len(trials) == 400
    assert trials.target.sum() == 200
    np.testing.assert_array_equal(label[trials.enroll] == label[trials.test], trials.target)
    assert (trials.enroll < trials.test).all()
    assert len(set(zip(trials.enroll.tolist(), trials.test.tolist(), strict=True))) == 400
    again = make_trials(label, max_pairs=400, seed=seed)
    np.testing.assert_array_equal(again.enroll, trials.enroll)


def test_every_target_pair_can_be_drawn() -> None:
    label = np.array([1, 0, 1, 1, 0, 1, 2])
    everything = make_trials(label, max_pairs=1000, seed=0)
    targets = {(a, b) for a, b, t in zip(everything.enroll, everything.test, everything.target, strict=True) if t}
    # 7 target pairs of 21: asking for 20 takes them all.
    sampled = make_trials(label, max_pairs=20, seed=5)
    found = {(a, b) for a, b, t in zip(sampled.enroll, sampled.test, sampled.target, strict=True) if t}
    assert found == targets
    assert len(targets) == 7
