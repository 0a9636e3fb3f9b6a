"""Runs side by side: the ranking, what differs, the unfinished; and the workspace that wandb gets of them."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from spkexp import compare
from spkexp.compose import compose_config
from spkexp.errors import UserError
from spkexp.records import Record, Ticket
from spkexp.report import dashboard
from spkexp.report.comparison.content import content_of
from spkexp.report.comparison.ranking import Row, comparison
from spkexp.report.comparison.runs import read_runs
from spkexp.report.comparison.terminal import terminal_text
from spkexp.report.dashboard import SAVE_SECONDS, tracked
from spkexp.resume import fingerprint
from spkexp.run_folder import create
from tests.wandb_server import WandbServer

Command = Callable[..., tuple[int, str, str]]


def entry(eer: float) -> dict[str, Any]:
    return {"num_trials": 9, "eer": eer, "eer_ci95": [eer - 0.01, eer + 0.01], "min_dcf": {"0.01": 0.5, "0.05": 0.25}}


def make_run(folder: Path, overrides: list[str], trials: dict[str, Any] | None) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(compose_config(overrides), folder / "config.yaml", resolve=True)
    if trials is not None:
        results = {"model": "m", "parameters": 1_500_000, "utterances_per_second": 40.4, "trials": trials}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


SEED_1 = fingerprint(compose_config(["seed=1"]))  # with which the name of a run folder ends


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A worse run, a better one of another model, and one that was killed."""
    root = tmp_path_factory.mktemp("three ü")
    tracked = ["tracking.wandb=offline", "tracking.project=spk", "tracking.entity=me"]
    return [
        make_run(root / f"120000-ecapa_small-synthetic-{SEED_1}", [*tracked, "seed=1"], {"test": entry(0.2)}),
        make_run(root / "best", [*tracked, "model=xvector", "trainer.epochs=9"], {"test": entry(0.1)}),
        make_run(root / "killed", [*tracked, "seed=2"], None),
    ]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spkexp compare", *map(str, arguments)])
        code = 0
        try:
            compare.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_best_first_and_the_unfinished_named(three: list[Path], command: Command) -> None:
    code, out, err = command(*three, "seeds=apart")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "test: 3 runs"
    assert max(len(line) for line in lines if str(three[2]) not in line) <= 80
    words = [line.split() for line in lines]
    best, best_costs, best_differs = (row for row in words if row[:1] == ["best"])
    assert best == ["best", "10.00", "9.00–11.00", "0.500", "0.250"]
    assert best_costs == ["best", "1.50", "40"]
    name = ["ecapa_small", SEED_1[:4]]
    other, _, other_differs = (row for row in words if row[:2] == name)
    assert other[2:4] == ["20.00", "19.00–21.00"]
    assert words.index(best) < words.index(other)
    assert f"{three[2]}: unfinished, no results" in lines
    # Keys of the model's own file are no difference: its name is.
    assert best_differs[1:] == ["model=xvector,", "seed=0,", "trainer.epochs=9"]
    assert other_differs[2:] == ["model=ecapa_small,", "seed=1,", "trainer.epochs=5"]


def test_what_differs_is_said_of_every_run(three: list[Path]) -> None:
    compared = comparison(read_runs(three), seeds="apart")
    assert compared.trials == "test"
    assert sorted(compared.differing) == ["model", "seed", "trainer.epochs"]
    assert [compared.differences(row) for row in compared.rows] == [
        {"seed": 0, "model": "xvector", "trainer.epochs": 9},
        {"seed": 1, "model": "ecapa_small", "trainer.epochs": 5},
        {"seed": 2, "model": "ecapa_small", "trainer.epochs": 5},
    ]


def test_keys_of_another_model_are_said_where_they_were_set(tmp_path: Path) -> None:
    """Each encoder has channels of its own; only one run has set them."""
    set_apart = ["model=ecapa", "model.encoder.channels=[256,256,256,256,768]", "loss.margin=0.3"]
    places = [("a", ["model=xvector"]), ("b", set_apart), ("c", ["model=ecapa", "loss.margin=0.3"])]
    compared = comparison(read_runs([make_run(tmp_path / name, keys, None) for name, keys in places]))
    assert compared.differing == ["model", "model.encoder.channels", "loss.margin"]
    assert [compared.differences(row) for row in compared.rows] == [
        {"model": "xvector", "loss.margin": 0.2},
        {"model": "ecapa", "loss.margin": 0.3, "model.encoder.channels": [256, 256, 256, 256, 768]},
        {"model": "ecapa", "loss.margin": 0.3},
    ]


