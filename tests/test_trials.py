"""Trial lists: every form that corpora write, and names that do not quite say what the tree does."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from omegaconf import OmegaConf

from spkexp.config import config_folder
from spkexp.data import trial_lists
from spkexp.data.evaluation_set import EvaluationSet, Trained, evaluation_set, from_list
from spkexp.data.groups import read_groups
from spkexp.data.trial_lists import TrialNames, read_trials
from spkexp.errors import UserError
from spkexp.report.plots import det_plot
from spkexp.report.table import results_table
from spkexp.scoring.projection import mean_embeddings
from spkexp.scoring.summary import entry_of
from spkexp.scoring.system import System
from spkexp.scoring.verification import score
from spkexp.sections import Scoring

UNTRAINED = Trained([], pl.Series("id", [], dtype=pl.String))
DEFAULT = OmegaConf.to_container(OmegaConf.load(config_folder() / "scoring" / "default.yaml"))
SCORING = Scoring.model_validate({**DEFAULT, "p_targets": [0.01], "bootstrap": 0})


def table_of(*ids: str) -> pl.DataFrame:
    """Rows whose speaker is the first folder of the id."""
    return pl.DataFrame(
        {
            "id": list(ids),
            "path": [f"/audio/{name}.m4a" for name in ids],
            "duration": [float(number + 1) for number in range(len(ids))],
            "speaker": [name.split("/")[0] for name in ids],
        },
        schema_overrides=dict.fromkeys(("id", "path", "speaker"), pl.String),
    )


def write(file: Path, text: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def tone(file: Path, seconds: float = 0.5) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.sin(np.arange(round(seconds * 16_000)) / 9), 16_000)
    return file


def triples(names: TrialNames) -> list[tuple]:
    target = [None] * len(names.line) if names.target is None else names.target.tolist()
    return [
        (names.names[e], names.names[t], same)
        for e, t, same in zip(names.enroll.tolist(), names.test.tolist(), target, strict=True)
    ]


def listed(file: Path, table: pl.DataFrame, models: Path | None = None, root: Path | None = None) -> EvaluationSet:
    return from_list("x", str(file), str(models) if models else None, table, "speaker", root and str(root), UNTRAINED)


def paths(found: EvaluationSet) -> dict[str, str]:
    return {found.utterances.id[i]: found.utterances.path[i] for i in range(len(found.utterances))}


@pytest.mark.parametrize(
    ("text", "labelled"),
    [
        ("1 a/1.wav b\n\n0 a/1.wav c\n", True),
        ("a/1.wav b target\na/1.wav c nontarget\n", True),
        ("a/1.wav b 1\na/1.wav c 0\n", True),
        ("a/1.wav b tgt\na/1.wav c imp\n", True),
        ("a/1.wav b\na/1.wav c\n", False),
        ("\ufeff1 a/1.wav b\r\n  \r\n0\t a/1.wav  c \r\n", True),  # as Windows and spreadsheets write it
        ("0 a/1.wav c\n1 a/1.wav b", True),
    ],
)
def test_forms(tmp_path: Path, text: str, labelled: bool) -> None:
    found = read_trials(write(tmp_path / "trials ü", text))
    assert sorted(triples(found), key=str) == [
        ("a/1.wav", "b", True if labelled else None),
        ("a/1.wav", "c", False if labelled else None),
    ]


def test_the_whole_file_tells_the_form(tmp_path: Path) -> None:
    """An utterance may be called 0 or 1: only all lines together tell which column is the label."""
    found = read_trials(write(tmp_path / "a", "0 1 1\n1 0 1\n0 1 x\n"))
    assert triples(found) == [("1", "1", False), ("0", "1", True), ("1", "x", False)]
    found = read_trials(write(tmp_path / "b", "0 1 1\n1 0 0\nx 1 0\n"))
    assert triples(found) == [("0", "1", True), ("1", "0", False), ("x", "1", False)]
    with pytest.raises(UserError, match=r"reads as '0\|1 enroll test' and as 'enroll test 0\|1'; write the labels as"):
        read_trials(write(tmp_path / "c", "0 1 1\n1 0 0\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a b\n0 a\n", r"trials:2: expected '0\|1 enroll test', got '0 a'"),
        ("1 a b\n\n\nx a b\n", r"trials:4: expected '0\|1 enroll test', got 'x a b'"),
        ("1 a b\n0 a b c\n", r"trials:2: expected '0\|1 enroll test', got '0 a b c'"),
        ("a b target\na b 1\n", r"trials:2: expected 'enroll test target\|nontarget'"),
        ("a b\nc d\na b c\n", "trials:3: expected 'enroll test', got 'a b c'"),
        ("alone\n", r"trials:1: expected '0\|1 enroll test', .*'enroll test', got 'alone'"),
        ("1 a b\n# 0 a b\n", "trials:2: a trial list has no comments; remove '# 0 a b'"),
        ("\n \n", "trials: the trial list is empty"),
        ("", "trials: the trial list is empty"),
        ("1 a b\n1 a c\n", "trials: all trials are targets"),
        (b"1 a \xff\xfe\n", "trials: is not text, so no trial list"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_trials(write(tmp_path / "trials", text))


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such trial list"):
        read_trials(tmp_path / "nowhere")


def test_what_is_strange_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "t", "1 a b\n0 a c\n1 a b\n1 a b\n0 c a\n1 d d\n0 a b\n")
    with caplog.at_level(logging.INFO):
        assert len(read_trials(file).line) == 7
    assert "3 of 7 trials repeat an earlier one; they are kept" in caplog.text
    assert "1 of 7 trials compare an utterance with itself; they are kept" in caplog.text
    assert "1 pairs are listed as target and as non-target, such as a b" in caplog.text


def test_published_lists_are_recognised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{int(n % 2 == 0)} a{n} b{n}\n" for n in range(37_611)]
    with caplog.at_level(logging.INFO):
        found = read_trials(write(tmp_path / "veri_test2.txt", "".join(lines)))
        assert "37,611 trials, as many as VoxCeleb1-O (cleaned)" in caplog.text
        caplog.clear()
        read_trials(write(tmp_path / "other.txt", "".join(lines[1:])))
        assert "as many as" not in caplog.text
    assert [found.names[int(n)] for n in (found.enroll[-1], found.test[-1])] == ["a37610", "b37610"]
    assert trial_lists.PUBLISHED[552_536].startswith("VoxCeleb1-H")


def test_ids_with_other_extensions_and_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = table_of("id1/v/00001", "id1/v/00002", "id2/w/00001", "eval/test/id9-x")
    text = "1 id1/v/00001.wav voxceleb1/wav/id1/v/00002.WAV\n0 id2/w/00001 test/id9-x.wav\n"
    with caplog.at_level(logging.INFO):
        found = listed(write(tmp_path / "list", text), table)
    assert paths(found) == {
        "id1/v/00001.wav": "/audio/id1/v/00001.m4a",
        "voxceleb1/wav/id1/v/00002.WAV": "/audio/id1/v/00002.m4a",
        "id2/w/00001": "/audio/id2/w/00001.m4a",
        "test/id9-x.wav": "/audio/eval/test/id9-x.m4a",
    }
    for text in ("1 by id", "1 by id without the extension", "1 by id without leading folders of the name"):
        assert text in caplog.text
    utterances, trials = found.utterances, found.trials
    assert [utterances.id[i] for i in trials.enroll] == ["id1/v/00001.wav", "id2/w/00001"]
    assert [utterances.id[i] for i in trials.test] == ["voxceleb1/wav/id1/v/00002.WAV", "test/id9-x.wav"]
    assert trials.target.tolist() == [True, False]
    assert utterances.duration[trials.test].tolist() == [2.0, 4.0]
    assert [utterances.label_names[n] for n in utterances.label[trials.enroll]] == ["id1", "id2"]
    assert found.speakers_known


def test_what_is_ambiguous_is_not_guessed(tmp_path: Path) -> None:
    """Two corpora whose tails agree, and a tail that two ids have."""
    table = table_of("id1/v/1", "id1/v/2")
    with pytest.raises(UserError, match=r"no utterance is called 'one/id1/v/1\.wav' \(2 such names of 3\)"):
        listed(write(tmp_path / "a", "1 one/id1/v/1.wav two/id1/v/1.wav\n0 one/id1/v/1.wav id1/v/2\n"), table)
    with pytest.raises(UserError, match=r"a:1: no utterance is called '1\.wav'"):
        listed(write(tmp_path / "a", "1 1.wav id1/v/2\n0 id1/v/1 id1/v/2\n"), table_of("id1/v/1", "id1/w/1", "id1/v/2"))


def test_files(tmp_path: Path) -> None:
    """Below the root, beside the list, one folder up; with another extension; without the corpus's name."""
    root = tmp_path / "tree ü"
    expected = {
        "a/1.wav": tone(root / "a" / "1.flac", 0.25),
        "b/2.wav": tone(root / "b" / "2.wav"),
        "voxceleb1/wav/c/3.wav": tone(root / "c" / "3.wav"),
        "audio/d.flac": tone(tmp_path / "sitw" / "audio" / "d.flac"),
        "beside": tone(tmp_path / "sitw" / "keys" / "beside.ogg"),
        str(tone(tmp_path / "far" / "e.wav")): tmp_path / "far" / "e.wav",
    }
    tone(root / "b" / "2.flac")  # the name says which of the two
    names = list(expected)
    lines = "".join(f"{int(n % 2)} {names[n - 1]} {name}\n" for n, name in enumerate(names))
    found = listed(write(tmp_path / "sitw" / "keys" / "core.lst", lines), table_of().head(0), root=root)
    assert {name: Path(path) for name, path in paths(found).items()} == expected
    assert not found.speakers_known
    seconds = dict(zip((found.utterances.id[i] for i in range(6)), found.utterances.duration, strict=True))
    assert seconds["a/1.wav"] == 0.25


