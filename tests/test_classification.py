"""Labels other than the speaker: what a classifier's answers are worth, the split, the plot, and a whole run."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
import torch

from spkexp import checkpoint, corpus
from spkexp.data.classes import labelled_set, require_no_lists
from spkexp.data.evaluation_set import EvaluationSet
from spkexp.data.load import require_label
from spkexp.data.split import by_speaker, split_table
from spkexp.data.utterances import Utterances
from spkexp.errors import UserError
from spkexp.evaluation import Request, evaluate
from spkexp.losses.head import Head
from spkexp.report.confusion import confusion_plot, write_classified
from spkexp.report.table import results_table
from spkexp.scoring.classification import (
    Classified,
    accuracy,
    closed_set,
    confusion_matrix,
    macro_f1,
    per_class,
    predict,
    summarise_classes,
)
from spkexp.scoring.statistics import accuracy_interval
from spkexp.scoring.verification import Scored
from spkexp.trainer import criterion
from tests.conftest import voice
from tests.test_train import TINY, run

# True a: 3 of 4 right, one taken for b. True b: 1 of 2 right, one taken for c. c: never true. d: neither.
EXPECTED = np.array([0, 0, 0, 0, 1, 1])
PREDICTED = np.array([0, 0, 0, 1, 1, 2])
COUNTS = np.array([[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_metrics_by_hand() -> None:
    np.testing.assert_array_equal(confusion_matrix(EXPECTED, PREDICTED, 4), COUNTS)
    assert accuracy(COUNTS) == pytest.approx(4 / 6)
    precision, recall, f1 = per_class(COUNTS)
    np.testing.assert_allclose(precision, [1, 1 / 2, 0, 0])
    np.testing.assert_allclose(recall, [3 / 4, 1 / 2, 0, 0])
    np.testing.assert_allclose(f1, [6 / 7, 1 / 2, 0, 0])
    assert macro_f1(COUNTS) == pytest.approx((6 / 7 + 1 / 2) / 2)  # c is answered but does not occur


def test_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    expected = rng.integers(1, 7, 200)
    predicted = np.where(rng.random(200) < 0.6, expected, rng.integers(0, 8, 200))
    counts = confusion_matrix(expected, predicted, 9)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(expected, predicted, labels=range(9)))
    reference = metrics.precision_recall_fscore_support(expected, predicted, labels=range(9), zero_division=0)
    for found, wanted in zip(per_class(counts), reference[:3], strict=True):
        np.testing.assert_allclose(found, wanted)
    wanted = metrics.f1_score(expected, predicted, labels=np.unique(expected), average="macro")
    assert macro_f1(counts) == pytest.approx(wanted)


def test_interval_resamples_speakers() -> None:
    """All of a speaker's utterances right or all wrong: 10 speakers are 10 observations, however often they speak."""
    speaker = np.repeat(np.arange(10), 50)
    correct = speaker >= 4
    bounds = accuracy_interval(correct, speaker, 2000)
    assert bounds is not None
    # The mean of 10 draws with p = .6 is binomial: its 2.5 % and 97.5 % quantiles are 3 and 9 of 10.
    assert bounds == (pytest.approx(0.3), pytest.approx(0.9))
    assert bounds == accuracy_interval(correct, speaker + 7, 2000)
    assert accuracy_interval(correct[:200], speaker[:200], 2000) is None  # four speakers
    assert accuracy_interval(correct, speaker, 0) is None


