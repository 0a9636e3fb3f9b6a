"""`python -m spkexp.calibrate` as a user runs it: one run, a fusion of three, and what is refused."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from spkexp import calibrate, compare
from spkexp.compose import compose_config
from spkexp.report.calibration import calibration_plot
from spkexp.scoring.metrics import act_dcf, cllr, eer, error_rates, min_cllr, min_dcf
from spkexp.scoring.trial_scores import TrialScores
from tests.test_calibrate import system

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three seeds of one model with scores of val and test; and the test list without labels."""
    root = tmp_path_factory.mktemp("three ü")
    for seed in range(3):
        folder = root / f"run {seed}"
        folder.mkdir()
        OmegaConf.save(compose_config([f"seed={seed}"]), folder / "config.yaml", resolve=True)
        results = {"model": "ecapa", "data": "voices", "seed": seed, "parameters": 10 + seed, "trials": {}}
        (folder / "results.json").write_text(json.dumps(results))
        for number, name in enumerate(("val", "test")):
            scores = system(number, name, seed, speakers=20)
            scores.write(folder / "scores" / f"{name}.txt")
        blind = TrialScores(scores.enrolled, scores.tested, scores.enroll, scores.test, scores.score, None)
        blind.write(folder / "scores" / "blind.txt")
    return [root / f"run {seed}" for seed in range(3)]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object, main: Callable[[], None] = calibrate.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spkexp calibrate", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_one_run(runs: list[Path], command: Command, tmp_path: Path) -> None:
    output = tmp_path / "calibrated"
    code, out, err = command(runs[0], "trials=test,blind", f"output={output}")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    before, after = TrialScores.read(runs[0] / "scores" / "test.txt"), TrialScores.read(output / "scores" / "test.txt")
    assert after.target is not None
    learnt = json.loads((output / "calibration.json").read_text())
    weight = learnt["features"]["score"]["weight"]
    np.testing.assert_allclose(after.score, before.score * weight + learnt["offset"], atol=1e-5)
    results = json.loads((output / "results.json").read_text())
    assert (results["model"], results["data"], results["seed"], results["parameters"]) == ("ecapa", "voices", 0, 10)
    assert results["trials"]["blind"] == {"num_trials": len(after)}
    entry = results["trials"]["test"]
    rates = error_rates(after.score, after.target)
    assert entry["num_targets"] == 20 * 10  # pairs of 5 utterances
    assert entry["eer"] == pytest.approx(eer(rates))
    assert entry["min_dcf"] == {str(p): pytest.approx(min_dcf(rates, p)) for p in (0.01, 0.05)}
    assert entry["act_dcf"] == {str(p): pytest.approx(act_dcf(after.score, after.target, p)) for p in (0.01, 0.05)}
    assert entry["cllr"] == pytest.approx(cllr(after.score, after.target))
    assert entry["min_cllr"] == pytest.approx(min_cllr(rates))
    assert entry["cllr"] - entry["min_cllr"] < 0.08 < 0.3 < cllr(before.score, after.target) - entry["min_cllr"]
    shown = [f"{value:.3f}" for value in (entry["cllr"], entry["min_cllr"], entry["cllr"] - entry["min_cllr"])]
    assert any(line.split()[-3:] == shown for line in out.splitlines())
    assert (output / "plots" / "calibration-test.png").stat().st_size > 20_000
    assert not (output / "plots" / "calibration-blind.png").exists()
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["calibration"] == {"on": "val", "quality": [], "p_target": 0.5}
    assert config["model"] == yaml.safe_load((runs[0] / "config.yaml").read_text())["model"]
    assert command(runs[0], f"output={output}")[0] == 0  # once more, into the same folder


