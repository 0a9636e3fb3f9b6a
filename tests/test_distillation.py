"""Learning from a teacher: what is measured, what the teacher hears, what is saved, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from spkexp import build, checkpoint
from spkexp.augment.chain import Parallel, prepared
from spkexp.compose import check_all, compose_config
from spkexp.counter import item_keys
from spkexp.errors import ConfigError, UserError
from spkexp.loss_setup import distillation
from spkexp.losses.distillation import Distillation
from spkexp.losses.margin import AAMSoftmax
from spkexp.models.speaker import SpeakerModel
from spkexp.resume import config_to_resume
from spkexp.savepoint import read_state
from spkexp.step import TrainStep
from tests.faults.corpus import arguments, write_corpus
from tests.faults.test_exact import check, crash, run
from tests.loss_tools import CLASSES, METRIC, margin_head, softmax
from tests.test_chain import Halve

RATE = 16_000
CPU = torch.device("cpu")


class Still(nn.Module):
    """A teacher whose embedding is the first two samples, and a constant."""

    embedding_size, sample_rate = 3, RATE

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor([0.5]))
        self.heard: list[torch.Tensor] = []

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.heard.append(waveform.clone())
        return torch.cat([waveform[:, :2], self.constant.expand(len(waveform), 1)], dim=1)


def of_embeddings(teacher: nn.Module, size: int, clean: bool = True, weight: float = 2.0) -> Distillation:
    return Distillation(teacher, None, None, "embedding", size, weight, 4.0, clean)  # type: ignore[arg-type]


def test_cosine_by_hand() -> None:
    torch.manual_seed(0)
    teacher = Still()
    taught = of_embeddings(teacher, 3).taught(torch.tensor([[3.0, 4.0, 9.0], [0.0, -2.0, 9.0]]), torch.tensor([3, 3]))
    assert taught.tolist() == [[3.0, 4.0, 0.5], [0.0, -2.0, 0.5]]
    embedding = torch.tensor([[3.0, 4.0, 0.5], [1.0, 2.0, 0.0]])
    same = of_embeddings(teacher, 3)
    assert list(same.parameters()) == []
    expected = (0 + 1 - -4 / (5**0.5 * 4.25**0.5)) / 2
    assert same(embedding, taught, None).item() == pytest.approx(expected, abs=1e-6)
    mapped = of_embeddings(teacher, 2)
    assert {name: tuple(p.shape) for name, p in mapped.named_parameters()} == {"map.weight": (3, 2)}
    e, t = embedding[:, :2].double().numpy() @ mapped.map.weight.detach().double().numpy().T, taught.double().numpy()
    cosines = (e * t).sum(axis=1) / np.linalg.norm(e, axis=1) / np.linalg.norm(t, axis=1)
    assert mapped(embedding[:, :2], taught, None).item() == pytest.approx((1 - cosines).mean(), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_divergence_of_posteriors_by_hand(temperature: float) -> None:
    """In float64 with numpy: T² Σ p log(p / q), in the order of the student's classes."""
    torch.manual_seed(1)
    theirs, ours = margin_head(AAMSoftmax, embedding_size=3), softmax()
    columns = torch.randperm(CLASSES)
    measure = Distillation(Still(), theirs, columns, "scores", 5, 1.0, temperature, True)  # type: ignore[arg-type]
    assert list(measure.parameters()) == []
    waveform, embedding = torch.randn(6, 4), torch.randn(6, 5)
    taught = measure.taught(waveform, torch.full((6,), 4))
    heard = torch.cat([waveform[:, :2], torch.full((6, 1), 0.5)], dim=1).double().numpy()
    directions = theirs.weight.detach().double().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    z_t = 30 * heard / np.linalg.norm(heard, axis=1, keepdims=True) @ directions.T  # SOFTMAX's scale
    np.testing.assert_allclose(taught.exp().numpy(), posteriors(z_t)[:, columns.numpy()], rtol=1e-4)
    z_s = (
        embedding.double().numpy() @ ours.linear.weight.detach().double().numpy().T + ours.linear.bias.detach().numpy()
    )
    p, q = (posteriors(z / temperature) for z in (z_t[:, columns.numpy()], z_s))
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert measure(embedding, taught, ours).item() == pytest.approx(expected, rel=1e-4)


def posteriors(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("clean", [True, False])
def test_teacher_hears_the_rows_that_the_student_learns_from(clean: bool) -> None:
    """The augmentation gives the original and a shorter copy of each utterance, halved in length."""
    augmentation = prepared(Parallel(True, {"short": Halve(1.0)}))
    model = build.model(compose_config(["model=xvector", "model.embedding_size=3"]).model)
    teacher = Still()
    distilled = of_embeddings(teacher, 3, clean)
    step = TrainStep(model, margin_head(AAMSoftmax, embedding_size=3), augmentation, None, distilled)
    step.train()
    waveform, label = torch.randn(3, RATE), torch.tensor([5, 1, 0])
    key = torch.from_numpy(item_keys(0, 0, np.arange(3)).view(np.int64))
    output = step(waveform, torch.full((3,), RATE), label, key, [], step=0)
    (heard,) = teacher.heard
    assert len(heard) == (3 if clean else 6)
    assert torch.equal(heard[:3], waveform)
    output.loss.backward()
    assert teacher.constant.grad is None
    assert not teacher.training
    total = output.parts["loss_task"] + 2.0 * output.parts["loss_distillation"]
    assert output.loss.item() == pytest.approx(total.item(), abs=1e-6)
    assert not any("constant" in name for name in [*step.state_dict(), *dict(step.named_parameters())])
    # Row by row: an original and its copy are held against the same embedding of the teacher if it hears originals.
    step.eval()
    with torch.no_grad():
        captured: list[torch.Tensor] = []
        distilled.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[1]))
        step(waveform, torch.full((3,), RATE), label, key, [], step=0)
    copies = waveform if clean else waveform + 7  # as Halve makes them
    expected = torch.cat([torch.cat([rows[:, :2] for rows in (waveform, copies)]), torch.full((6, 1), 0.5)], dim=1)
    assert torch.equal(captured[0], expected)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("distillation") / "a corpus ü")


