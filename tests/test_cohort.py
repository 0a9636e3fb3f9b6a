"""Cohorts: seeded, each speaker's share its own, and a list that reads back as it was written."""

from pathlib import Path

import polars as pl
import pytest

from spkexp.data.cohort import cohort, read_cohort, write_cohort
from spkexp.errors import UserError


def table_of(sizes: dict[str, int]) -> pl.DataFrame:
    rows = [(f"{name}/{n:03d}", name, 1.0 + n) for name, size in sizes.items() for n in range(size)]
    return pl.DataFrame(rows, schema=["id", "speaker", "duration"], orient="row")


SIZES = {f"s{n:02d}": 12 for n in range(20)}


def by_speaker(rows: pl.DataFrame) -> dict[str, list[str]]:
    return {name: part["id"].to_list() for (name,), part in rows.group_by(["speaker"], maintain_order=True)}


def test_as_many_as_asked_for() -> None:
    chosen = by_speaker(cohort(table_of(SIZES), "speaker", 3, 7, seed=0))
    assert len(chosen) == 7
    for name, ids in chosen.items():
        assert len(set(ids)) == 3
        assert ids == sorted(ids)
        assert all(id_.startswith(f"{name}/") for id_ in ids)
    everything = cohort(table_of(SIZES), "speaker", None, None, seed=0)
    assert sorted(everything["id"]) == sorted(table_of(SIZES)["id"])
    few = by_speaker(cohort(table_of({"a": 2, "b": 9}), "speaker", 5, None, seed=0))
    assert {name: len(ids) for name, ids in few.items()} == {"a": 2, "b": 5}


def test_seeded_and_independent_of_others() -> None:
    table = table_of(SIZES)
    chosen = by_speaker(cohort(table, "speaker", 3, None, seed=1))
    assert chosen == by_speaker(cohort(table.sample(fraction=1.0, shuffle=True, seed=3), "speaker", 3, None, seed=1))
    assert chosen != by_speaker(cohort(table, "speaker", 3, None, seed=2))
    more = by_speaker(cohort(table_of({"a new one": 4, **SIZES, "zz": 40}), "speaker", 3, None, seed=1))
    assert {name: more[name] for name in chosen} == chosen
    # Fewer speakers are a part of more, with the same utterances; the seed chooses them.
    five, eight = (by_speaker(cohort(table, "speaker", 3, n, seed=1)) for n in (5, 8))
    assert five.items() <= eight.items() <= chosen.items()
    assert set(five) != set(by_speaker(cohort(table, "speaker", 3, 5, seed=2)))


def test_every_utterance_can_be_drawn() -> None:
    """Over seeds, uniformly: 400 draws of 3 among 12 give each about 100 (binomial, deviation 8.7)."""
    table = table_of({"a": 12})
    counts = pl.concat([cohort(table, "speaker", 3, None, seed)["id"] for seed in range(400)]).value_counts()
    assert len(counts) == 12
    assert counts["count"].is_between(65, 135).all()


def test_list_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "lists ü" / "cohort"
    chosen = write_cohort(file, table_of(SIZES), "speaker", 2, 4, 0)
    assert chosen.columns == ["id", "speaker", "duration"]
    assert read_cohort(file).rows() == chosen.select("speaker", "id").rows()
    first = file.read_text().splitlines()[0].split()
    assert first == [chosen["speaker"][0], *chosen["id"][:2]]
    assert [entry.name for entry in file.parent.iterdir()] == ["cohort"]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="21 speakers are asked for, and the table has 20"):
        cohort(table_of(SIZES), "speaker", 3, 21, 0)
    with pytest.raises(UserError, match="utterances_per_speaker must be > 0, got 0"):
        cohort(table_of(SIZES), "speaker", 0, None, 0)
    with pytest.raises(UserError, match="'two words' cannot stand in a list"):
        write_cohort(tmp_path / "c", table_of({"two words": 2}), "speaker", 1, None, 0)
    with pytest.raises(UserError, match="no such cohort list"):
        read_cohort(tmp_path / "nowhere")
    (tmp_path / "bad").write_text("s1 a\ns2\n")
    with pytest.raises(UserError, match="bad:2: expected 'NAME utterance"):
        read_cohort(tmp_path / "bad")