def test_rows_and_files_in_one_list(tmp_path: Path) -> None:
    tone(tmp_path / "new.wav", 0.75)
    table = table_of("s1/1", "s1/2").with_columns(start=pl.Series([160, 320]), offset=pl.Series([0, 512]), bytes=7)
    found = listed(write(tmp_path / "l", "1 s1/2 s1/1\n0 s1/2 new.wav\n"), table)
    order = [found.utterances.id[i] for i in range(3)]
    new = order.index("new.wav")
    assert found.utterances.duration[new] == 0.75
    assert found.utterances.segment(new, 16_000) == (0, 12_000)
    assert found.utterances.part_of(new) is None
    assert found.utterances.part_of(order.index("s1/2")) == (512, 7)
    assert found.utterances.segment(order.index("s1/1"), 16_000) == (160, 16_160)
    assert not found.speakers_known


def test_unknown_names(tmp_path: Path) -> None:
    file = write(tmp_path / "trials", "1 a b\n0 a z\n0 y z\n")
    with pytest.raises(
        UserError, match=r"trials:2: no utterance is called 'z' \(2 such names of 4\); tried: ids"
    ) as error:
        listed(file, table_of("a", "b"), root=tmp_path / "root")
    assert f"such as 'a'), also without extension or leading folders, and files below {tmp_path / 'root'}, " in str(
        error.value
    )
    file = write(tmp_path / "trials", "m1 a tgt\nm2 b imp\n")
    with pytest.raises(UserError, match=r"trials:1: .*'m1' .*names models .*data.trials.models=FILE"):
        listed(file, table_of("a", "b"))
    broken = write(tmp_path / "broken.wav", "no audio")
    with pytest.raises(UserError, match=str(broken)):
        listed(write(tmp_path / "trials", "1 a b\n0 a broken.wav\n"), table_of("a", "b"))