def composed(*overrides: str) -> DictConfig:
    cfg = compose_config(list(overrides))
    OmegaConf.resolve(cfg)
    return cfg


@pytest.fixture(scope="module")
def teacher(corpus: Path) -> Path:
    folder = corpus.parent / "a teacher ü"
    run(composed(*arguments(corpus, folder, "trainer.max_steps=2", "model.embedding_size=24")), False)
    return folder


@pytest.mark.parametrize(
    ("at", "more"),
    [(4, ["trainer.ema=0.9", "trainer.average_last=2"]), (3, ["distill.target=scores", "trainer.accumulate=2"])],
    ids=["embedding", "scores"],
)
def test_resume_is_exact(corpus: Path, teacher: Path, tmp_path: Path, at: int, more: list[str]) -> None:
    check(corpus, tmp_path, ([f"distill.teacher='{teacher}'", "distill.weight=3.0", *more], 0, 0), at, crash)
    folders = [tmp_path / name / "checkpoints" / "last" for name in ("whole", "broken")]
    one, other = (read_state(folder) for folder in folders)
    assert one["distillation"].keys() == ({"map.weight"} if at == 4 else set())
    assert all(torch.equal(value, other["distillation"][name]) for name, value in one["distillation"].items())
    model, head = checkpoint.load_tensors(folders[0])
    assert not any("distillation" in name or "map" in name for name in [*model, *head])
    assert head["weight"].shape == (4, 16)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text("utf-8").splitlines()]
    trained = [line["train"] for line in lines if "train" in line]
    assert len(trained) == 7
    for entry in trained:
        assert entry["loss"] == pytest.approx(entry["loss_task"] + 3 * entry["loss_distillation"], rel=1e-5)


def test_another_teacher_is_refused(corpus: Path, teacher: Path, tmp_path: Path) -> None:
    """Of the same path: the weights count."""
    own = tmp_path / "teacher"
    before = checkpoint.find(teacher)
    model, cfg, _ = build.trained_model(before)
    checkpoint.save_portable(own, model, None, cfg, [])
    folder = tmp_path / "run"
    run(composed(*arguments(corpus, folder, "trainer.max_steps=1", f"distill.teacher='{own}'")), False)
    nn.init.zeros_(model.embedding.bias)
    checkpoint.save_portable(own, model, None, cfg, [])
    with pytest.raises(UserError) as error:
        run(config_to_resume(str(folder), ["trainer.max_steps=2"]), True)
    assert str(error.value).startswith(
        f"resume: distill.teacher={own} has other weights than the teacher that {folder}"
    )


def test_settings_that_a_config_cannot_have() -> None:
    with pytest.raises(ConfigError) as error:
        check_all(["distill.weight=3", "distill.clean=false", "distill.temperature=4"], False)
    assert error.value.mistakes == [
        f"distill.{key}: needs a teacher; give distill.teacher=RUN, too, or leave it out" for key in ("weight", "clean")
    ]
    with pytest.raises(ConfigError) as error:
        check_all(["distill.teacher=RUN", "distill.weight=3", "trainer.batch_size=auto"], False)
    assert error.value.mistakes == [
        "trainer.batch_size: auto does not count what distill.teacher takes of the memory; give a number"
    ]
    for fine in (["distill.weight=10", "trainer.batch_size=auto"], ["distill.teacher=RUN", "distill.clean=false"]):
        check_all(fine, False)


def test_what_does_not_go_together(teacher: Path, tmp_path: Path) -> None:
    labels = ["s0", "s1", "s2", "s3"]
    model = build.model(compose_config(["model=xvector"]).model)
    head = margin_head(AAMSoftmax, num_classes=4)
    folder = checkpoint.find(teacher)

    def made(loss: nn.Module, names: list[str], *overrides: str, student: SpeakerModel = model) -> Distillation:
        return distillation(composed(*overrides), folder, student, loss, names, CPU)  # type: ignore[arg-type]

    scores = "distill.target=scores"
    assert made(head, labels[::-1], scores)._teacher[2].tolist() == [3, 2, 1, 0]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"distill.target=scores: Triplet has no classes; use distill.target=embeddi"):
        made(METRIC["triplet-all"](), labels, scores)
    with pytest.raises(UserError, match=r"of the 4 here .* knows 3, s9 not, of 4 that it has; use distill.target=embe"):
        made(head, [*labels[:3], "s9"], scores)
    with pytest.raises(UserError, match=r"of the 3 here .* knows 3, of 4 that it has"):
        made(head, labels[:3], scores)
    slow = build.model(compose_config(["model=xvector", "model.features.sample_rate=8000"]).model)
    with pytest.raises(UserError, match=r"distill.teacher: .* hears 16000 Hz, and model.features.sample_rate is 8000"):
        made(head, labels, student=slow)
    bare = tmp_path / "bare"
    checkpoint.save_portable(bare, build.trained_model(folder)[0], None, checkpoint.load_config(folder), [])
    with pytest.raises(UserError, match=r"of the 4 here .* knows 0, s0 not, of 0 that it has"):
        distillation(composed(scores), bare, model, head, labels, CPU)
    assert made(head, ["a", "b", "c", "d"]).map.weight.shape == (24, model.embedding_size)