def runs_of(row: Row) -> list[str]:
    return [run.folder.name for run in row.runs if run.folder]


def test_seeds_are_one_row(tmp_path: Path) -> None:
    """A seed that comes twice is no new seed, and an attempt without results takes the place of none that has some."""
    made = [
        ("net-seed0", ["seed=0", "trainer.nproc=2"], 0.25), ("net-seed1", ["seed=1"], None),
        ("first-try", ["seed=2"], None), ("net-seed2", ["seed=2"], 0.5),
        ("again", ["seed=0"], 0.125), ("y", ["loss.margin=0.3"], 0.375),
    ]  # fmt: skip
    folders = [
        make_run(tmp_path / name, keys, None if rate is None else {"test": entry(rate)}) for name, keys, rate in made
    ]
    compared = comparison(read_runs(folders))
    assert [runs_of(row) for row in compared.rows] == [
        ["again", "first-try"], ["net-seed0", "net-seed1", "net-seed2"], ["y"],
    ]  # fmt: skip
    assert [compared.name(row) for row in compared.rows] == ["again", "net", "y"]
    assert [row.value("test", compared.metric) for row in compared.rows] == [0.125, 0.375, 0.375]
    assert compared.differing == ["loss.margin", "trainer.nproc"]
    content = content_of(compared)
    assert content["rows"][1]["metrics"]["eer"]["of_seeds"] == [0.25, 0.5]
    assert content["rows"][1]["metrics"]["eer"]["ci95"] is None  # results.json has none of a mean
    assert f"net: without seed 1, {folders[1]}: unfinished, no results." in content["notes"]
    assert len(comparison(read_runs(folders), seeds="apart").rows) == 6


def test_several_seeds_are_not_called_by_the_id_of_one(tmp_path: Path, command: Command) -> None:
    """By the model where that tells them, else with the key that does; one run keeps its own id."""
    folders = {}
    for name, keys in (
        ("1", ["seed=1", "model=xvector"]), ("2", ["seed=2", "model=xvector"]),
        ("3", ["seed=1"]), ("4", ["seed=2"]),
        ("5", ["seed=1", "loss.margin=0.5"]), ("6", ["seed=2", "loss.margin=0.5"]),
        ("7", ["seed=1", "trainer.epochs=9"]),
    ):  # fmt: skip
        folder = tmp_path / "2026-01-01" / f"00000{name}-some-data-{name * 8}"
        folders[name] = make_run(folder, keys, {"test": entry(int(name) / 20)})

    def names(*which: str) -> list[str]:
        compared = comparison(read_runs([folders[one] for one in which]))
        return [compared.name(row) for row in compared.rows]

    assert names("1", "2", "3", "4") == ["xvector", "ecapa_small"]
    assert names("1", "3", "4") == ["xvector 1111", "ecapa_small"]
    # The third row tells itself by its epochs alone; the second one has the default margin, as it has.
    assert names("3", "4", "5", "6", "7") == ["ecapa_small 3333", "ecapa_small margin=0.5", "ecapa_small 7777"]
    places = [str(folders[one]) for one in "1234"]
    assert "xvector" in command("reference=ecapa_small", "bootstrap=0", *places)[1]


def test_the_list_to_rank_by(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [], {"val": entry(0.3), "vox-o": entry(0.1)})
    b = make_run(tmp_path / "b", [], {"val": entry(0.2), "blind": {"num_trials": 3}})
    runs = read_runs([a, b, a])
    assert len(runs) == 2
    assert comparison(runs).trials == "val"
    assert [run.name for run in comparison(runs, seeds="apart").runs] == ["b", "a"]
    compared = comparison(runs, "vox-o", seeds="apart")
    assert [run.name for run in compared.runs] == ["a", "b"]
    assert f"{b}: no error rate for vox-o; it has val, blind" in terminal_text(content_of(compared))
    with pytest.raises(UserError, match="trials=test: no run has such a list; there are val, vox-o"):
        comparison(runs, "test")