def test_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CN-Celeb: models in a list of their own; a name that is no model is an utterance."""
    models = write(
        tmp_path / "enroll.map", "m2 s2/1.wav s2/2.wav s2/3.wav\nm1 s1/1.wav\nm1 s1/2.wav s1/1.wav\nm0 s9/9\n"
    )
    file = write(tmp_path / "trials.lst", "m1 s1/3.wav 1\nm2 s1/3.wav 0\ns2/1 s2/3.wav 1\nm2 s1/1.wav 0\n")
    table = table_of("s1/1", "s1/2", "s1/3", "s2/1", "s2/2", "s2/3")
    with caplog.at_level(logging.INFO):
        found = listed(file, table, models)
    assert "1 utterances repeat one of the same name; each counts once" in caplog.text
    assert "2 of 3 enrolment names are models" in caplog.text
    trials, ids = found.trials, found.utterances.id
    name = [trials.models.name[int(i)] for i in range(len(trials.models.name))]
    ends = [*trials.models.start.tolist()[1:], len(trials.models.utterance)]
    members = {
        name[n]: sorted(ids[int(i)] for i in trials.models.utterance[start:end])
        for n, (start, end) in enumerate(zip(trials.models.start.tolist(), ends, strict=True))
    }
    assert members == {"m1": ["s1/1.wav", "s1/2.wav"], "m2": ["s2/1.wav", "s2/2.wav", "s2/3.wav"], "s2/1": ["s2/1"]}
    assert [name[n] for n in trials.enroll] == ["m1", "m2", "s2/1", "m2"]
    assert [found.utterances.label_names[n] for n in found.utterances.label[trials.enrolled()]] == [
        "s1",
        "s2",
        "s2",
        "s2",
    ]

    # The mean of unit vectors, by hand: rows of the table in its own order.
    vectors = {"s1/1": [3, 0], "s1/2": [0, 5], "s1/3": [1, 1], "s2/1": [-2, 0], "s2/2": [0, 7], "s2/3": [0, 1]}
    embeddings = np.array([vectors[ids[i].removesuffix(".wav")] for i in range(len(ids))], dtype=np.float32)
    third = mean_embeddings(embeddings, trials.models.utterance, trials.models.start)[name.index("m2")]
    np.testing.assert_allclose(third, [-10 / 9, 20 / 9], atol=1e-6)  # direction (-1/3, 2/3), mean length 10/3
    scored = score(found, embeddings, System(SCORING, None))
    expected = [1.0, 1 / np.sqrt(10), 0.0, -1 / np.sqrt(5)]
    np.testing.assert_allclose(scored.scores.values, expected, atol=1e-6)

    scores = scored.trial_scores
    assert scores.enrolled["name"].to_list() == name
    assert scores.enrolled["speaker"].to_list() == ["s1" if n == "m1" else "s2" for n in name]
    assert scores.tested["name"].to_list() == [ids[i] for i in range(len(ids))]
    seconds = {"m1": 1.0 + 2.0, "m2": 4.0 + 5.0 + 6.0, "s2/1": 4.0}
    assert scores.enrolled["duration"].to_list() == [seconds[n] for n in name]
    scores.write(tmp_path / "scores" / "x.txt")
    lines = (tmp_path / "scores" / "x.txt").read_text().splitlines()
    assert [(*line.split()[:2], line.split()[3]) for line in lines] == [
        ("m1", "s1/3.wav", "1"),
        ("m2", "s1/3.wav", "0"),
        ("s2/1", "s2/3.wav", "1"),
        ("m2", "s1/1.wav", "0"),
    ]
    # An utterance that could not be read is left out of its model.
    embeddings[[ids[i] == "s2/2.wav" for i in range(len(ids))]] = np.nan
    third = mean_embeddings(embeddings, trials.models.utterance, trials.models.start)[name.index("m2")]
    np.testing.assert_allclose(third, [-3 / 4, 3 / 4], atol=1e-6)
    assert np.isfinite(score(found, embeddings, System(SCORING, None)).scores.values).all()


def test_models_of_one_utterance(tmp_path: Path) -> None:
    """SITW's enroll-core.lst: scores name the model, not its file."""
    models = write(tmp_path / "enroll-core.lst", "12013 audio/unotx.flac\n")
    for name in ("unotx", "abcde", "fghij"):
        tone(tmp_path / "audio" / f"{name}.wav")
    file = write(tmp_path / "core-core.lst", "12013 audio/abcde.flac tgt\n12013 audio/fghij.flac imp\n")
    found = listed(file, table_of(), models)
    assert found.trials.models.name[0] == "12013"
    assert found.utterances.id[int(found.trials.models.utterance[0])] == "audio/unotx.flac"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m1 a\nm2\n", "models:2: expected 'NAME utterance"),
        ("m1 a 88.000 97.990\n", "models:1: '88.000' is a time, not an utterance"),
        ("", "models: the list of models is empty"),
        ("m1 a\nm1 zz\n", "models:2: no utterance is called 'zz'"),
    ],
)
def test_bad_models(tmp_path: Path, text: str, message: str) -> None:
    models = write(tmp_path / "models", text)
    with pytest.raises(UserError, match=message):
        listed(write(tmp_path / "trials", "m1 b tgt\nm1 c imp\n"), table_of("a", "b", "c"), models)


