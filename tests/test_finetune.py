"""Runs that start from others' weights: what is taken, what is said, and what stays as it was."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from spkexp import build, checkpoint, initial_weights, run_folder
from spkexp.compose import check_all, compose_config
from spkexp.errors import ConfigError, UserError
from spkexp.initial_weights import fit, report
from spkexp.model_choice import keep_model_of_source, with_model_of_source
from spkexp.models import lora
from spkexp.outcome import Outcome
from spkexp.resume import last_run
from spkexp.train import train, with_absolute_paths
from tests.conftest import Run
from tests.faults.corpus import TINY, arguments, write_corpus
from tests.test_self_supervised import arguments as arguments_of_self_supervised

SETTINGS = tuple(entry for entry in TINY if not entry.startswith("model."))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("finetune") / "a corpus ü")


def start(*overrides: str) -> Outcome | None:
    """`spkexp.train OVERRIDES`, in this process."""
    cfg = compose_config(list(overrides))
    OmegaConf.resolve(cfg)
    return train(cfg, list(overrides))


@pytest.fixture(scope="module")
def source(corpus: Path) -> Path:
    """A run of four speakers, an ecapa_small that is smaller still."""
    folder = corpus.parent / "a source ü"
    start(*arguments(corpus, folder, "trainer.max_steps=2"))
    return folder


def settings(corpus: Path, *more: str) -> list[str]:
    """Of a run that names no model."""
    return [*SETTINGS, "data=manifest", f"data.manifest='{corpus}/manifest.csv'", *more]


def composed(*overrides: str) -> DictConfig:
    cfg = compose_config(list(overrides))
    OmegaConf.resolve(cfg)
    return with_model_of_source(with_absolute_paths(cfg), list(overrides))


def tensors_of(run: Path, name: str = "last") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return checkpoint.load_tensors(run / "checkpoints" / name)


def test_report_by_hand() -> None:
    shapes = {"encoder.a": (2, 3), "encoder.b": (4,), "pooling.c": (5,), "embedding.weight": (7, 2)}
    other = {"encoder.b": (4,), "encoder.a": (3, 2), "embedding.weight": (7, 2), "fc.weight": (1000, 2)}
    own, theirs = ({name: torch.zeros(shape) for name, shape in s.items()} for s in (shapes, other))
    found = fit(own, theirs)
    assert found == (["encoder.b", "embedding.weight"], ["encoder.a", "pooling.c"], ["encoder.a", "fc.weight"])
    assert found.partial
    assert not fit(own, own).partial
    assert report(found, own, theirs).splitlines() == [
        "  module     taken   re-initialised  skipped",
        "  encoder    1 (4)   1 (6)           1 (6)",
        "  pooling    -       1 (5)           -",
        "  embedding  1 (14)  -               -",
        "  fc         -       -               1 (2,000)",
        "  all        2 (18)  2 (11)          2 (2,006)",
        "  re-initialised: encoder.a [2, 3], there [3, 2]",
        "  re-initialised: pooling.c [5], not there",
        "  skipped: fc.weight [1000, 2]",
    ]
    many = {f"x.{index}": torch.zeros(1) for index in range(23)}
    lines = report(fit(many, {}), many, {}).splitlines()
    assert lines[-2:] == ["  re-initialised: x.19 [1], not there", "  re-initialised: and 3 more"]


def test_all_of_a_run_with_other_speakers(corpus: Path, source: Path, tmp_path: Path) -> None:
    """No model is named: it is the source's. A speaker less, and in another order; known ones go on as they were."""
    run = tmp_path / "a run ü"
    start(*settings(corpus, f"init_from='{source}'", f"run_dir='{run}'", "data.filter=\"speaker != 's1'\"",
                    "trainer.max_steps=1", "trainer.optimizer.lr=1e-30"))  # fmt: skip
    cfg = checkpoint.load_config(run)
    assert (cfg.model, cfg.names.model) == (checkpoint.load_config(source).model, "ecapa_small")
    assert cfg.model.encoder.channels == 16
    (before, head), (after, new_head) = tensors_of(source, "best"), tensors_of(run)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    labels, former = (checkpoint.load_labels(folder / "checkpoints/best") for folder in (run, source))
    assert (labels, former) == (["s0", "s2", "s3"], ["s0", "s1", "s2", "s3"])
    torch.testing.assert_close(new_head["weight"], head["weight"][[0, 2, 3]], rtol=0, atol=1e-7)
    log = (run / "train.log").read_text(encoding="utf-8")
    count, numbers = len(before), sum(tensor.numel() for tensor in before.values())
    assert f" INFO init_from: ecapa_small (spkexp.models.ecapa.ECAPA) of {source}/checkpoints/best\n" in log
    assert log.count("init_from: ecapa") == 1  # not again for the untrained encoder of the results
    assert re.search(rf"^  all +{count} \({numbers:,}\) +- +-$", log, re.MULTILINE)
    assert "re-initialised: " not in log
    assert "loss: 3 of 3 classes are known" in log


