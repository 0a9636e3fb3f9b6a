"""`spkexp.load`: a trained model in use, from Python and by `python -m spkexp.verify`."""

import itertools
import logging
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

import spkexp
from spkexp import build, checkpoint
from spkexp.errors import AudioError, UserError
from spkexp.inference.classes import Classifier
from spkexp.inference.trained import TrainedModel
from tests.conftest import Run, voice
from tests.inference_tools import SPEAKERS, tiny_config, tiny_model, write_results

RATE = 16_000
LENGTHS = [0.9, 0.31, 0.6, 0.012, 0.45, 0.6, 1.2]  # s; the fourth is shorter than a frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable model with results, and recordings beside it: 0.wav, 1.wav, …, of LENGTHS."""
    root = tmp_path_factory.mktemp("a model ü")
    tiny_model(root / "model")
    write_results(root / "model")
    for number, seconds in enumerate(LENGTHS):
        soundfile.write(root / f"{number}.wav", voice(number % 3, number, seconds), RATE, subtype="FLOAT")
    return root


@pytest.fixture
def model(folder: Path) -> TrainedModel:
    return spkexp.load(folder / "model", device="cpu")


def files(folder: Path) -> list[Path]:
    return [folder / f"{number}.wav" for number in range(len(LENGTHS))]


def by_hand(model: TrainedModel, wave: np.ndarray) -> np.ndarray:
    """The embedding of one waveform, from the bare model."""
    with torch.no_grad():
        found = model.module(torch.from_numpy(wave.astype(np.float32))[None], torch.tensor([len(wave)]))
    return found[0].numpy()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_one_recording_or_many_in_whatever_form(model: TrainedModel, folder: Path) -> None:
    paths = files(folder)
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    expected = np.stack([by_hand(model, wave) for wave in waves])
    assert_same(model.embed(str(paths[0])), expected[0])
    assert_same(model.embed(waves[1]), expected[1])
    assert_same(model.embed(waves[1].astype(np.float64)), expected[1])
    assert_same(model.embed(torch.from_numpy(waves[1]).requires_grad_()), expected[1])
    # Lengths that are mixed and not sorted come back in their own order, whatever the batches.
    for batch_seconds in (240.0, 1.3, 0.001):
        assert_same(model.embed(paths, batch_seconds=batch_seconds), expected)
    assert_same(model.embed([paths[0], waves[1], torch.from_numpy(waves[2])]), expected[:3])
    assert_same(model.embed(folder.glob("[0-2].wav")), np.stack([model.embed(p) for p in folder.glob("[0-2].wav")]))
    assert model.embed([]).shape == (0, 24)
    # Rows of an array: what lies behind a length is not heard.
    lengths = [len(wave) for wave in waves]
    rows = np.full((len(waves), max(lengths)), 0.7, dtype=np.float32)
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave)] = wave
    assert_same(model.embed(rows, lengths), expected)
    assert_same(model.embed(torch.from_numpy(rows), torch.tensor(lengths)), expected)
    assert_same(model.embed(rows[:1]), by_hand(model, rows[0])[None])


def test_int16_is_divided_by_its_full_scale(model: TrainedModel) -> None:
    samples = np.array([-32768, 32767, 12, 0] * 2000, dtype=np.int16)
    expected = by_hand(model, samples / 32768)
    assert_same(model.embed(samples), expected)
    assert_same(model.embed(torch.from_numpy(samples)), expected)
    assert_same(model.embed(samples.astype(">i2")), expected)  # as wave, AIFF and network streams have it


