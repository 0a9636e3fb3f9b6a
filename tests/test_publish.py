"""A model goes to others, and comes back from there: the same embeddings, and nothing of the machine it is from."""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import constants

from spkexp import build, checkpoint, durable
from spkexp.compose import compose_config
from spkexp.errors import UserError
from spkexp.publishing import results_of
from tests.archive_server import serving
from tests.conftest import Done, Run
from tests.hub_server import TOKEN, Hub
from tests.test_sources import ELSEWHERE, at, content

RESULTS = {
    "model": "conv1d", "data": "mine", "seed": 0, "parameters": 1234567, "classes": 2,
    "trials": {
        "val": {"num_trials": 1200, "eer": 0.05, "eer_ci95": [0.041, 0.062], "eer_threshold": 0.3,
                "min_dcf": {"0.01": 0.5}, "min_dcf_ci95": {"0.01": [0.4, 0.6]}},
        "few": {"num_trials": 9, "eer": 0.1, "eer_ci95": None, "min_dcf": {"0.01": 1.0}},
        "blind": {"num_trials": 9},
    },
}  # fmt: skip
OVERRIDES = [
    *("model=conv1d", "model.encoder.channels=[8,8,8,8]", "loss=softmax", "trainer.epochs=7"),
    *("data.root=/home/anna/corpora", "augment.musan=/home/anna/musan", "run_dir=/home/anna/x", "tracking.entity=anna"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a small model of random weights."""
    monkeypatch.setenv("SPKEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    cfg = compose_config(OVERRIDES)
    torch.manual_seed(0)
    model = build.model(cfg.model)
    folder = tmp_path / "my run"
    head = torch.nn.Linear(model.embedding_size, 2)
    checkpoint.save_portable(folder / "checkpoints/best", model, head, cfg, ["anna", "zoë"])
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    found = Hub()
    at(monkeypatch, found.url)
    yield found
    found.close()


Publish = Callable[..., Done]


@pytest.fixture
def publishing(run_command: Run) -> Publish:
    return lambda *arguments: run_command("publish", *arguments)


def embedding(source: str | Path) -> torch.Tensor:
    model, _, _ = build.trained_model(source)
    wave = torch.sin(torch.arange(16000) / 7)[None]
    with torch.inference_mode():
        return model(wave, torch.tensor([16000]))


def test_a_folder_for_others(run: Path, publishing: Publish, tmp_path: Path) -> None:
    done = publishing(f"model={run}", "licence=CC-BY-4.0", "output=öffentlich", "description=Of my corpus.")
    assert done.code == 0
    folder = tmp_path / "öffentlich"
    assert torch.equal(embedding(folder), embedding(run))
    assert checkpoint.load_labels(folder) == ["anna", "zoë"]
    assert durable.verify(folder, [file.name for file in folder.iterdir() if file.name != durable.SUMS]) is None
    assert json.loads((folder / "results.json").read_text()) == RESULTS
    text = {name: value.decode() for name, value in content(folder).items() if name != "model.safetensors"}
    assert not [name for name, value in text.items() if "/home/anna" in value or str(tmp_path) in value]
    config = checkpoint.load_config(folder)
    assert (config.data.root, config.augment.musan, config.run_dir, config.tracking.entity) == (None,) * 4
    assert config.trainer.epochs == 7
    for wrong, message in ((f"model={run}", "is there already"), ("model=nix", "no such run folder")):
        done = publishing(wrong, "licence=mit", "output=öffentlich")
        assert done.code == 2
        assert message in done.err


def test_the_model_card(run: Path, publishing: Publish, tmp_path: Path) -> None:
    publishing(f"model={run}", "licence=cc-by-4.0", "output=made", "description=Of my corpus.")
    _, head, body = (tmp_path / "made/README.md").read_text().split("---\n", 2)
    meta = yaml.safe_load(head)
    assert meta["license"] == "cc-by-4.0"
    measured = {r["dataset"]["name"]: r["metrics"][0]["value"] for r in meta["model-index"][0]["results"]}
    assert measured == {"synthetic, val": 5.0, "synthetic, few": 10.0}
    assert "Of my corpus." in body
    assert "| val | 1,200 | 5.00 | 4.10–6.20 | 0.500 (0.400–0.600) |" in body
    assert "| few | 9 | 10.00 |  | 1.000 |" in body
    assert "1.23 M parameters, 2 classes in training." in body
    assert "| `trainer.epochs` | `7` |" in body
    assert "| `model.encoder.channels` | `[8, 8, 8, 8]` |" in body
    assert "cc-by-4.0. The recordings" in body
    assert not re.search(r"data\.root|entity|musan", body)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "trials: "),
        ("[]", "it: "),
        ('{"trials": []}', "trials: "),
        ('{"trials": {"val": null}}', "trials.val: "),
        ('{"trials": {"val": {"eer": "x"}}}', "trials.val.eer: "),
        ('{"trials": {"val": {"eer": 0.1, "min_dcf": [1]}}}', "trials.val.min_dcf: "),
        ('{"trials": {}, "parameters": [1]}', "parameters: "),
    ],
)
def test_what_is_no_results_json_is_named(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(
        UserError, match=rf"results\.json: is no results.json of a run \({re.escape(reason)}.*; move it"
    ):
        results_of(tmp_path)


def test_of_older_results_what_is_there_is_shown(run: Path, publishing: Publish, tmp_path: Path) -> None:
    """By the best that a kill left under another name, and a config that names neither model nor data."""
    best = run / "checkpoints/best"
    config = yaml.safe_load((best / "config.yaml").read_text())
    del config["names"]
    (best / "config.yaml").write_text(yaml.safe_dump(config))
    (best / durable.SUMS).unlink()
    best.rename(run / "checkpoints/best.old")
    (run / "results.json").write_text('{"trials": {"a|b\\n# c": {"eer": 0.25}}}')
    assert publishing(f"model={run}", "licence=mit", "output=made").code == 0
    card = (tmp_path / "made/README.md").read_text()
    assert "# model on unknown" in card
    assert "| a\\|b # c |  | 25.00 |  |" in card.splitlines()
    # Published again, it is with the results beside it.
    (tmp_path / "made/results.json").write_text("{}")
    done = publishing("model=made", "licence=mit", "output=again")
    assert done.code == 2
    assert "made/results.json: is no results.json of a run (trials: Field required)" in done.err


def test_without_labels_nobody_is_named(run: Path, publishing: Publish, tmp_path: Path) -> None:
    publishing(f"model={run}", "licence=mit", "output=made", "labels=false")
    assert torch.equal(embedding("made"), embedding(run))
    assert checkpoint.load_labels(tmp_path / "made") == []
    assert checkpoint.load_tensors(tmp_path / "made")[1] == {}
    assert "classify" not in (tmp_path / "made/README.md").read_text()


def test_an_archive_for_the_web(run: Path, publishing: Publish, tmp_path: Path) -> None:
    done = publishing(f"model={run}", "licence=mit", "output=out/model.tar.gz")
    file = tmp_path / "out/model.tar.gz"
    fragment = f"model.tar.gz#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert fragment in done.out
    with tarfile.open(file) as archive:
        assert {(member.uid, member.uname) for member in archive} == {(0, "")}
    with pytest.raises(UserError, match=r"model.tar.gz: is an archive; unpack it"):
        embedding(file)
    with serving() as server:
        server.files["/model.tar.gz"] = file.read_bytes()
        assert torch.equal(embedding(f"{server.url}/{fragment}"), embedding(run))


def test_to_the_hub_and_back(run: Path, publishing: Publish, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    to = (f"model={run}", "licence=mit", "to=me/ecapa")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    done = publishing(*to)
    assert done.code == 2
    assert "the hub answers 401" in done.err
    assert "hf auth login" in done.err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = publishing(*to, "private=true")
    assert done.code == 0
    assert 'spkexp.load("me/ecapa")' in done.out
    assert hub.private == {"me/ecapa"}
    assert {*hub.repositories["me/ecapa"][-1]} >= {"model.safetensors", "config.yaml", "labels.json", "README.md"}
    assert 'spkexp.load("me/ecapa")' in hub.repositories["me/ecapa"][-1]["README.md"].decode()
    assert torch.equal(embedding("me/ecapa"), embedding(run))
    assert publishing(*to).code == 0  # a new version of what is there
    at(monkeypatch, ELSEWHERE)
    assert torch.equal(embedding("me/ecapa"), embedding(run))  # by the cache


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "licence: missing; give it as licence=VALUE"),
        (["licence=mit"], "give to=USER/NAME"),
        (["licence=mit", "output=x", "private=true"], "give to=USER/NAME, too"),
        (["licence=mit", "to=a b"], "is no name of a repository on the hub"),
        (["licence=mit", "to=me/ecapa"], "to=me/ecapa: the hub cannot be reached"),
        (["licence=mit", "output=/proc/x"], "output=/proc/x: cannot be written"),
        (["licence=mit", "output=x.zip"], "output=x.zip: archives are written as .tar.gz"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, run: Path, publishing: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, ELSEWHERE)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = publishing(f"model={run}", *arguments)
    assert done.code == 2
    assert message in done.err


def test_evaluating_what_was_published(run: Path, publishing: Publish, run_command: Run, tmp_path: Path) -> None:
    """On recordings of one's own, beside which no voices are made, as the run's own corpus would be."""
    publishing(f"model={run}", "licence=mit", "output=made")
    root = tmp_path / "my recordings"
    root.mkdir()
    random = np.random.default_rng(0)
    for name in ("a1", "a2", "b1", "b2"):
        soundfile.write(root / f"{name}.wav", 0.1 * random.standard_normal(8000), 16000)
    (tmp_path / "list.txt").write_text("1 a1.wav a2.wav\n1 b1.wav b2.wav\n0 a1.wav b1.wav\n0 a2.wav b2.wav\n")
    assert run_command("evaluate", "model=made", "trials=list.txt", f"data.root={root}", "output=out").code == 0
    assert json.loads((tmp_path / "out/results.json").read_text())["trials"]["list"]["num_trials"] == 4
    assert sorted(path.name for path in root.iterdir()) == ["a1.wav", "a2.wav", "b1.wav", "b2.wav"]
    done = run_command("evaluate", "model=made", "trials=list.txt", f"data.root={root}")
    assert done.code == 2
    assert "model=made: was published with its results, which others are not to replace; give output=DIR" in done.err
    done = run_command("evaluate", "model=me/ecapa", "trials=list.txt")
    assert done.code == 2
    assert "model=me/ecapa: is no folder of yours, where its results could go; give output=DIR" in done.err
