"""Every config in conf/ and experiments/ trains for a step and is scored, as the command runs it."""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
import yaml

from spkexp import build
from spkexp.compose import check_all, compose_config
from spkexp.config import check, config_folder
from spkexp.data.utterances import Utterances
from spkexp.step import TrainStep
from tests.conftest import Run, voice
from tests.test_every_model import LARGE

CONF = config_folder()
STUDIES = CONF.parent / "experiments"
STUDY = sorted(file.stem for file in STUDIES.glob("*.yaml"))
TINY = ["data=manifest", "data.crop_seconds=0.5", "trainer.max_steps=1", "trainer.batch_size=4", "trainer.epochs=1"]
TINY += ["scoring.bootstrap=0", "scoring.projection=null", "scoring.hardest=0", "resume=never"]
# Losses of pairs; they need two utterances of a speaker in a batch.
PAIRS = {"ge2e", "angular_prototypical", "triplet", "supervised_contrastive", "aam_ge2e"}
# Without features that masks could be laid over.
OF_WAVEFORM = {"sinctdnn", "rawnet3", "wav2vec2", "hubert", "wavlm"}
SLOW = LARGE | {"campplus", "conformer", "eres2netv2", "redimnet_b2", "resnet34", "res2net"}
# What other tests run, because it needs a corpus, other machines or a run: tests/test_docs.py runs each corpus.
ELSEWHERE = ("data/", "preset/large_margin", "hydra/", "tracking/")


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def combinations() -> list[list[str]]:
    """Overrides of as few jobs as there are models, in which every option of every other group comes at least once."""
    groups = ("augment", "trainer/optimizer", "trainer/schedule", "scoring", "model/pooling")
    turns = {group: cycle(options(group)) for group in groups}
    losses, samplers = cycle(options("loss")), cycle(["random", "weighted", "bucketed"])
    jobs = []
    # The small ones first: with them each option has had its turn.
    for model in sorted(options("model"), key=lambda name: (name in SLOW, name)):
        loss = next(losses)
        sampler = "speakers" if loss in PAIRS else next(samplers)
        chosen = {group: next(turn) for group, turn in turns.items()}
        if model in OF_WAVEFORM:
            chosen["augment"] = "simulated"
        job = [f"model={model}", f"loss={loss}", f"data/sampler={sampler}", *(f"{k}={v}" for k, v in chosen.items())]
        # What a combination needs beside the two: pairs of one speed, whole utterances to put side by side,
        # more utterances than dimensions.
        needs = {"speakers": ["augment.speed_copies=all"], "bucketed": ["data.crop_seconds=null"]}
        fewer = ["model.embedding_size=8"] if chosen["scoring"] == "plda" else []
        jobs.append([*job, *needs.get(sampler, []), *fewer])
    return jobs


def _read(study: str) -> dict[str, Any]:
    return yaml.safe_load((STUDIES / f"{study}.yaml").read_text())


def variants(study: str) -> list[list[str]]:
    """Overrides of each job of a study, seeds apart, where it sweeps over variants with a file of their own."""
    params = _read(study).get("hydra", {}).get("sweeper", {}).get("params", {})
    groups = [key for key in params if key.startswith("experiments/")]
    return [[f"experiments={study}", f"{key}={value}"] for key in groups for value in params[key].split(",")]


COMBINED = combinations()
SMALL = [job for job in COMBINED if job[0].removeprefix("model=") not in SLOW]
JOBS = [pytest.param(job, marks=[] if job in SMALL else pytest.mark.slow) for job in COMBINED]
VARIANTS = [job for study in STUDY for job in variants(study)]
# Trained by the command: of each study the first, and what reads recordings. Of the others a step is taken.
WHOLE = [variants(study)[0] for study in STUDY if variants(study)] + variants("augmentation")[1:]


def name(job: list[str]) -> str:
    return "-".join(part.partition("=")[2] for part in job[:4])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, and beside it folders like MUSAN and RIRS_NOISES that every bank of conf/augment finds files in."""
    folder = tmp_path_factory.mktemp("every config")
    lines = ["id,path,speaker,split"]
    for speaker in range(8):
        for number in range(4):
            soundfile.write(folder / f"{speaker}-{number}.wav", voice(speaker, number, 0.6), 16_000)
            split = "train" if speaker < 6 else "val"
            lines.append(f"{speaker}-{number},{speaker}-{number}.wav,s{speaker},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    names = [f"musan/{kind}/x/{number}.wav" for kind in ("speech", "music") for number in range(7)]
    names += [
        "musan/noise1.wav",
        "rirs/simulated_rirs/a/1.wav",
        "rirs/real_rirs_isotropic_noises/RVB2014_type1_rir_1.wav",
    ]
    names += [
        "rirs/real_rirs_isotropic_noises/air_type1_air_1.wav",
        "musan/noise/free-sound/noise-free-sound-0030.wav",
        "musan/noise/sound-bible/1.wav",
    ]
    for name in names:
        wave = rng.normal(0, 0.1, 16_000) * (np.exp(-np.arange(16_000) / 800) if name.startswith("rirs") else 1)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, wave, 16_000)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_nothing_is_left_out() -> None:
    ran = {override.replace("=", "/") for job in SMALL for override in job}
    files = {str(file.relative_to(CONF).with_suffix("")) for file in CONF.rglob("*.yaml")} - {"config", "data_common"}
    left = {name for name in files - ran if not name.startswith(ELSEWHERE)}
    assert left <= {f"model/{name}" for name in SLOW} | {"preset/none", "trainer/default"}


@pytest.mark.parametrize("study", STUDY)
def test_every_job_of_a_study_is_composed_and_checked(study: str) -> None:
    mine = ["data.root=/corpora/voxceleb2"] if study == "encoders_published" else []
    check_all([f"experiments={study}", *mine, "seed=0"], "sweeper" in _read(study).get("hydra", {}))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("job", [*JOBS, *WHOLE], ids=name)
def test_it_trains(
    job: list[str], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*TINY, *job, f"data.manifest='{corpus}/manifest.csv'", "data.root=null"]
    given += [f"augment.musan='{corpus}/musan'", f"augment.rirs='{corpus}/rirs'"]
    done = run_command("train", *given, *(["-m", "seed=0"] if job in WHOLE else []))
    assert done.code == 0, done.err
    (file,) = tmp_path.glob("runs/2*/*/results.json")
    results = json.loads(file.read_text())
    assert results["steps"] == 1
    assert 0 <= results["trials"]["val"]["eer"] <= 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("job", [job for job in VARIANTS if job not in WHOLE], ids=name)
def test_a_variant_takes_a_step(job: list[str]) -> None:
    cfg = compose_config(job)
    check(cfg)
    torch.manual_seed(0)
    model = build.model(cfg.model)
    ids = [f"u{index}" for index in range(8)]
    table = pl.DataFrame({"id": ids, "path": ids, "duration": [1.0] * 8, "speaker": [f"s{i % 4}" for i in range(8)]})
    step = TrainStep(model, build.loss(cfg, Utterances.of(table, "speaker"), 192, steps_per_epoch=2), None, None)
    optimizer = build.build(cfg.trainer.optimizer, "trainer.optimizer", params=step.parameters())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    waveform = 0.1 * torch.randn(8, 8000, generator=torch.Generator().manual_seed(1))
    out = step(waveform, torch.full((8,), 8000), torch.arange(8) % 4, torch.arange(8), [], 0)
    out.loss.backward()
    optimizer.step()
    assert out.loss.isfinite()
    assert any(not parameter.equal(old) for parameter, old in zip(model.parameters(), before, strict=True))