def test_integers_that_were_made_floats_are_told_once(model: TrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    model.embed([voice(0, 0, 0.2) * 32768, voice(0, 0, 0.2) * 32768])
    model.embed(voice(0, 0, 0.2) * 12)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "full scale is 1" in caplog.text


def test_a_read_only_array_is_no_trouble(model: TrainedModel, recwarn: pytest.WarningsRecorder) -> None:
    wave = voice(0, 0, 0.3)
    wave.flags.writeable = False
    model.embed([wave, wave])
    model.embed_windows(wave, 0.2)
    assert list(recwarn) == []


def test_other_rates_and_channels_are_told_once(
    model: TrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    low, stereo, high = tmp_path / "low.wav", tmp_path / "stereo.wav", tmp_path / "high.flac"
    half, both = voice(0, 1, 0.5)[::2], np.stack([voice(0, 1, 0.5), voice(1, 1, 0.5)], axis=1)
    soundfile.write(low, half, 8000, subtype="FLOAT")
    soundfile.write(stereo, both, RATE, subtype="FLOAT")
    soundfile.write(high, both, 44_100)
    with caplog.at_level(logging.INFO, "spkexp"):
        model.embed([low, low])
        assert_same(model.embed(half, sample_rate=8000), model.embed(low))  # a file and an array are resampled alike
        assert_same(model.embed(stereo), by_hand(model, both.mean(axis=1)))
        model.embed([stereo, high, high])
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert len(told) == 3
    assert told[0][0] == "WARNING"
    assert "nothing above 4000 Hz" in told[0][1]
    assert ["2 channels" in message for _, message in told] == [False, True, False]
    assert "from 44100 to 16000 Hz" in told[2][1]


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_an_array_is_resampled_as_its_file_is(model: TrainedModel, tmp_path: Path, rate: int) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 1237).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    (array,) = model.reader.open(wave, None, rate)
    (file,) = model.reader.open(tmp_path / "a.wav", None, None)
    np.testing.assert_array_equal(array.read(), file.read())
    assert array.samples == file.samples == len(array.read()) == -(-1237 * RATE // rate)


def test_rates_and_channels_can_be_refused(folder: Path, tmp_path: Path) -> None:
    strict = spkexp.load(folder / "model", device="cpu", resample=False, mix_channels=False)
    low, stereo = tmp_path / "low.wav", tmp_path / "stereo.wav"
    soundfile.write(low, voice(0, 0, 0.2), 8000)
    soundfile.write(stereo, np.zeros((4000, 2)), RATE)
    for path, message in ((low, "sampled at 8000 Hz"), (stereo, "2 channels")):
        with pytest.raises(AudioError, match=rf"{path}: {message}"):
            strict.embed(path)
    with pytest.raises(ValueError, match="samples at 8000 Hz"):
        strict.embed(np.zeros(4000), sample_rate=8000)


WAVE = np.zeros(4000, dtype=np.float32)
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (np.where(np.arange(4000) == 9, np.nan, WAVE), {}, "NaN or infinite"),
    ([WAVE, np.full(4000, np.inf)], {}, "NaN or infinite"),
    (np.empty(0), {}, "holds no samples"),
    ([WAVE, WAVE[:0]], {}, "holds no samples"),
    (np.zeros((4000, 2)), {}, r"wave.mean\(axis=1\)"),
    (torch.zeros(4000, 1), {}, r"wave.mean\(axis=1\)"),
    (np.zeros((2, 1, 4000)), {}, r"shape \(2, 1, 4000\): expected"),
    (np.float32(3), {}, "a recording is a path or an array"),
    ([np.zeros((1, 4000))], {}, r"of an array \(1, samples\) its row"),
    (np.zeros(4000, dtype=np.int64), {}, "samples of type int64"),
    (np.array(["a.wav"]), {}, "samples of type <U5"),
    ([0.1, 0.2, 0.3], {}, "got a float"),
    (None, {}, "got None"),
    ({"a.wav": 1}, {}, "got a dict"),
    (b"RIFF", {}, "got a bytes"),
    (np.zeros((2, 4000)), {"lengths": [4000]}, "for each of the 2 rows"),
    (np.zeros((2, 4000)), {"lengths": [4000, 0]}, "expected one of 1 to 4000"),
    (np.zeros((2, 4000)), {"lengths": [4000, 4001]}, "expected one of 1 to 4000"),
    (WAVE, {"lengths": [4000]}, "not of a single recording"),
    ([WAVE], {"lengths": [4000]}, "in a list each has its own"),
    (WAVE, {"sample_rate": 0}, "sample_rate=0"),
    (WAVE, {"sample_rate": 8000.5}, "sample_rate=8000.5"),
    ("a.wav", {"sample_rate": 8000}, "a file says its own"),
]


@pytest.mark.parametrize(("recordings", "more", "message"), REFUSED)
def test_nonsense_is_named(model: TrainedModel, recordings: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        model.embed(recordings, **more)


def test_a_file_that_cannot_be_used_is_named(model: TrainedModel, folder: Path, tmp_path: Path) -> None:
    text, empty, broken = tmp_path / "text.wav", tmp_path / "empty.wav", tmp_path / "broken.flac"
    text.write_text("no audio")
    empty.touch()
    soundfile.write(broken, np.random.default_rng(0).normal(0, 0.1, 40_000), RATE)
    broken.write_bytes(broken.read_bytes()[:30_000])  # its header is whole: found out when it is read
    before = threading.active_count()
    for path in (text, empty, broken, tmp_path, tmp_path / "missing.wav"):
        for given in (path, [*files(folder), path]):
            with pytest.raises(AudioError, match=f"^{path}: "):
                model.embed(given, batch_seconds=0.5)
    assert threading.active_count() == before


def test_windows_are_those_of_the_recording(model: TrainedModel, folder: Path) -> None:
    wave = soundfile.read(folder / "0.wav", dtype="float32")[0]  # 0.9 s
    for source in (folder / "0.wav", wave, torch.from_numpy(wave)):
        found = model.embed_windows(source, 0.4, "25%")
        np.testing.assert_allclose(found.start, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
        assert_same(found.embeddings[2], by_hand(model, wave[3200:9600]))
    assert len(model.embed_windows(wave, 2.0).start) == 1
    with pytest.raises(ValueError, match="one recording"):
        model.embed_windows([wave], 0.4)
    with pytest.raises(UserError, match="step=0"):
        model.embed_windows(wave, 0.4, 0)
    for window in (-1, 0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"window={window}"):
            model.embed_windows(wave, window)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def test_verify_decides_at_the_threshold_of_the_validation(model: TrainedModel, folder: Path, tmp_path: Path) -> None:
    a, b, c = files(folder)[:3]
    rows = [model.embed(path) for path in (a, b, c)]
    score = cosine(rows[0], rows[1])
    below, above = (shutil.copytree(folder / "model", tmp_path / name) for name in ("below", "above"))
    write_results(below, score - 1e-3)
    write_results(above, score + 1e-3)
    found = spkexp.load(below).verify(a, b)
    assert found.score == pytest.approx(score, abs=1e-6)
    assert (found.same, found.threshold) == (True, score - 1e-3)
    assert found.reason.endswith("validation trials: 5.00 %, 95 % interval 3.00 to 8.00 %")
    assert spkexp.load(above).verify(a, b).same is False
    assert model.verify(a, b, threshold=2.0)[1:] == (False, 2.0, "given by the caller")
    # Several recordings of a side: the mean of their directions, however long the embeddings are.
    mean = sum(row / np.linalg.norm(row) for row in rows[:2])
    assert model.verify([a, b], c).score == pytest.approx(cosine(mean, rows[2]), abs=1e-6)
    assert model.verify(c, [a, b]).score == pytest.approx(cosine(mean, rows[2]), abs=1e-6)
    assert model.verify([a], a).score == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="nothing to compare"):
        model.verify(a, [])


def test_the_threshold_belongs_to_the_best_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("best", "last"):
        shutil.copytree(folder / "model", run / "checkpoints" / name)
        (run / "checkpoints" / name / "results.json").unlink()
    untold = spkexp.load(run)
    assert (untold.threshold, untold.reason) == (
        None,
        "the run has no validation results, so there is no threshold",
    )
    write_results(run, 0.5, eer_ci95=None)
    for source in (run, run / "checkpoints" / "best"):
        found = spkexp.load(source).threshold
        assert found is not None
        assert (found.value, found.eer, found.eer_ci95, found.num_trials) == (0.5, 0.05, None, 1000)
    last = spkexp.load(run / "checkpoints" / "last")
    assert last.threshold is None
    assert "are those of checkpoints/best, not of checkpoints/last" in last.reason
    write_results(run / "checkpoints" / "last", 0.7)  # as an evaluation of it leaves them
    again = spkexp.load(run / "checkpoints" / "last").threshold
    assert again is not None
    assert again.value == 0.7


@pytest.mark.parametrize(
    ("key", "value", "decides"),
    [
        ("scoring.backend", "plda", False),
        ("scoring.normalise", "as", False),
        ("scoring.subtract_mean", True, False),
        ("scoring.window", 2.0, False),
        ("data.label", "keyword", False),
        ("scoring.calibration", "val", True),  # changes the scores of the other lists alone
        ("scoring.precision", "bf16", True),
    ],
)
def test_a_run_that_scores_otherwise_has_no_threshold(
    folder: Path, tmp_path: Path, key: str, value: Any, decides: bool
) -> None:
    model = spkexp.load(with_setting(folder / "model", tmp_path / "model", key, value), device="cpu")
    assert (model.threshold is not None) == decides
    if not decides:
        found = model.verify(WAVE + 0.1, voice(0, 0, 0.2))
        assert found[1:3] == (None, None)
        assert f"{key}={value}" in found.reason


def with_setting(source: Path, target: Path, key: str, value: Any) -> Path:
    """A copy of the model in which one key of the config is another."""
    shutil.copytree(source, target)
    (target / "SHA256SUMS").unlink()
    cfg = OmegaConf.load(target / "config.yaml")
    OmegaConf.update(cfg, key, value)
    OmegaConf.save(cfg, target / "config.yaml")
    return target


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"trials": 3}', '{"trials": {"val": {"eer_threshold": "x"}}}', '{"trials": {"val": []}}',
     '{"trials": {"val": {"eer_threshold": NaN, "eer": 0.1, "num_trials": 4}}}', '{"model": "x"}'],
)  # fmt: skip
def test_results_that_are_none_do_not_hinder(folder: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "results.json").write_text(content)
    model = spkexp.load(tmp_path / "model")
    assert model.threshold is None
    assert "results" in model.reason


