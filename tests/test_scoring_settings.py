"""A trained run scored again in other ways: PLDA, AS-norm, calibration, windows, files of embeddings; and mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from spkexp.config import config_folder
from spkexp.data.trials import Trials
from spkexp.errors import ConfigError, UserError
from spkexp.evaluation import Request, evaluate
from spkexp.scoring.embedding_file import read_embeddings
from spkexp.scoring.metrics import eer, error_rates
from spkexp.scoring.system import Background, System
from spkexp.scoring.trial_scores import TrialScores
from spkexp.sections import Scoring
from tests.conftest import Corpus, Run
from tests.test_train import TINY

DEFAULT: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "scoring" / "default.yaml"))


def settings(**changes: Any) -> Scoring:
    return Scoring.model_validate({**DEFAULT, **changes})


def test_as_norm_after_the_mean_is_taken_away_by_hand() -> None:
    """WeSpeaker's order: the cohort's mean off every embedding, cosine, the mean of the two normalised scores."""
    rng = np.random.default_rng(0)
    embeddings, cohort = rng.normal(1, 1, (9, 8)), rng.normal(1, 1, (60, 8))
    speaker = np.arange(60) % 20
    trials = Trials(np.array([0, 3, 5]), np.array([1, 4, 2]), np.array([True, False, False]))
    wanted = settings(subtract_mean=True, normalise="as", cohort={**DEFAULT["cohort"], "top_n": 7})
    system = System(wanted, Background(cohort.astype(np.float32), speaker))
    found = system.score(embeddings.astype(np.float32), trials)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    mean = cohort.mean(axis=0)
    sides = unit(embeddings - mean)
    nearest = unit(np.stack([unit(cohort[speaker == s] - mean).mean(axis=0) for s in range(20)]))
    for number, (first, second) in enumerate(zip(trials.enroll, trials.test, strict=True)):
        raw, parts = sides[first] @ sides[second], []
        for side in (first, second):
            top = np.sort(nearest @ sides[side])[-7:]
            parts.append((raw - top.mean()) / top.std())
        assert found.values[number] == pytest.approx(np.mean(parts), abs=2e-4)
    assert np.isnan(found.of_tested.mean[[6, 7, 8]]).all()  # in no trial
    assert not system.gives_llr


def test_scored_again(
    make_corpus: Corpus, run_command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_corpus(speakers=16, utterances=4, seconds=0.5)
    rows = pl.read_csv(manifest)
    rows = rows.with_columns(
        split=pl.col("speaker").replace_strict({f"s{n}": ["train", "val", "test"][n // 6] for n in range(16)}),
        gender=pl.col("speaker").replace_strict({f"s{n}": "fm"[n % 2] for n in range(16)}),
    )
    rows.write_csv(manifest)
    folder = tmp_path / "run ü"
    wanted = [
        "scoring.conditions=[gender]",
        "scoring.save_embeddings=npz",
        "trainer.epochs=1",
        "scoring.projection=null",
    ]
    done = run_command("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{folder}'", *wanted)
    assert done.code == 0, done.err
    assert "test by gender" in done.out
    first = json.loads((folder / "results.json").read_text())
    entry = first["trials"]["test"]
    assert first["macs"] > 0
    pairs = 16 * 15 // 2
    assert {name: group["num_trials"] for name, group in entry["conditions"]["gender"].items()} == {
        "f f": 28,
        "f m": 64,
        "m m": 28,
    }
    assert entry["identification"]["probes"] == 16
    assert entry["identification"]["top1"] <= entry["identification"].get("top5", 1.0)
    scores = TrialScores.read(folder / "scores" / "test.txt")
    assert len(scores) == pairs
    assert eer(error_rates(scores.score, scores.target)) == entry["eer"]  # what is written is what was measured
    assert scores.tested["gender"].to_list() == rows.filter(split="test")["gender"].to_list()
    ids, embeddings = read_embeddings(folder / "embeddings" / "test.npz")
    rows_of = {name: number for number, name in enumerate(ids)}
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = scores.tested["name"]
    sides = [unit[[rows_of[names[int(n)]] for n in side]] for side in (scores.enroll, scores.test)]
    cosine = (sides[0] * sides[1]).sum(axis=1)
    np.testing.assert_allclose(scores.score, cosine, atol=1e-5)

    def again(*scoring: str, trials: Path | None = None, root: str | None = None) -> dict[str, Any]:
        output = tmp_path / "again"
        evaluate(folder, Request(trials, None, root, scoring, ()), output, torch.device("cpu"))
        return json.loads((output / "results.json").read_text())["trials"]

    found = again("scoring=as_norm", "scoring.cohort.top_n=3", "scoring.calibration=val", "scoring.quality=[duration]")
    assert {"cllr", "act_dcf", "calibration"} <= set(found["test"])
    assert "cllr" not in found["val"]
    assert found["test"]["min_cllr"] <= found["test"]["cllr"]
    plda = again("scoring=plda", "scoring.plda.lda_size=4", "scoring.plda.whiten=false")["test"]
    assert {"cllr", "act_dcf"} <= set(plda)
    whole = again("scoring.window=60")["test"]
    assert whole["eer"] == pytest.approx(entry["eer"], abs=1e-6)  # one window holds all of it
    assert not {"cllr", "act_dcf", "calibration"} & set(whole)  # nothing is left of the scoring before
    in_the_way = tmp_path / "a file"
    in_the_way.touch()
    with pytest.raises(UserError, match=r"output=.*a file: cannot be written: .*; name another folder"):
        evaluate(folder, Request(None, None, None, (), ()), in_the_way, torch.device("cpu"))

    # Another list, over the run's utterances; the calibration is learnt on the run's own.
    listed = tmp_path / "my list.txt"
    of_test = rows.filter(split="test")["id"].to_list()
    lines = [
        f"{of_test[i]} {of_test[j]} {'target' if i // 4 == j // 4 else 'nontarget'}"
        for i in range(16)
        for j in range(i)
    ]
    listed.write_text("\n".join(lines))
    found = again("scoring.calibration=val", trials=listed)["my list"]
    assert found["eer"] == pytest.approx(entry["eer"])
    assert found["calibration"]["on"] == "val"

    mistakes = {
        "scoring.cohrt.top_n=3": "did you mean 'cohort'",
        "scoring.normalise=asnorm": "scoring.normalise: must be one of",
        "scoring.quality=[duration]": "give scoring.calibration=val, too",
        "scoring.window_step=1": "give scoring.window=SECONDS, too",
        "scoring.bootstrap=many": "scoring.bootstrap: expected an integer, got 'many'",
        "scoring=as_nrm": "scoring=as_nrm: no such option; did you mean 'as_norm'?",
        "scoring=5": "scoring: expected the name of a file in conf/scoring, got 5",
        "scoring.conditions=[gender": "scoring.conditions: cannot read",
        "scoring.p_targets.foo=3": "scoring.p_targets.foo: cannot be set",
        "scoring.bootstrap=1,2": "scoring.bootstrap=1,2: is a sweep",
    }
    for override, message in mistakes.items():
        with pytest.raises(ConfigError) as caught:
            again(override)
        assert message in str(caught.value), override
    with pytest.raises(ConfigError, match=r"cohort.top_n: a deviation needs at least 2 speakers"):
        again("scoring.cohort.top_n=1", "scoring=as_norm")
    with pytest.raises(UserError, match=r"'id' is no condition"):
        again("scoring.conditions=[id]")
    with pytest.raises(UserError, match=r"the manifest has no column 'gendre'; it has id, path"):
        again("scoring.conditions=[gendre]")
    manifest.rename(manifest.with_name("away.csv"))
    elsewhere = {"trials": listed, "root": str(manifest.parent)}
    with pytest.raises(UserError, match=r"the training speakers are not at hand .*cohort.manifest=FILE names others"):
        again("scoring.normalise=s", **elsewhere)
    with pytest.raises(UserError, match=r"scoring.calibration=val needs the run's own trials: .*no such manifest"):
        again("scoring.calibration=val", **elsewhere)
    capsys.readouterr()
    found = again("scoring.normalise=s", f"scoring.cohort.manifest='{manifest.with_name('away.csv')}'", **elsewhere)
    assert found["my list"]["eer_ci95"] is None  # of files nobody knows who speaks
    assert "nothing is known of files by which to tell gender apart" in capsys.readouterr().err


def test_a_calibration_on_the_speakers_under_test_is_refused(
    make_corpus: Corpus, run_command: Run, tmp_path: Path
) -> None:
    manifest = make_corpus(speakers=3, utterances=20)
    shared = ["data.split.by=utterance", "data.split.fractions=[0.6,0.2,0.2]", "scoring.calibration=val"]
    done = run_command("train", *TINY, f"data.manifest='{manifest}'", f"run_dir='{tmp_path / 'run'}'", *shared)
    assert done.code == 2
    assert "scoring.calibration=val: 3 of its speakers are in test, too, such as s0" in done.err
    assert not (tmp_path / "run").exists()