class Nearest(Head):
    """Scores are the embedding itself."""

    def loss(self, scores: torch.Tensor, label: torch.Tensor, step: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(scores, label)

    def scores(self, embedding: torch.Tensor) -> torch.Tensor:
        return embedding


def test_what_could_not_be_read_is_not_classified() -> None:
    embeddings = np.eye(3, dtype=np.float32)[np.arange(9_000) % 3]  # more than are classified at once
    embeddings[4_500] = np.nan
    found = predict(Nearest(), embeddings, torch.device("cpu"))
    assert found[4_500] == -1
    np.testing.assert_array_equal(np.delete(found, 4_500), np.delete(np.arange(9_000) % 3, 4_500))


class Unasked(Nearest):
    """Fails where it is asked."""

    def scores(self, embedding: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_speakers_that_were_not_trained_on_are_not_classified() -> None:
    utterances = Utterances.of(table([("a", "yes"), ("b", "no")]), "speaker")
    found = Scored(EvaluationSet("val", utterances, None, True), np.eye(2, dtype=np.float32), None, None, 0)
    answers = closed_set(Nearest(), found, "speaker", ["a", "b"], torch.device("cpu"), at=7)
    # Cross-entropy of scores (1, 0), the right one the higher: log(1 + e^-1).
    assert answers == {"loss": pytest.approx(np.log1p(np.exp(-1))), "accuracy": 1.0}
    assert closed_set(Unasked(), found, "speaker", ["a", "c"], torch.device("cpu"), at=7) == {}


def test_loss_and_accuracy_are_of_what_could_be_read() -> None:
    utterances = Utterances.of(table([("x", "?"), ("y", "?"), ("y", "?"), ("x", "?")]), "speaker")
    # Into u, y, x: right, right, (unreadable), wrong.
    scores = np.array([[0, 0, 2], [0, 3, 0], [np.nan] * 3, [4, 0, 0]], dtype=np.float32)
    found = Scored(EvaluationSet("val", utterances, None, True), scores, None, None, 0)
    answers = closed_set(Nearest(), found, "speaker", ["u", "y", "x"], torch.device("cpu"), at=0)
    lost = [np.log(2 + np.exp(2)) - 2, np.log(2 + np.exp(3)) - 3, np.log(2 + np.exp(4))]
    assert answers == {"loss": pytest.approx(np.mean(lost)), "accuracy": pytest.approx(2 / 3)}


def table(rows: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """Utterances of (speaker, keyword)."""
    names = [f"u{index}" for index in range(len(rows))]
    columns = {"id": names, "path": names, "duration": [1.0] * len(rows)}
    speakers, keywords = zip(*rows, strict=True)
    return pl.DataFrame({**columns, "speaker": speakers, "keyword": keywords})


def classified(predicted: list[int], speakers: list[str]) -> Classified:
    rows = table(list(zip(speakers, ["no", "no", "no", "yes", "yes"], strict=True)))
    found = labelled_set("val", rows, "keyword", ["no", "stop, now", "yes"])
    assert found is not None
    return Classified(found, "keyword", ["no", "stop, now", "yes"], np.array([0, 0, 0, 2, 2]), np.array(predicted))


def test_entry_of_results() -> None:
    entry = summarise_classes(classified([0, 0, 2, 2, -1], list("abcde")), replicates=100, majority="yes")
    assert entry["num_utterances"] == 4
    assert entry["skipped_utterances"] == 1
    assert entry["accuracy"] == 3 / 4
    assert entry["accuracy_ci95"] is None  # the four that are left are too few speakers
    assert entry["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert entry["majority"] == {"class": "yes", "accuracy": 1 / 4, "macro_f1": pytest.approx((0 + 2 / 5) / 2)}
    assert entry["classes"]["yes"] == {
        "num_utterances": 1,
        "precision": 1 / 2,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
    }
    assert entry["classes"]["stop, now"]["num_utterances"] == 0
    whole = summarise_classes(classified([0, 0, 2, 2, 2], list("abcde")), replicates=100, majority=None)
    assert whole["accuracy_ci95"][0] < 0.8 <= whole["accuracy_ci95"][1]
    assert "majority" not in whole
    results = {"model": "m", "data": "d", "seed": 0, "parameters": 10**6, "trials": {"val": whole, "test": entry}}
    printed = results_table(results)
    for part in ("val (5)", "80.00", "test (4)", "always yes", "25.00", "20.00", "1.00 M parameters"):
        assert part in printed
    assert "EER" not in printed


def test_best_checkpoint_is_chosen_by_macro_f1() -> None:
    """Answering the largest class alone gives 90 % of the answers right here, and half of the macro F1."""
    lazy = criterion({"accuracy": 0.9, "macro_f1": 0.47})
    better = criterion({"accuracy": 0.85, "macro_f1": 0.7})
    assert better[1] < lazy[1]
    assert better[0] == "macro F1 70.00 %, accuracy 85.00 %"
    assert criterion({"eer": 0.1234, "accuracy": 0.9}) == ("EER 12.34 %", 0.1234)
    assert criterion({"accuracy": 0.75}) == ("error 25.00 %", 0.25)


def test_speakers_are_kept_apart_and_train_keeps_every_class() -> None:
    """Each speaker has one language, and the rarest languages have one speaker."""
    languages = ["a"] * 16 + ["b"] * 8 + ["c"] * 4 + ["d"] * 2 + ["e"]
    rows = table([(f"s{index}", language) for index, language in enumerate(languages) for _ in range(3)])
    for seed in range(5):
        parts = split_table(rows.rename({"keyword": "language"}), "language", "auto", [0.7, 0.15, 0.15], seed)
        speakers = {name: set(part["speaker"]) for name, part in parts.items()}
        assert {name: len(found) for name, found in speakers.items()} == {"train": 21, "val": 5, "test": 5}
        assert len(set.union(*speakers.values())) == 31
        assert set(parts["train"]["language"]) == set("abcde")
        # d's second speaker can go to one of the two only, and the others serve all that they can.
        assert set(parts["val"]["language"]) == set("abcd")
        assert set(parts["test"]["language"]) == set("abc")
    first, second = (by_speaker(rows["speaker"].to_numpy(), [0.7, 0.15, 0.15], s, languages_of(rows)) for s in (0, 1))
    assert (first != second).any()


def languages_of(rows: pl.DataFrame) -> np.ndarray:
    return rows["keyword"].to_numpy()


def test_splits_that_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    one_each = table([(f"s{index}", f"word {index}") for index in range(10) for _ in range(2)])
    with pytest.raises(UserError, match="every speaker is the only one of some class"):
        split_table(one_each, "keyword", "speaker", [0.6, 0.2, 0.2], 0)
    nameless = one_each.drop("speaker")
    with pytest.raises(UserError, match=r"no column speaker; use data\.split\.by=utterance"):
        split_table(nameless, "keyword", "speaker", [0.6, 0.2, 0.2], 0)
    tenfold = pl.concat([nameless.with_columns(pl.lit(n).alias("n")) for n in range(5)])
    parts = split_table(tenfold, "keyword", "auto", [0.8, 0.1, 0.1], 0)
    assert "one voice may be in train and in test" in caplog.text
    assert Counter(parts["val"]["keyword"]) == {f"word {index}": 1 for index in range(10)}
    assert set(Counter(parts["train"]["keyword"]).values()) == {8}


def test_a_class_that_training_lacks_is_named() -> None:
    rows = table([("a", "yes"), ("b", "perhaps"), ("c", "maybe")])
    with pytest.raises(UserError, match="test: no training utterance is of the keyword 'maybe', 'perhaps', so no"):
        labelled_set("test", rows, "keyword", ["no", "yes"])
    assert labelled_set("test", rows.clear(), "keyword", ["no", "yes"]) is None
    known = labelled_set("test", rows, "keyword", ["maybe", "perhaps", "yes"])
    assert known is not None
    assert known.speaker is not None
    unnamed = labelled_set("test", rows.drop("speaker"), "keyword", ["maybe", "perhaps", "yes"])
    assert unnamed is not None
    assert unnamed.speaker is None
    with pytest.raises(UserError, match=r"data\.trials\.val: trials compare speakers.*trials=list\.txt"):
        require_no_lists("keyword", [("data.trials.val", "list.txt")])


def test_confusions_are_written(tmp_path: Path) -> None:
    write_classified(tmp_path, classified([0, 0, 2, 2, -1], list("abcde")), answers=True)
    with (tmp_path / "scores" / "confusion-val.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0][1:] == ["no", "stop, now", "yes"]
    assert rows[1:] == [["no", "2", "0", "1"], ["stop, now", "0", "0", "0"], ["yes", "0", "0", "1"]]
    answers = (tmp_path / "scores" / "val.csv").read_text().splitlines()
    assert answers == ["id,keyword,predicted", "u0,no,no", "u1,no,no", "u2,no,yes", "u3,yes,yes"]


@pytest.mark.parametrize("num_classes", [2, 40])
def test_confusion_plot_shows_the_shares(tmp_path: Path, num_classes: int) -> None:
    """All of class 0 right, all others taken for class 0: the first column is dark, all else light."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    counts[:, 0] = 7
    names = [f"$x_{index}" for index in range(num_classes)]  # no mathematics, whatever the dollar
    file = tmp_path / "plots" / "c.png"
    confusion_plot(file, counts, names, "keyword, val")
    from matplotlib.image import imread

    picture = imread(file)
    dark = (picture[..., 2] - picture[..., 0] > 0.2) & (picture[..., 0] < 0.1)
    columns = np.flatnonzero(
        dark.mean(axis=0) > 0.6
    )  # the matrix's first column; the colour bar is dark at its top only
    width = picture.shape[1]
    assert len(columns) > 0.4 * width / num_classes
    assert columns.max() < 0.6 * width


def make_keywords(root: Path) -> Path:
    """16 speakers who say three "words" (tones) twice or thrice; 5 of them are val."""
    root.mkdir()
    rows = []
    for speaker in range(16):
        for word in range(3):
            for number in range(3 if word == 0 else 2):
                name = f"{speaker}-{word}-{number}.wav"
                wave = voice(2 + 5 * word, 100 * speaker + number, 0.45) * (0.6 + 0.05 * speaker)
                soundfile.write(root / name, wave, 16_000, subtype="PCM_16")
                rows.append((name, f"s{speaker}", ["nein", "ja", "vielleicht später"][word]))
    pl.DataFrame(rows, schema=["path", "speaker", "word"], orient="row").write_csv(root / "words.csv")
    return root / "words.csv"


def test_a_run_that_learns_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    manifest, folder = make_keywords(tmp_path / "my wörds"), tmp_path / "run"
    settings = [*TINY, f"data.manifest='{manifest}'", "data.label=word", "loss=softmax"]
    settings += ["loss.class_weights=inverse_frequency", "data.split.fractions=[0.5,0.3,0.2]"]
    settings += [f"data.stage_dir='{tmp_path}/stage'"]
    settings += ["trainer.optimizer.lr=0.01", "model.features.normalise=none", "trainer.epochs=6"]
    done = run("train", *settings, f"run_dir='{folder}'")
    assert done.returncode == 0, done.stderr
    for part in ("accuracy %", "macro F1 %", "always nein", "val (35)", "test (21)"):
        assert part in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["classes"] == 3
    entry = results["trials"]["val"]
    assert entry["accuracy"] > 0.8 > entry["majority"]["accuracy"] == pytest.approx(3 / 7)
    assert entry["accuracy_ci95"] is not None
    assert "eer" not in entry
    assert set(entry["classes"]) == {"nein", "ja", "vielleicht später"}
    assert [path.name for path in sorted((folder / "plots").iterdir())] == ["confusion-test.png", "confusion-val.png"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [line["val"] for line in lines if "val" in line]
    assert [set(line) for line in validated] == [{"loss", "accuracy", "macro_f1"}] * 6
    assert max(line["macro_f1"] for line in validated) == pytest.approx(entry["macro_f1"])

    (folder / "results.json").unlink()
    shutil.rmtree(tmp_path / "stage")
    evaluate(folder, Request(None, None, None, (), ()), None, torch.device("cpu"))
    assert "macro F1 %" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["trials"] == results["trials"]
    assert not (tmp_path / "stage").exists()  # staging is for training
    trials = tmp_path / "speakers.txt"
    trials.write_text("1 0-0-0.wav 0-0-1.wav\n0 0-0-0.wav 1-0-1.wav\n1 1-1-0.wav 1-1-1.wav\n0 1-1-0.wav 2-1-1.wav\n")
    evaluate(folder, Request(trials, None, None, (), ()), None, torch.device("cpu"))
    assert "EER %" in capsys.readouterr().out
    assert "speakers: the error rates say nothing about unknown speakers" in caplog.text
    assert json.loads((folder / "results.json").read_text())["trials"]["speakers"]["num_trials"] == 4

    cfg = checkpoint.load_config(folder)
    cfg.data.filter = "word = 'ja'"
    with pytest.raises(UserError, match="are of one word; training needs two"):
        corpus.data(cfg)
    words = pl.read_csv(manifest)
    words.with_columns(
        pl.when(pl.col("word") == "ja").then(pl.lit("test")).otherwise(pl.lit("train")).alias("split")
    ).write_csv(manifest)
    cfg.data.filter = None
    with pytest.raises(UserError, match="test: no training utterance is of the word 'ja'"):
        corpus.data(cfg)


def test_label_column_that_is_missing_or_has_gaps() -> None:
    rows = table([("a", "yes"), ("b", "")])
    with pytest.raises(UserError, match=r"data\.label: the table has no column 'wrod'; it has id, path, duration, sp"):
        require_label(rows, "wrod")
    with pytest.raises(UserError, match=r"data\.label: 1 of 2 utterances have no keyword, the first is u1"):
        require_label(rows, "keyword")


@pytest.mark.slow
def test_keywords_of_unseen_speakers(tmp_path: Path, shared_data: Path) -> None:
    """40 Arabic commands learnt from 17 speakers and told apart for 5 others, not used to choose."""
    command = ["data=manifest", f"data.manifest='{shared_data}/utterances.csv'", "data.label=keyword"]
    command += ["data.filter=\"corpus = 'arabic_speech_commands'\"", "data.split.by=speaker"]
    done = run("train", *command, "data.split.fractions=[0.7,0.1,0.2]", f"run_dir='{tmp_path}/run'")
    assert done.returncode == 0, done.stderr
    entry = json.loads((tmp_path / "run" / "results.json").read_text())["trials"]["test"]
    assert entry["num_utterances"] == 400
    assert entry["accuracy"] > 0.75
    assert entry["majority"]["accuracy"] == 1 / 40