def logits(head: str, tensors: dict[str, np.ndarray], embedding: np.ndarray, cfg: Any) -> np.ndarray:
    """(K,) in float64, from the papers: what the loss takes its softmax, or its sigmoids, of."""
    if head == "softmax":
        return tensors["linear.weight"] @ embedding + tensors["linear.bias"]
    weight = tensors["weight"]
    unit = weight / np.linalg.norm(weight, axis=-1, keepdims=True)
    cosines = unit @ (embedding / np.linalg.norm(embedding))
    if cosines.ndim == 2:
        cosines = cosines.max(axis=1)
    if head == "sphereface2":
        return cfg.scale * (2 * ((cosines + 1) / 2) ** cfg.exponent - 1) + tensors["bias"]
    return cfg.scale * cosines


def exactly_one(z: np.ndarray) -> np.ndarray:
    """Of K independent binary answers with the log-odds z, that each is the one that is yes, given that just one is."""
    yes = 1 / (1 + np.exp(-z))
    of_each = np.zeros(len(z))
    for answers in itertools.product((False, True), repeat=len(z)):
        if sum(answers) == 1:
            of_each[answers.index(True)] = np.prod(np.where(answers, yes, 1 - yes))
    return of_each / of_each.sum()


@pytest.mark.parametrize("head", ["softmax", "am_softmax", "aam_softmax", "subcenter_aam", "inter_topk_aam",
                                  "sphereface2", "aam_ge2e"])  # fmt: skip
