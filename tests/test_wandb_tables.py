"""Tables of results for wandb: which utterances are shown, and what is left out."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spkexp import wandb_tables
from spkexp.wandb_tables import confusion_content, embeddings_content, results_content
from tests.test_wandb_run import scored


@pytest.mark.parametrize(
    ("speakers", "each", "shown_speakers", "shown_each"),
    [(4, 10, 4, 10), (200, 30, 50, 20), (5, 400, 5, 200), (3, 1000, 3, 333), (2000, 1, 50, 1)],
)
def test_embeddings_of_whole_speakers(speakers: int, each: int, shown_speakers: int, shown_each: int) -> None:
    rows = embeddings_content(scored(speakers, each), "speaker").rows
    counts = Counter(row[1] for row in rows)
    assert len(rows) <= wandb_tables.EMBEDDINGS
    # One utterance, the second, could not be read.
    assert (len(counts), max(counts.values())) == (shown_speakers, shown_each)
    assert len({row[0] for row in rows}) == len(rows)
    assert "s0-1" not in {row[0] for row in rows}
    names = sorted({f"s{s}" for s in range(speakers)})
    assert {names[0]} <= set(counts) or speakers == 2000
    assert names[-1] in counts


def test_embeddings_name_no_speaker_that_is_not_known() -> None:
    one = scored(2, 2, known=False)
    assert embeddings_content(one, "speaker").columns == ["id", "speaker", "duration", "e0", "e1"]  # it has no trials
    from dataclasses import replace

    from spkexp.data.trials import Trials

    trials = Trials(np.array([0]), np.array([2]), np.array([False]), None)
    blind = replace(one, set=replace(one.set, trials=trials))
    assert embeddings_content(blind, "speaker").columns == ["id", "duration", "e0", "e1"]


def test_results_of_classes() -> None:
    entry = {"num_utterances": 3, "accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "macro_f1": 0.4}
    entry |= {"majority": {"class": "a", "accuracy": 0.3, "macro_f1": 0.2}, "classes": {"a": {"f1": 1.0}}}
    table = results_content({"trials": {"val": entry}})
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "trials": "val",
        "num_utterances": 3,
        "accuracy": 0.5,
        "accuracy_ci95 low": 0.4,
        "accuracy_ci95 high": 0.6,
        "macro_f1": 0.4,
        "majority accuracy": 0.3,
        "majority macro_f1": 0.2,
    }


def test_only_the_largest_confusions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "CONFUSIONS", 2)
    file = tmp_path / "confusion-val.csv"
    file.write_text("true \\ predicted,a,b\na,1,2\nb,3,0\n")
    assert confusion_content(file).rows == [["b", "a", 3], ["a", "b", 2]]