def test_the_metric_to_rank_by(tmp_path: Path) -> None:
    def of(eer: float, cost: float, auc: float) -> dict[str, Any]:
        return {"eer": eer, "min_dcf": {"0.01": cost}, "min_dcf_ci95": {"0.01": [cost - 0.1, cost + 0.1]}, "auc": auc}

    made = {"a": of(0.1, 0.5, 0.9), "b": of(0.2, 0.25, float("nan")), "c": of(0.3, 0.75, 0.95)}
    runs = read_runs([make_run(tmp_path / name, [], {"test": one}) for name, one in made.items()])

    def order(metric: str | None) -> str:
        return "".join(run.name for run in comparison(runs, metric=metric, seeds="apart").runs)

    assert [order(key) for key in (None, "eer", "min_dcf.0.01", "auc")] == ["abc", "abc", "bac", "cab"]
    content = content_of(comparison(runs, metric="min_dcf.0.01", seeds="apart"))
    assert [metric["key"] for metric in content["metrics"]] == ["min_dcf.0.01", "eer", "auc"]
    assert content["rows"][0]["metrics"]["min_dcf.0.01"]["ci95"] == [0.15, 0.35]
    assert "auc" not in content["rows"][0]["metrics"]  # not a number is none
    with pytest.raises(UserError, match=r"metric=min_dcf\.0\.05: no run has it; there are eer, min_dcf\.0\.01, auc"):
        comparison(runs, metric="min_dcf.0.05")
    with pytest.raises(UserError, match=r"metric=min_dcf: no such metric; there are eer, min_dcf\.P"):
        comparison(runs, metric="min_dcf")


def test_runs_of_one_config_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose_config(["seed=1"])
    OmegaConf.resolve(cfg)  # as every command does
    first = create(cfg).absolute()
    (alone,) = comparison(read_runs([first])).rows
    assert alone.name == f"ecapa_small {SEED_1[:4]}"
    later = make_run(first.with_name(f"235960{first.name[6:]}"), ["seed=1"], None)
    other = make_run(tmp_path / "2020-01-01" / "best", [], None)
    same = make_run(tmp_path / "elsewhere" / "best", [], None)
    compared = comparison(read_runs([first, later, other, same]), seeds="apart")
    day, time = first.parent.name, first.name[:6]
    assert [compared.name(row) for row in compared.rows] == [
        f"ecapa_small {SEED_1[:4]} {day}/{time}",
        f"ecapa_small {SEED_1[:4]} {day}/235960",
        str(other),
        str(same),
    ]
    table = terminal_text(content_of(compared), 200)
    assert all(f" {compared.name(row)} " in table for row in compared.rows)


def test_classifiers_are_ranked_by_accuracy(tmp_path: Path) -> None:
    def answers(accuracy: float) -> dict[str, Any]:
        return {"test": {"accuracy": accuracy, "accuracy_ci95": None, "macro_f1": 0.5, "classes": {}}}

    runs = read_runs([make_run(tmp_path / name, [], answers(rate)) for name, rate in (("x", 0.25), ("y", 0.75))])
    table = terminal_text(content_of(comparison(runs, seeds="apart")))
    assert [line.split()[:3] for line in table.splitlines()[:8] if line[:3] in (" x ", " y ")] == [
        ["y", "75.00", "50.00"],
        ["x", "25.00", "50.00"],
    ]
    view = json.dumps(dashboard.definition(dashboard.workspace(comparison(runs), "me", "p", everything=True)))
    assert "trials/test/accuracy" in view
    assert "/eer" not in view