def test_classify_by_every_head(folder: Path, tmp_path: Path, head: str) -> None:
    model = spkexp.load(tiny_model(tmp_path / "model", f"loss={head}", "augment.speeds=[0.9]"), device="cpu")
    assert model.labels == SPEAKERS  # without the speed copies, which nobody is
    embedding = model.embed(files(folder)[0]).astype(np.float64)
    cfg = model.config.loss
    prefix, own = ("losses.aam.", cfg.losses.aam) if head == "aam_ge2e" else ("", cfg)
    tensors = safetensors_of(tmp_path / "model", f"head.{prefix}")
    z = logits(head, tensors, embedding, own)[: len(SPEAKERS)]  # the copies come after all others
    expected = exactly_one(z) if head == "sphereface2" else np.exp(z - np.logaddexp.reduce(z))
    found = model.classify(files(folder)[0], top=9)
    assert isinstance(found, list)
    best_first = np.argsort(-expected)
    assert [answer.label for answer in found] == [SPEAKERS[index] for index in best_first]
    np.testing.assert_allclose([answer.probability for answer in found], expected[best_first], rtol=1e-3)


def safetensors_of(folder: Path, prefix: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix(prefix): t.astype(np.float64) for name, t in tensors.items() if name.startswith(prefix)}


def test_classify_one_or_many(model: TrainedModel, folder: Path) -> None:
    a, b = files(folder)[:2]
    every = model.classify(a, top=4)
    assert isinstance(every, list)
    best = model.classify(a)
    assert best == every[0]
    assert model.classify(a, top=1) == [best]
    several = model.classify([a, b])
    assert [type(answer) for answer in several] == [type(best)] * 2
    assert several[1].label == model.classify(b).label  # type: ignore[union-attr]
    assert [len(answers) for answers in model.classify([a, b], top=2)] == [2, 2]  # type: ignore[arg-type]
    assert model.classify([]) == []
    with pytest.raises(ValueError, match="top=0"):
        model.classify(a, top=0)


