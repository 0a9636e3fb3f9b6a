"""The studies in experiments/: what they claim to hold equal, who is in which split, and when a table has grown old."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from spkexp import build
from spkexp.compose import compose_config
from spkexp.config import config_folder
from spkexp.cost.macs import count_macs
from spkexp.cost.workload import Workload

STUDIES = config_folder().parent / "experiments"
ENCODERS = sorted(file.stem for file in (STUDIES / "encoders" / "compute").glob("*.yaml"))


def program(name: str) -> ModuleType:
    """experiments/NAME.py, which is no module of a package."""
    specification = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_encoders_cost_the_same(encoder: str) -> None:
    equal_budget = build.model(
        compose_config(["experiments=encoders", f"experiments/encoders/compute={encoder}"]).model
    )
    assert 35e6 < count_macs(Workload(equal_budget, 1.0, "fp32")).model < 40e6
    chosen = ["experiments=encoders_parameters", f"experiments/encoders/parameters={encoder}"]
    assert 0.575e6 < sum(p.numel() for p in build.model(compose_config(chosen).model).parameters()) < 0.625e6


def test_no_speaker_is_in_two_splits(shared_data: Path) -> None:
    table = pl.read_csv(STUDIES / "real_speech.csv", infer_schema=False)
    assert table.group_by("speaker").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 149
    assert table.unique("speaker")["split"].value_counts(sort=True).rows() == [("train", 130), ("test", 11), ("val", 8)]
    of_corpus = pl.read_csv(
        shared_data / "utterances.csv", infer_schema=False, schema_overrides={"duration": pl.Float64}
    )
    assert program("manifest").manifest(of_corpus).select(pl.all().cast(pl.String).fill_null("")).equals(
        table.fill_null("")
    )  # fmt: skip


def test_every_table_is_of_known_runs() -> None:
    for readme in STUDIES.glob("*/README.md"):
        named = re.findall(r"<!-- table (\S+) -->\n(.*?)<!-- end -->", readme.read_text(encoding="utf-8"), re.DOTALL)
        notes = readme.with_name("tables.json")
        entries = json.loads(notes.read_text()) if notes.exists() else {}
        assert sorted(entries) == sorted(table for table, _ in named), readme
        for table, text in named:
            assert program("tables").digest(text) == entries[table]["text"], f"{readme}, {table}: was changed by hand"


def test_a_table_is_older_than_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tables = program("tables")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "STUDIES", tmp_path / "experiments")
    for name in ("spkexp/trainer.py", "conf/loss/aam_softmax.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config_folder().parent / name, tmp_path / name)
    files = [tmp_path / "spkexp/trainer.py", tmp_path / "conf/loss/aam_softmax.yaml"]
    (tmp_path / "experiments/losses").mkdir(parents=True)
    entry = {"commits": ["0123456789"], "dates": ["2026-11-21"], "depends_on": tables.digests(files)}
    (tmp_path / "experiments/losses/tables.json").write_text(json.dumps({"losses": entry}))

    code, config = (file.read_text() for file in files)
    files[0].write_text("# a comment\n" + re.sub(r'"""', '"""Other words. ', code, count=1))
    files[1].write_text(config + "# a comment\n")
    assert tables.check() == 0
    files[0].write_text(f"{code}\nMORE = 1\n")
    assert tables.check() == 1
    assert "table losses, 0123456: older than spkexp/trainer.py\n" in capsys.readouterr().out
    files[0].write_text(code)
    files[1].write_text(config.replace("margin: 0.2 ", "margin: 0.3 "))
    assert tables.check() == 1
    files[1].unlink()
    assert tables.check() == 1


def test_what_a_table_depends_on() -> None:
    tables = program("tables")
    configs = tables.composed_of(["experiments=losses", "experiments/losses/loss=am", "seed=1"])
    names = {str(file.relative_to(STUDIES.parent)) for file in configs}
    assert {
        "conf/config.yaml",
        "conf/loss/am_softmax.yaml",
        "conf/model/ecapa.yaml",
        "conf/data/real_speech.yaml",
    } < names
    assert {"experiments/losses.yaml", "experiments/losses/loss/am.yaml", "experiments/common/two_cores.yaml"} < names
    assert "conf/loss/aam_softmax.yaml" not in names
    modules = tables.reach([*tables.CODE, "models.ecapa"])
    assert {"trainer", "experiment", "models.ecapa", "models.layers", "data.sampler", "scoring.metrics"} < modules
    assert not {"models.resnet", "report.page", "wandb_run"} & modules