def test_spk2utt_in_lines_of_one(tmp_path: Path) -> None:
    rows = read_groups(write(tmp_path / "g", "b u1\na u2\tu3\n\nb u4\n"), "list")
    assert rows.select("name", "utterance").rows() == [("b", "u1"), ("a", "u2"), ("a", "u3"), ("b", "u4")]
    assert rows["line"].to_list() == [1, 2, 2, 4]


def test_blind_list(tmp_path: Path) -> None:
    file = write(tmp_path / "blind.txt", "a/1 b/1\na/1 a/2\n")
    table = table_of("a/1", "a/2", "b/1")
    found = listed(file, table)
    assert found.trials.target is None
    vectors = {"a/1": [1, 0], "a/2": [2, 0], "b/1": [0, -3]}
    embeddings = np.array([vectors[found.utterances.id[i]] for i in range(3)], dtype=np.float32)
    scores = score(found, embeddings, System(SCORING, None)).trial_scores
    entry = entry_of(scores, SCORING, llr=False)
    assert entry == {"num_trials": 2}
    scores.write(tmp_path / "s.txt")
    assert (tmp_path / "s.txt").read_text().splitlines() == ["a/1 b/1 0.0", "a/1 a/2 1.0"]
    det_plot(tmp_path / "det.png", {"blind": scores})
    assert not (tmp_path / "det.png").exists()
    shown = results_table({"model": "m", "data": "d", "seed": 0, "parameters": 1, "trials": {"blind": entry}})
    assert "blind (2)" in shown
    assert "no labels" in shown
    arguments = (table, "speaker", str(file), None, 100, 0, table, None, UNTRAINED)
    assert evaluation_set("test", *arguments).trials.target is None
    with pytest.raises(UserError, match=r"data.trials.val: .* has no labels, so it cannot choose the best checkpoint"):
        evaluation_set("val", *arguments)