def test_a_label_that_looks_like_a_copy_of_nobody_stays() -> None:
    head = SimpleNamespace(scores=lambda rows: rows, log_probabilities=lambda scores: scores.log_softmax(dim=1))
    labels = ["a", "b@0.9", "a@1.1", "a@0.9", "x@0.9@0.9", "x@0.9"]
    classifier = Classifier(head, labels, [1.0, 0.9], torch.device("cpu"))  # type: ignore[arg-type]
    assert classifier.labels == ["a", "b@0.9", "a@1.1", "x@0.9"]
    # Given that it is none of the copies: the two that are left out do not count, however probable.
    (found,) = classifier.best(np.log([[1.0, 2.0, 3.0, 99.0, 99.0, 4.0]]).astype(np.float32), top=9)
    assert [one.label for one in found] == ["x@0.9", "a@1.1", "b@0.9", "a"]
    np.testing.assert_allclose([one.probability for one in found], [0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_a_model_without_classes_says_so(tmp_path: Path) -> None:
    of_pairs = tiny_model(tmp_path / "model", "loss=ge2e", "data/sampler=speakers")
    without_head = tmp_path / "converted"
    checkpoint.save_portable(without_head, build.trained_model(of_pairs)[0], None, tiny_config(), [])
    for folder, reason in ((of_pairs, "its loss, GE2E, has no classes"), (without_head, "it has no classes")):
        model = spkexp.load(folder, device="cpu")
        assert model.labels == []
        with pytest.raises(UserError, match=f"{folder}: cannot classify: {reason}"):
            model.classify(WAVE)


def test_what_is_not_trusted_is_not_built(folder: Path, tmp_path: Path) -> None:
    with_setting(folder / "model", tmp_path / "model", "loss._target_", "somebodys.losses.Own")
    for trust in ((), "spkexp", ["others"]):
        with pytest.raises(UserError, match=r"loss\._target_: somebodys\.losses\.Own"):
            spkexp.load(tmp_path / "model", device="cpu", trust=trust)


def in_threads(work: list[Callable[[], np.ndarray]]) -> list[np.ndarray]:
    """What each returns; all begin at once."""
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], np.ndarray]) -> np.ndarray:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