def test_partial(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another embedding and another front end: the first is fresh as the seed makes it, the second is warned of."""
    cfg = composed(f"init_from='{source}'", "model.embedding_size=20", "model.features.preemphasis=0.5", "seed=3")
    assert cfg.model.encoder.channels == 16
    torch.manual_seed(3)
    fresh = build.model(cfg.model).state_dict()
    torch.manual_seed(3)
    model = build.model(cfg.model)
    with caplog.at_level(logging.INFO):
        taken = initial_weights.take(cfg, model, announce=True)
    before, head = tensors_of(source, "best")
    assert taken.head.keys() == head.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("embedding.") else before)[name]), name
    front, message = caplog.messages
    assert front == (
        "init_from: model.features.preemphasis is 0.5, and the weights were trained with 0.97: a front end belongs to "
        "its weights"
    )
    assert [line.strip() for line in message.splitlines() if ": embedding" in line or "embedding " in line] == [
        "embedding     -             2 (1,300)       2 (1,040)",
        "re-initialised: embedding.weight [20, 64], there [16, 64]",
        "re-initialised: embedding.bias [20], there [16]",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_nothing_fits(corpus: Path, source: Path, tmp_path: Path, run_command: Run) -> None:
    run = tmp_path / "run"
    done = run_command("train", *settings(corpus, f"init_from='{source}'", "model=xvector", f"run_dir='{run}'"))
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        f"spkexp: init_from: {source}/checkpoints/best is of ecapa_small (spkexp.models.ecapa.ECAPA), of which nothing "
        "fits the encoder of xvector (spkexp.models.xvector.XVector); leave model=… out to have its model"
    )
    assert not run.exists()


def test_whose_model_it_is(source: Path, tmp_path: Path) -> None:
    own = checkpoint.load_config(source).model
    given = f"init_from='{source}'"
    assert composed(given, "model=xvector").names.model == "xvector"
    assert composed(given, "model=ecapa_small").model.encoder.channels == 128
    assert composed("model.encoder.channels=64").model.encoder.channels == 64
    changed = composed(given, "model.encoder.channels=32", "names.model=mine", "model/pooling=mean")
    assert (changed.model.encoder.channels, changed.names.model) == (32, "mine")
    assert changed.model.encoder.se_channels == own.encoder.se_channels == 8
    assert changed.model.pooling._target_ == "spkexp.models.pooling.MeanPooling"
    portable = tmp_path / "portable ü"
    cfg = checkpoint.load_config(source)
    cfg.model.encoder.backend, cfg.names.model = "triton", "mine"
    portable.mkdir()
    OmegaConf.save(cfg, portable / "config.yaml")
    with pytest.raises(ConfigError, match=r"model.encoder.backend: ECAPA takes no 'backend'"):
        composed(f"init_from='{portable}'")
    with pytest.raises(ConfigError, match=r"~model.embedding_norm: .* name the model: model=…"):
        with_model_of_source(compose_config([given]), [given, "~model.embedding_norm"])
    with pytest.raises(UserError, match=r"init_from: /nowhere is no run, nor the folder of a model"):
        composed("init_from=/nowhere")
    cfg.model.encoder = {"_target_": "os.system", "command": f"touch {tmp_path}/x"}
    OmegaConf.save(cfg, portable / "config.yaml")
    with pytest.raises(UserError, match=r"model.encoder._target_: os.system is no class of spkexp"):
        composed(f"init_from='{portable}'")
    assert not (tmp_path / "x").exists()


def test_a_file_that_changes_the_model(source: Path, tmp_path: Path) -> None:
    """What the command line says of the model holds for the source's; what a file says of the default one cannot."""
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset/mine.yaml").write_text(
        "# @package _global_\nmodel: {embedding_size: 99, encoder: {channels: 48, se_channels: 40}}\n"
    )
    given = [f"init_from='{source}'", "preset=mine", "model.encoder.se_channels=20"]

    def chosen(*more: str) -> DictConfig:
        cfg = check_all([*given, *more], False, str(tmp_path))
        OmegaConf.resolve(cfg)
        job = HydraConfig.instance().cfg
        try:
            return with_model_of_source(cfg, [*given, *more])
        finally:
            assert HydraConfig.instance().cfg is job

    with pytest.raises(ConfigError) as error:
        chosen()
    assert error.value.mistakes == [
        f"init_from: a file of configs changes model.{key}, which init_from would replace; name the model: model=…"
        for key in ("embedding_size", "encoder.channels")
    ]
    model = chosen("model=ecapa_small").model
    assert (model.embedding_size, model.encoder.channels, model.encoder.se_channels) == (99, 48, 20)