def test_a_sweep_stands_for_all_its_jobs(tmp_path: Path, command: Command) -> None:
    sweep = tmp_path / "sweep-1"
    sweep.mkdir()
    good = make_run(tmp_path / "good", ["seed=1"], {"test": entry(0.2)})
    half = make_run(tmp_path / "half", ["seed=2"], None)
    Ticket("s", [], "h", 1, True, None).write(sweep)
    places = [("finished", str(good)), ("pruned", str(half)), ("failed", None), ("finished", "/gone/run")]
    for number, (status, place) in enumerate(places):
        record = Record(number, [f"seed={number}"], status, None, place, None, 1.0, "s", "h", 1)
        record.write(sweep)
    code, out, _ = command(sweep)
    assert code == 0
    assert out.startswith("test: 3 configurations, 4 runs")  # good and half differ in their seed alone
    assert [line for line in out.splitlines() if line.startswith("seed=")] == [
        "seed=2: failed, no results",
        "seed=3: no folder /gone/run here, no results",
    ]
    assert f"good: without seed 2, {half}: pruned, no results." in " ".join(out.split())
    # A sweep that was started in another folder than this command, in words that held there.
    nested = tmp_path / "project" / "runs" / "sweeps" / "s"
    nested.mkdir(parents=True)
    run = make_run(tmp_path / "project" / "runs" / "day" / "x", [], {"test": entry(0.3)})
    Ticket("s", [], "h", 1, True, None).write(nested)
    Record(0, [], "finished", None, "runs/day/x", None, 1.0, "s", "h", 1).write(nested)
    assert [found.folder for found in read_runs([nested])] == [run]
    (sweep / "0123456789ab.json").write_text(json.dumps({**asdict(record), "more": 1}))
    code, _, err = command(sweep)
    assert code == 2
    assert "sweep-1: a record of a job in it cannot be read" in err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"config.yaml": "a: ["}, "config.yaml: cannot be read: while parsing a flow node"),
        ({"config.yaml": "- 1"}, "config.yaml: holds no config of a run, no results"),
        ({"config.yaml": "a: ${b}"}, "config.yaml: a: refused: ${…} is for configs that are composed, no results"),
        ({"config.yaml": "a: 1", "results.json": "{"}, "results.json: cannot be read: Expecting property name"),
        ({"config.yaml": "a: 1", "results.json": "[]"}, "results.json has no trials, no results"),
        ({"config.yaml": "a: 1", "results.json": '{"trials": {"test": null}}'}, "no error rate for test; it has test"),
    ],
)
def test_a_damaged_run_is_listed_beside_the_others(
    tmp_path: Path, command: Command, content: dict[str, str], expected: str
) -> None:
    good = make_run(tmp_path / "good", [], {"test": entry(0.25)})
    (tmp_path / "x").mkdir()
    for name, text in content.items():
        (tmp_path / "x" / name).write_text(text)
    code, out, _ = command(tmp_path / "x", good)
    assert code == 0
    assert out.splitlines()[5].split()[:2] == ["good", "25.00"]
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'x'}: {expected}")


def test_mistakes_on_the_command_line(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("nowhere")[::2] == (
        2,
        "spkexp: nowhere: no such folder; RUN is a run folder, or the folder of a sweep\n",
    )
    (tmp_path / "empty").mkdir()
    expected = "neither a run folder (no config.yaml) nor the folder of a sweep (no sweep.json)"
    assert expected in command("empty")[2]
    assert "--wnadb: no such option; there is --wandb" in command("--wnadb")[2]
    assert "workspace: only with --wandb" in command("workspace=x.json")[2]
    assert "seeds: " in command("seeds=some")[2]
    assert "no runs below" in command()[2]
    assert "SYNOPSIS" in command("--help")[1]
    assert max(map(len, compare.HELP.splitlines())) <= 80
    make_run(tmp_path / "runs" / "2026-01-01" / "a", [], {"test": entry(0.2)})
    assert command()[1].startswith("test: 1 run")
    assert "none of the runs is in wandb" in command("--wandb")[2]
    assert "one that is compared: a\n" in command("reference=nowhere")[2]
    assert "outptu: no such key; did you mean 'output'?" in command("outptu=x")[2]
    assert "zzz: no such key; there are trials, metric, " in command("zzz=x")[2]
    make_run(tmp_path / "lr=0.1", [], {"test": entry(0.2)})
    assert command("lr=0.1")[0] == 0  # a folder may be called so
    assert "; it holds 1 run folder: name runs/2026-01-01/*\n" in command("runs/2026-01-01")[2]


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_the_workspace_is_saved(
    three: list[Path], tmp_path: Path, command: Command, wandb_service: WandbServer
) -> None:
    code, out, err = command(*three, "--wandb", f"workspace={tmp_path / 'view.json'}")
    assert (code, err) == (0, "")
    (view,) = wandb_service.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "spk", "project-view")
    assert view["displayName"] == "spkexp: 3 runs"
    assert out.splitlines()[-1].startswith("workspace: ")
    assert "/me/spk?nw=" in out
    spec = json.loads(view["spec"])
    (runs,) = spec["section"]["runSets"]
    (scope,) = runs["filters"]["filters"]
    assert (scope["key"]["name"], scope["op"]) == ("displayName", "IN")
    assert sorted(scope["value"]) == sorted(run.name for run in three)
    found = panels(spec)
    curves = [panel["config"] for panel in found["Training"]]
    assert {(c["xAxis"], *c["metrics"]) for c in curves} == {
        ("step", metric)
        for metric in (
            "train/loss", "train/accuracy", "lr", "train/grad_norm", "train/utterances_per_second", "train/data_wait",
        )
    }  # fmt: skip
    verified = [metric for panel in found["Verification"] for metric in panel["config"].get("metrics", [])]
    assert verified == ["val/eer", "val/min_dcf/0.01", "val/min_dcf/0.05", "trials/test/eer"]
    by_kind = {panel["viewType"]: panel["config"] for panel in found["Models and hyper-parameters"]}
    groups = [p["config"].get("groupBy") for p in found["Models and hyper-parameters"] if p["viewType"] == "Bar Chart"]
    assert groups == ["names.value.model", "group"]
    axes = [column["accessor"] for column in by_kind["Parallel Coordinates Plot"]["columns"]]
    assert sorted(axes[:-1]) == ["config:names.value.model", "config:seed.value", "config:trainer.value.epochs"]
    assert axes[-1] == "summary:trials/test/eer"
    assert by_kind["Parameter Importance"]["targetKey"] == "trials/test/eer"
    assert by_kind["Scatter Plot"]["xAxis"] == "summary:parameters"
    assert by_kind["Run Comparer"]["diffOnly"] == "split"

    written = json.loads((tmp_path / "view.json").read_text())
    assert (written["entity"], written["project"], written["name"]) == ("me", "spk", "spkexp: 3 runs")
    assert {name: len(p) for name, p in panels(written["spec"]).items()} == {n: len(p) for n, p in found.items()}