def test_threads_do_not_disturb_one_another(model: TrainedModel, folder: Path) -> None:
    half = spkexp.load(folder / "model", device="cpu", precision="bf16")
    paths = files(folder)
    work: list[Callable[[], np.ndarray]] = [
        lambda: model.embed(paths),
        lambda: model.embed(list(reversed(paths)), batch_seconds=0.5),
        lambda: half.embed(paths),  # the precision is a thread's own
        lambda: model.embed_windows(paths[0], 0.4).embeddings,
    ]
    alone = [one() for one in work]
    for _ in range(5):
        for found, expected in zip(in_threads(work), alone, strict=True):
            np.testing.assert_array_equal(found, expected)
    relative = np.abs(alone[2] - alone[0]).max() / np.abs(alone[0]).max()
    assert 1e-4 < relative < 0.1  # bf16 it was, and of the same weights


def test_nothing_global_changes(model: TrainedModel, folder: Path) -> None:
    def state() -> tuple[Any, ...]:
        numpy_state = np.random.get_state()
        return (
            torch.get_num_threads(), torch.get_rng_state().tolist(), str(numpy_state), random.getstate(),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(), torch.backends.cuda.matmul.allow_tf32, logging.getLogger().level,
            len(logging.getLogger().handlers),
        )  # fmt: skip

    before = state()
    again = spkexp.load(folder / "model", device="cpu")
    again.verify(files(folder)[0], files(folder)[1:3])
    again.classify(files(folder)[0])
    with pytest.raises(AudioError):
        again.embed([*files(folder), folder / "missing.wav"])
    assert state() == before
    assert not again.module.training


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, spkexp; spkexp.load; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_model_that_diverged_says_so(folder: Path) -> None:
    model = spkexp.load(folder / "model", device="cpu")
    with torch.no_grad():
        model.module.embedding.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="did training diverge"):
        model.embed(WAVE)


def test_what_cannot_be_loaded_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        spkexp.load(tmp_path)
    for device in ("abacus", "meta", "mps", "mps:0"):
        with pytest.raises(UserError, match=f"device={device}: expected auto, cpu, cuda or cuda:NUMBER"):
            spkexp.load(folder / "model", device=device)
    with pytest.raises(UserError, match="precision=fp64"):
        spkexp.load(folder / "model", precision="fp64")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"revision=main: .* is a path"):
        spkexp.load(folder / "model", revision="main")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no such CUDA device"):
            spkexp.load(folder / "model", device="cuda")


def test_the_command_prints_what_verify_says(model: TrainedModel, folder: Path, run_command: Run) -> None:
    a, b = (str(path) for path in files(folder)[:2])
    done = run_command("verify", f"model={folder / 'model'}", a, b)
    found = model.verify(a, b)
    verdict = "same speaker" if found.same else "different speakers"
    assert done == (0, f"score {found.score:.4f}\n{verdict} (threshold 0.2500, {found.reason})\n", "")
    assert run_command("verify", f"model={folder / 'model'}", a).code == 2
    missing = run_command("verify", f"model={folder / 'model'}", a, "no.wav")
    assert (missing.code, missing.err.startswith("spkexp: no.wav: ")) == (2, True)


def test_the_command_says_why_there_is_no_decision(folder: Path, tmp_path: Path, run_command: Run) -> None:
    plda = with_setting(folder / "model", tmp_path / "model", "scoring.backend", "plda")
    done = run_command("verify", f"model={plda}", *(str(path) for path in files(folder)[:2]))
    assert done.code == 0
    assert "\nno decision: the run's scores are no plain cosines (scoring.backend=plda)" in done.out


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu(model: TrainedModel, folder: Path, precision: Any) -> None:
    there = spkexp.load(folder / "model", device="auto", precision=precision)
    assert there.device.type == "cuda"
    expected = model.embed(files(folder))
    found = there.embed(files(folder), batch_seconds=1.0)
    assert np.abs(found - expected).max() / np.abs(expected).max() < (1e-3 if precision == "fp32" else 0.1)
    assert there.verify(*files(folder)[:2]).score == pytest.approx(model.verify(*files(folder)[:2]).score, abs=0.02)
    assert there.classify(files(folder)[0], top=4)
    assert there.fingerprint == model.fingerprint