def test_a_fusion_of_three_is_a_run_for_compare(runs: list[Path], command: Command, tmp_path: Path) -> None:
    output = tmp_path / "fused"
    code, out, err = command(*runs, "quality=duration,magnitude", "p_target=0.05", f"output={output}")
    assert (code, err) == (0, "")
    fused = TrialScores.read(output / "scores" / "test.txt")
    assert fused.target is not None
    assert "duration" in fused.tested.columns
    systems = [TrialScores.read(run / "scores" / "test.txt") for run in runs]
    best = min(eer(error_rates(one.score, fused.target)) for one in systems)
    assert eer(error_rates(fused.score, fused.target)) < best
    learnt = json.loads((output / "calibration.json").read_text())
    names = [f"ecapa seed {seed}" for seed in range(3)]
    assert learnt["systems"] == dict(zip(names, map(str, runs), strict=True))
    assert list(learnt["features"])[:5] == [*names, "duration min", "duration max"]
    assert len(learnt["features"]) == 3 + 2 + 3 * 2
    assert (learnt["p_target"], list(learnt["before"]["test"])) == (0.05, names)
    assert learnt["before"]["test"][names[1]]["cllr"] == pytest.approx(cllr(systems[1].score, fused.target))
    assert all(name in out for name in (*names, "fused", "offset"))
    results = json.loads((output / "results.json").read_text())
    assert (results["seed"], results["parameters"]) == (None, 33)
    code, out, err = command(runs[0], output, "trials=test", main=compare.main)
    assert (code, err) == (0, "")
    assert "fused" in out
    assert f"{100 * results['trials']['test']['eer']:.2f}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([0, "on=test"], r"on=test: shares 20 speakers \(test0, test1, …\) and 100 utterances"),
        ([0, "on=dev"], "run 0: has no scores of 'dev'; there are blind, test, val"),
        ([0, "on=blind", "trials=val"], "on=blind: has no labels"),
        ([0, "quality=cohort_mean"], "without a column 'cohort_mean'; .*scoring.normalise=as"),
        ([0, "quality=snr"], "quality.0: must be one of duration, magnitude, cohort_mean; got 'snr'"),
        ([0, "qualty=duration"], "runs: qualty=duration: no such folder, and no key 'qualty'"),
        ([0, "p_target=1"], "p_target: must be < 1"),
        ([], "runs: name at least one: python -m spkexp.calibrate RUN"),
        ([0, 0], "a run is named twice"),
        (["nowhere"], "nowhere: no such folder"),
        ([0, "output={0}/results.json/below"], "results.json.*: Not a directory; is output="),
        ([0, "output={0}"], "output=.*run 0: has results of something else; name another folder"),
    ],
)
def test_mistakes_are_named(
    runs: list[Path], command: Command, tmp_path: Path, arguments: list[str | int], message: str
) -> None:
    given = [runs[argument] if isinstance(argument, int) else argument.format(runs[0]) for argument in arguments]
    code, out, err = command(f"output={tmp_path / 'output'}", *given)
    assert (code, out) == (2, "")
    assert re.search(message, err)
    assert not (tmp_path / "output").exists()


def test_a_plot_of_ratios_that_mislead(tmp_path: Path) -> None:
    """Their cost is beyond the axes; nothing else is asked of it than to be drawn."""
    target = np.arange(40) < 10
    calibration_plot(tmp_path / "plot.png", {"wrong": (np.where(target, -9.0, 9.0), target)})
    assert (tmp_path / "plot.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="not finite"):
        calibration_plot(tmp_path / "none.png", {"nan": (np.full(40, np.nan), target)})
    assert not (tmp_path / "none.png").exists()


def test_ratios_are_not_calibrated_again(runs: list[Path], command: Command, tmp_path: Path) -> None:
    """A run of its own scoring.calibration=val has cosines of val and ratios of test: what one teaches misleads."""
    again = tmp_path / "again"
    shutil.copytree(runs[0], again)
    results = json.loads((again / "results.json").read_text())
    results["trials"] = {"test": {"eer": 0.1, "calibration": {"on": "val"}}}
    (again / "results.json").write_text(json.dumps(results))
    code, _, err = command(again, f"output={tmp_path / 'out'}")
    assert code == 2
    assert "its scores of test are log-likelihood ratios already" in err
    assert "scoring.calibration=null output=DIR" in err
    assert not (tmp_path / "out" / "results.json").exists()