def test_resume_auto_without_the_source(
    corpus: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that is started again finds its run though the source is gone since, and that run alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").symlink_to(source)
    given = settings(corpus, "init_from=theirs", "resume=auto", "trainer.max_steps=1")
    some = {
        name: [*given, *more]
        for name, more in {
            "trained": ["model.embedding_size=20"],
            "there": ["model.embedding_size=20", "seed=1", "run_dir=there"],
            "own": ["model=ecapa_small", "seed=2"],
            "last": ["seed=3"],
        }.items()
    }
    before, folders = {name: composed(*line) for name, line in some.items()}, {}
    first = start(*some["trained"])
    assert first is not None
    for name in ("there", "own", "last"):
        folders[name] = run_folder.create(before[name])
        run_folder.record_environment(folders[name], before[name])
        keep_model_of_source(before[name], folders[name])
    (tmp_path / "theirs").unlink()
    for name, folder in folders.items():
        capsys.readouterr()
        assert composed(*some[name]) == before[name], name
        said = capsys.readouterr().err
        assert f"theirs/config.yaml is not there; the run that began with it is there: {folder}\n" in said
        assert last_run(before[name]) == folder
    assert start(*some["trained"]) == first  # it is finished
    results = Path(first.run_dir) / "results.json"
    (entry,) = json.loads(results.read_text())["trials"].values()
    assert 0 <= entry["before"]["eer"] <= 1  # what the source scores, which is not untrained
    assert "untrained" not in entry
    results.unlink()  # as if it were not finished
    again = start(*some["trained"])
    assert again is not None
    assert Path(again.run_dir).absolute() == Path(first.run_dir).absolute()
    for more in (["seed=4"], ["seed=1", "run_dir=there"], ["seed=3", "resume=null"]):
        with pytest.raises(UserError, match=r"init_from: .*theirs is no run, nor the folder of a model"):
            composed(*given, *more)


def test_only_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = "https://example.org/model.tar.gz#sha256=" + "0" * 64
    (tmp_path / "somebody/run").mkdir(parents=True)
    for given, expected in {
        "runs/2026/x": f"{tmp_path}/runs/2026/x",
        "somebody/run": f"{tmp_path}/somebody/run",
        "nobody/model": "nobody/model",
        "nobody/model@v1": "nobody/model@v1",
        address: address,
    }.items():
        cfg = compose_config([])
        cfg.init_from = cfg.distill.teacher = given
        cfg = with_absolute_paths(cfg)
        assert (cfg.init_from, cfg.distill.teacher) == (expected, expected)


STEPS = 4  # of an epoch
# The first epoch that a part learns in, from the bottom up.
BEGINS = {"encoder.first": 9, "encoder.blocks.0": 3, "encoder.blocks.1": 3, "encoder.blocks.2": 2, "encoder.aggre": 2}


def test_gradual_unfreezing(corpus: Path, source: Path, tmp_path: Path) -> None:
    """A part more each epoch; what is frozen stays as it was bit for bit, statistics too. The run ends at each epoch
    and goes on."""
    run = tmp_path / "run"
    groups = (
        "trainer.param_groups={low: {match: model.encoder.first, frozen_epochs: all}, "
        "middle: {match: model.encoder.blocks.0|model.encoder.blocks.1, frozen_epochs: 2}, "
        "top: {match: model.encoder.blocks.2|model.encoder.aggregation, frozen_epochs: 1, lr: 1.0e-4}}"
    )
    new = [*settings(corpus), f"init_from='{source}'", f"run_dir='{run}'", groups, "trainer.epochs=5"]
    before, _ = tensors_of(source, "best")
    for epoch in (1, 2, 3):
        start(*(new if epoch == 1 else [f"resume='{run}'"]), f"trainer.max_steps={epoch * STEPS}")
        after, _ = tensors_of(run)
        for name, tensor in after.items():
            begins = next((begin for part, begin in BEGINS.items() if name.startswith(part)), 1)
            assert torch.equal(tensor, before[name]) == (epoch < begins), (epoch, name)
        before = after
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = next(line["lr_of"] for line in reversed(lines) if "lr_of" in line)
    assert rates.keys() == {"default", "middle", "top"}
    assert rates["default"] / rates["top"] == pytest.approx(compose_config([]).trainer.optimizer.lr / 1e-4)
    low, everything = (
        sum(t.numel() for n, t in before.items() if n.startswith(part)) for part in ("encoder.first", "")
    )
    log = (run / "train.log").read_text(encoding="utf-8")
    share = float(re.search(r"M parameters, of which ([\d.]+)% learn", log)[1])  # type: ignore[index]
    assert share == pytest.approx(100 * (1 - low / everything), abs=0.5)  # statistics are counted here, and few


def test_large_margin_preset_goes_on_with_the_model(corpus: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["preset=large_margin", f"init_from='{source}'", "data.crop_seconds=6.0", "trainer.max_steps=1"]
    start(*settings(corpus, *more, f"run_dir='{run}'"))
    cfg = checkpoint.load_config(run)
    assert (cfg.loss.margin, cfg.model.encoder.channels, cfg.trainer.optimizer._target_) == (0.5, 16, "torch.optim.SGD")
    (before, head), (after, new_head) = tensors_of(source, "best"), tensors_of(run)
    weight = next(name for name in before if name.startswith("encoder.blocks.1.") and before[name].dim() == 3)
    for one, other in ((before[weight], after[weight]), (head["weight"], new_head["weight"])):
        assert 0 < (one - other).abs().max() < 1e-3  # a step at 1e-6, where the warm-up begins


def test_lora_of_the_source_is_taken_or_merged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {key: value for key, value in arguments_of_self_supervised("wav2vec2").items() if key != "in_channels"}
    cfg = compose_config(["model=wav2vec2", "seed=1"])
    cfg.model.encoder.update(small | {"trainable": "none", "lora_rank": 2, "lora_alpha": 3.0})
    torch.manual_seed(0)
    theirs = build.model(cfg.model)
    for name, parameter in theirs.named_parameters():
        if lora.is_lora(name):
            torch.nn.init.normal_(parameter)
    source, waveform, lengths = tmp_path / "lora", torch.randn(1, 1200), torch.tensor([1200])
    checkpoint.save_portable(source, theirs, None, cfg, [])
    expected = theirs.eval()(waveform, lengths)
    cfg.init_from = str(source)

    def taken(**encoder: object) -> tuple[torch.nn.Module, str]:
        own = cfg.copy()
        own.model.encoder.update(encoder)
        model = build.model(own.model)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert initial_weights.take(own, model, announce=True).head == {}
        torch.testing.assert_close(model.eval()(waveform, lengths), expected, rtol=1e-4, atol=1e-5)
        return model, caplog.text

    same, said = taken(lora_dropout=0.2)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in same.state_dict().items())
    assert "merged" not in said
    for changes in ({"lora_rank": 0}, {"lora_rank": 3}, {"lora_alpha": 1.0}, {"lora_match": "*.q_proj"}):
        model, said = taken(**changes)
        assert f"the LoRA of {source}, another than this model's, is merged into its weights" in said
        fresh = sum(lora.is_lora(name) for name in model.state_dict())
        assert (fresh == 0) == (changes == {"lora_rank": 0})
        assert (f"re-initialised: {fresh} of LoRA, which begins as nothing" in said) == (fresh > 0)
        assert "WARNING" not in said
