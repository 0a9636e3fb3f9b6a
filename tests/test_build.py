"""Loading a model runs no code of its folder, and what a constructor refuses is the user's to mend."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from safetensors.torch import save_file

from spkexp import build, corpus, distributed
from spkexp.compose import compose_config
from spkexp.errors import UserError
from tests.conftest import Corpus


@pytest.mark.parametrize(
    "target",
    [
        "spkexp.build.torch.hub.load",
        "spkexp.scoring.verification.np.save",
        "spkexp.data.dataset.DataLoader",
        "spkexp.models.speaker.torch.nn.Module",
        "spkexp.tracking.Tracker",
        "os.system",
        "outside.Model",
    ],
)
def test_a_config_from_elsewhere_names_models_only(tmp_path: Path, target: str) -> None:
    (tmp_path / "hubconf.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\ndef f(): pass\n")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    cfg = compose_config([])
    cfg.model.encoder = {"_target_": target, "repo_or_dir": str(tmp_path), "model": "f", "source": "local"}
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    with pytest.raises(UserError, match=r"config.yaml: "):
        build.trained_model(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_what_a_constructor_refuses_is_named() -> None:
    cfg = compose_config(["model.encoder.dilations=[1,2]"])
    with pytest.raises(UserError, match=r"^model.encoder: .*dilations"):
        build.model(cfg.model)


def test_a_trusted_package_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoders.py").write_text(
        "from spkexp.models.xvector import XVector\nclass Mine(XVector):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose_config(["model=xvector"])
    save_file(
        {name: t.contiguous() for name, t in build.model(cfg.model).state_dict().items()},
        tmp_path / "model.safetensors",
    )
    cfg.model.encoder["_target_"] = "my_encoders.Mine"
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    with pytest.raises(
        UserError, match=r"my_encoders.Mine is no class of spkexp; if you trust that code: trust=\[my_encoders\]"
    ):
        build.trained_model(tmp_path)
    assert type(build.trained_model(tmp_path, ("my_encoders",))[0].encoder).__name__ == "Mine"


def test_speed_copies_and_samplers(make_corpus: Corpus) -> None:
    arguments = ["data=manifest", f"data.manifest='{make_corpus()}'", "augment=speed", "augment.speed_copies=one"]
    cfg = compose_config([*arguments, "data/sampler=speakers"])
    train = corpus.data(cfg).train
    with pytest.raises(UserError, match=r"would become different speakers; use augment.speed_copies=all or"):
        build.sampler(cfg, train, 8)
    cfg.augment.speed_copies = "all"
    assert build.sampler(cfg, train, 8).utterances_per_epoch == 96
    cfg = compose_config([*arguments, "data/sampler=speakers", "augment.speed_label=same"])
    assert build.sampler(cfg, corpus.data(cfg).train, 8).utterances_per_epoch == 32
    # 8 of the longest, but not 8 of them slowed down: batches are multiples of 4.
    cfg = compose_config([*arguments, "data/sampler=bucketed", "data.crop_seconds=null", "data.sampler.buckets=1"])
    cfg.data.sampler.batch_seconds = 8 * float(train.duration[: train.rows].max()) + 0.01
    assert {len(batch) for batch in build.sampler(cfg, train, 8).epoch(0, 0)} == {4}


def test_the_filter_knows_the_split_that_is_made_anew(make_corpus: Corpus) -> None:
    arguments = ["data=manifest", f"data.manifest='{make_corpus()}'", "data.split.by=speaker"]
    table, _ = corpus.table(compose_config([*arguments, "data.filter=\"split = 'train'\""]))
    assert sorted(set(table["speaker"])) == ["s0", "s1", "s2", "s3"]
    assert "split" not in table.columns


def test_reading_processes_share_the_cores_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 processes on 4 nodes, two share the cores, and of those only the ones that this job may use."""
    cfg, allowed = compose_config([]), os.sched_getaffinity(0)
    gpu = torch.device("cuda")
    assert corpus.num_workers(cfg, gpu) == min(16, len(allowed))
    assert corpus.num_workers(cfg, torch.device("cpu")) == 0
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert corpus.num_workers(cfg, gpu) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert distributed.on_this_node() == 1
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert distributed.on_this_node() == 2
    finally:
        dist.destroy_process_group()