def test_training_data_in_the_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = table_of("id1/v/1", "id1/v/2", "id2/v/1", "id3/v/1", "id3/v/2")
    file = write(tmp_path / "l", "1 id1/v/1 id1/v/2\n0 id1/v/1 id2/v/1\n0 id2/v/1 id3/v/1\n1 id3/v/1 id3/v/2\n")
    trained = Trained(["id1", "id1@0.9", "id7"], pl.Series(["id1/v/1", "id7/v/1"]))
    from_list("l", str(file), None, table, "speaker", None, trained)
    assert "trained on 1 speakers of the list (such as id1), which are in 2 of its 4 trials" in caplog.text
    assert "1 of its 5 utterances were training utterances" in caplog.text
    caplog.clear()
    from_list("l", str(file), None, table, "speaker", None, Trained(["id7"], pl.Series(["id7/v/1"])))
    assert "trained on" not in caplog.text
    # Who spoke in training need not be known.
    nameless = Trained([], pl.Series(["id1/v/1"]))
    from_list("l", str(file), None, table.with_columns(speaker=pl.lit("")), "speaker", None, nameless)
    assert "trained on utterances of the list, which are in 2 of its 4 trials; 1 of its 5 utterances" in caplog.text
    caplog.clear()
    # Of a file, the folder says who speaks.
    for name in table["id"]:
        tone(tmp_path / f"{name}.wav")
    from_list("l", str(file), None, table.head(0), "speaker", None, trained)
    assert "trained on 1 speakers of the list (such as id1), which are in 2 of its 4 trials" in caplog.text