def test_groups_of_a_sweep_and_the_whole_project(
    tmp_path: Path, command: Command, wandb_service: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["tracking.wandb=online", "tracking.group=sweep-7", "tracking.project=p"]
    run = make_run(tmp_path / "runs" / "day" / "a", overrides, {"test": entry(0.2)})
    monkeypatch.chdir(tmp_path)
    assert command(run, "--wandb")[0] == 0
    assert command("--wandb")[0] == 0
    of_group, of_all = wandb_service.views
    assert of_group["entityName"] == "me"  # of the login, for the run names none
    filters = [json.loads(view["spec"])["section"]["runSets"][0]["filters"]["filters"] for view in wandb_service.views]
    assert [(f["key"]["name"], f["value"]) for f in filters[0]] == [("group", ["sweep-7"])]
    assert filters[1] == []
    assert (of_group["displayName"], of_all["displayName"]) == ("spkexp: Runs of sweep-7", "spkexp: all runs")
    old = tmp_path / "runs" / "day" / "old"
    old.mkdir()
    (old / "config.yaml").write_text("tracking: {wandb: online}")
    assert "the config of old has no tracking.project" in command(old, "--wandb")[2]
    (old / "config.yaml").write_text("tracking: {wandb: online, project: p}")
    assert tracked(read_runs([old]))[:2] == (None, "p")
    make_run(tmp_path / "runs" / "day" / "b", ["tracking.wandb=online", "tracking.project=q"], None)
    assert "the runs are in several projects (p, q)" in command("--wandb")[2]


def test_without_a_network_or_an_answer_it_ends_soon(
    three: list[Path], tmp_path: Path, command: Command, wandb_service: WandbServer, own_wandb: pytest.MonkeyPatch
) -> None:
    own_wandb.setattr(dashboard, "SAVE_SECONDS", 1.0)
    import wandb

    assert wandb.login(prompt=False)  # the key is known to be good, and then the server falls silent
    wandb_service.silent.set()
    begin = time.monotonic()
    code, out, err = command(three[0], "--wandb")
    assert code == 2
    assert out.startswith("test: 1 run")
    assert "--wandb: " in err
    wandb.teardown()
    own_wandb.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, _, err = command(three[0], "--wandb", f"workspace={tmp_path / 'view.json'}")
    assert code == 2
    assert "--wandb: 127.0.0.1 cannot be reached" in err
    assert "workspace=FILE.json writes the definition without wandb" in err
    assert json.loads((tmp_path / "view.json").read_text())["project"] == "spk"
    assert time.monotonic() - begin < SAVE_SECONDS
