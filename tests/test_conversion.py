"""Checkpoints of other toolkits: every tensor accounted for, whatever lies beside it, and nothing of it run."""

import pickle
import sys
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from omegaconf import DictConfig

import spkexp
from spkexp import build, checkpoint
from spkexp.compose import compose_config
from spkexp.conversion.building import Built, built, settings_of
from spkexp.conversion.conversion import TOOLKITS, Request, convert
from spkexp.conversion.family import Tensors
from spkexp.conversion.reading import Found, locate, read, read_labels, read_settings
from spkexp.errors import UserError
from tests.conversion_tools import NAMES, listed, random_tensors, write
from tests.hub_server import Hub
from tests.model_tools import count

# The others are the same code with more blocks.
QUICK = {
    *("speechbrain_xvector", "wespeaker_resnet34", "wespeaker_ecapa_c512", "wespeaker_res2net34", "wespeaker_campplus"),
    *("3dspeaker_eres2netv2", "redimnet_b0", "redimnet_b1", "pyannote_sinctdnn", "wespeaker_redimnet_b2"),
}
# What ours has more, or less: a layer's bias and a normalisation's weight and bias, all of 512; a constant 1.
MORE = {"campplus": 3 * 512, "redimnet": -1}
# What field-notes and papers give, in millions.
PUBLISHED = {
    "speechbrain_ecapa": 20.77,
    "wespeaker_resnet34": 6.63,
    "wespeaker_ecapa_c1024": 14.66,
    "wespeaker_campplus": 7.18,
    "3dspeaker_campplus": 7.18,
    "3dspeaker_eres2netv2": 17.86,
    "3dspeaker_eres2netv2_w24s4ep4": 53.51,
    "3dspeaker_res2net": 4.03,
    "redimnet_b0": 1.0,
    "redimnet_b6": 15.02,
    "pyannote_sinctdnn": 4.35,
}


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_config(list(overrides))


@pytest.fixture(autouse=True)
def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing a config takes most of the time of a conversion, and is the same for all of a model."""
    monkeypatch.setattr("spkexp.conversion.building.compose_config", lambda lines: composed(tuple(lines)).copy())


def of(toolkit: str, tensors: Tensors, *overrides: str, **rest: Any) -> Built:
    """What becomes of a file with these tensors, without the file."""
    kit = TOOLKITS[toolkit]
    found = Found(Path("theirs.pt"), tensors, rest, {})
    return built(kit, found, kit.settings(found), list(overrides))


def front_end(tensors: Tensors) -> Tensors:
    """With the constants of ReDimNet's features, which are held against ours, as they are."""
    from torchaudio.functional import melscale_fbanks

    for name, tensor in tensors.items():
        if name.startswith("spec.") and name.endswith(".fb"):
            tensors[name] = melscale_fbanks(tensor.shape[0], 20.0, 7600.0, tensor.shape[1], 16000)
        elif name.startswith("spec.") and name.endswith(".window"):
            tensors[name] = torch.hamming_window(len(tensor))
    return tensors


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_every_tensor_of_published_models_has_its_place(name: str) -> None:
    toolkit, parameters, shapes = listed(name)
    tensors = front_end(random_tensors(shapes))
    made = of(toolkit, tensors)
    more = next((value for part, value in MORE.items() if part in name), 0)
    assert count(made.model) == parameters + more
    if name in PUBLISHED:
        assert round(parameters / 1e6, 2) == pytest.approx(PUBLISHED[name], abs=0.02)
    # Each value is there once, wherever: what is ours alone are ones and zeros.
    left_out = {tensor for names in made.left_out.values() for tensor in names}
    own = made.model.state_dict()
    values = sum(float(x.double().sum()) for n, x in tensors.items() if n not in left_out)
    extra = 512.0 if "campplus" in name else 0.0
    if name == "speechbrain_xvector":  # what its pooling adds is in the bias
        weight = tensors["blocks.16.w.weight"].double()
        extra = float(5e-5 * weight[:, :1500].sum() + 1e-5 * weight[:, 1500:].sum())
    assert sum(float(x.double().sum()) for x in own.values()) == pytest.approx(values + extra, rel=1e-9)
    assert all(part in ("spec.", "backb", "sincn") for part in {tensor[:5] for tensor in left_out})


def test_wrong_tensors_are_all_listed() -> None:
    tensors = random_tensors(listed("wespeaker_resnet18").shapes)
    del tensors["layer2.1.bn2.bias"]
    tensors["layer3.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    tensors["layer2.1.extra.weight"] = torch.zeros(3)
    tensors["bn1.weight"][1] = float("nan")
    with pytest.raises(UserError) as raised:
        of("wespeaker", tensors)
    first, *lines = str(raised.value).splitlines()
    assert first == "theirs.pt: is no ResNet as it is known here; 4 tensors:"
    assert sorted(line.strip() for line in lines) == [
        "bn1.weight: has values that are no numbers (nan or inf)",
        "layer2.1.extra.weight: no rule of ResNet knows this tensor [3]",
        "layer3.0.conv1.weight: has the shape [128, 64, 1, 1], expected [128, 64, 3, 3] as our "
        "encoder.stages.2.0.conv1.conv.weight",
        "our encoder.stages.1.1.conv2.norm.bias [64]: nothing in the file fills it",
    ]


def test_what_is_not_read_is_named() -> None:
    tensors = random_tensors(listed("wespeaker_resnet18").shapes)
    with pytest.raises(UserError, match=r"two_emb_layer=True.*seg_2\.weight"):
        of("wespeaker", tensors | {"seg_2.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="ERes2Net; ERes2NetV2 is read"):
        of("3dspeaker", tensors | {"fuse_mode12.local_att.0.weight": torch.zeros(1)})
    with pytest.raises(
        UserError, match=r"none of the architectures of redimnet that are read \(ReDimNet\); it has conv1"
    ):
        of("redimnet", tensors)
    del tensors["seg_1.weight"]
    with pytest.raises(UserError, match=r"tensors are missing from which sizes are read: 'seg_1\.weight'"):
        of("wespeaker", tensors)


def test_mel_bins_tell_a_pooling_that_has_no_tensors(tmp_path: Path) -> None:
    """Means alone leave half as many values as means and deviations: those of 40 bins, where 80 are meant."""
    shapes = listed("wespeaker_resnet18").shapes
    tensors = random_tensors({name: tuple(n // 8 if n >= 32 else n for n in shape) for name, shape in shapes.items()})
    means = tensors | {"seg_1.weight": torch.rand(32, 320)}  # of 32 channels x 80 / 8 frequencies
    with pytest.raises(
        UserError, match=r"^theirs\.pt: 40 mel bins follow from its shapes, not 80: it has another pool"
    ):
        of("wespeaker", means)
    file = tmp_path / "config.yaml"
    kit = TOOLKITS["wespeaker"]
    for pooling, mels, weight, expected in (
        ("TAP", 80, 320, "MeanPooling"),
        ("TSTP", 40, 320, "StatisticsPooling"),
        ("TSTP", 81, 2 * 32 * 11, "StatisticsPooling"),  # 81, 41, 21, 11
        ("TSTP", 40, 640, None),
        ("TAP", 64, 320, None),
        ("TSTP", "many", 640, None),
    ):
        text = f"model_args: {{pooling_func: {pooling}}}\ndataset_args: {{fbank_args: {{num_mel_bins: {mels}}}}}\n"
        file.write_text(text, encoding="utf-8")
        shaped = tensors | {"seg_1.weight": torch.rand(32, weight)}
        found = Found(Path("theirs.pt"), shaped, {}, {"config.yaml": file})
        if expected is None:
            with pytest.raises(UserError, match=rf"mel bins follow .*, not {mels}|is no config of wespeaker .*'many'"):
                built(kit, found, settings_of(kit, found), [])
            continue
        model = built(kit, found, settings_of(kit, found), []).model
        assert type(model.pooling).__name__ == expected
        assert model.features.out_channels == mels


def test_a_model_may_be_named_and_changed() -> None:
    tensors = random_tensors(listed("pyannote_sinctdnn").shapes)
    assert of("pyannote", tensors).config.model.encoder.sinc_stride == 10
    made = of("pyannote", tensors, hyper_parameters={"sincnet": {"stride": 5}})
    assert made.config.model.encoder.sinc_stride == 5
    assert of("pyannote", tensors, "model.encoder.sinc_stride=7").model.encoder.filterbank.stride == 7
    with pytest.raises(UserError, match="did you mean 'sinc_stride'"):
        of("pyannote", tensors, "model.encoder.sinc_strid=7")
    with pytest.raises(UserError, match="model=no_such"):
        of("pyannote", tensors, "model=no_such")
    # What is named outright is not read off the shapes; what does not fit is said.
    resnet = random_tensors(listed("wespeaker_resnet18").shapes)
    assert count(of("wespeaker", resnet, "model=resnet18").model) == listed("wespeaker_resnet18").parameters
    with pytest.raises(UserError, match=r"our encoder.stages.0.2.conv1.conv.weight .*: nothing in the file fills it"):
        of("wespeaker", resnet, "model=resnet34")


def small_ecapa() -> Tensors:
    """SpeechBrain's ECAPA-TDNN with 1/64 of its channels and embeddings of 3 numbers."""
    shapes = {
        name: tuple(size // 64 if size >= 128 else size for size in shape)
        for name, shape in listed("speechbrain_ecapa").shapes.items()
    }
    return random_tensors(shapes)


def run(folder: Path, source: str, theirs: Path, labels: Path | None = None) -> list[str]:
    return convert(Request(source, str(theirs), folder, labels, ()))


def test_a_classifier_with_names_becomes_the_head(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    write(theirs, "embedding_model.ckpt", small_ecapa())
    weight = torch.randn(4, 3)
    write(theirs, "classifier.ckpt", {"weight": weight})
    lines = run(tmp_path / "without", "speechbrain", theirs)
    assert any("classifier.ckpt: nothing names its 4 classes; labels=FILE" in line for line in lines)
    assert checkpoint.load_labels(tmp_path / "without") == []
    write(theirs, "mean_var_norm_emb.ckpt", {"count": torch.tensor(3)})
    lines = run(tmp_path / "without", "speechbrain", theirs)
    assert any(line.startswith("left out: mean_var_norm_emb.ckpt: statistics of embeddings") for line in lines)
    encoder = "'b ü' => 1\n'a' => 0\n'd' => 3\n'c' => 2\n================\n'starting_index' => 0\n"
    (theirs / "label_encoder.txt").write_text(encoder, encoding="utf-8")
    run(tmp_path / "ours", "speechbrain", theirs)
    model, cfg, folder = build.trained_model(tmp_path / "ours")
    assert checkpoint.load_labels(folder) == ["a", "b ü", "c", "d"]
    head = build.trained_head(cfg, folder, model.embedding_size)
    assert head is not None
    embedding = torch.tensor([[0.3, -2.0, 1.0]])
    expected = (weight @ embedding[0]) / (weight.norm(dim=1) * embedding.norm())
    assert torch.allclose(head.scores(embedding)[0], expected, atol=1e-6)
    (theirs / "label_encoder.txt").write_text("'a' => 0\n'b' => 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"label_encoder.txt: has 2 names for the 4 classes of classifier.ckpt"):
        run(tmp_path / "more", "speechbrain", theirs)
    assert not (tmp_path / "more").exists()


def test_a_projection_of_speed_copies(tmp_path: Path) -> None:
    """WeSpeaker's classes are the speakers, then all of them at 0.9, then at 1.1."""
    shapes = {
        name: tuple(size // 64 if size >= 128 else size for size in shape)
        for name, shape in listed("wespeaker_ecapa_c1024").shapes.items()
    }
    tensors = {f"module.{name}": tensor for name, tensor in random_tensors(shapes).items()}
    tensors["module.projection.weight"] = torch.randn(6, 3)
    theirs = write(tmp_path / "theirs", "avg_model.pt", {name: tensor.half() for name, tensor in tensors.items()})
    assert any(
        "projection.weight: nothing names its 6 classes" in line for line in run(tmp_path / "a", "wespeaker", theirs)
    )
    names = tmp_path / "spk2utt"
    names.write_text("id1 id1-u1 id1-u2\nid2 id2-u1\n", encoding="utf-8")
    lines = run(tmp_path / "b", "wespeaker", tmp_path / "theirs", names)
    assert "classes: 2, each also at the speeds 0.9, 1.1, of projection.weight" in lines
    assert checkpoint.load_labels(tmp_path / "b") == ["id1", "id2", "id1@0.9", "id2@0.9", "id1@1.1", "id2@1.1"]
    model, head = checkpoint.load_tensors(tmp_path / "b")
    assert torch.equal(head["weight"], tensors["module.projection.weight"].half().float())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in model.values())
    # Nobody who speaks is a copy.
    assert spkexp.load(tmp_path / "b", device="cpu").labels == ["id1", "id2"]
    names.write_text("\n".join(f"id{number}" for number in range(6)), encoding="utf-8")
    lines = run(tmp_path / "c", "wespeaker", tmp_path / "theirs", names)
    assert "classes: 6, of projection.weight" in lines
    assert len(spkexp.load(tmp_path / "c", device="cpu").labels) == 6


class Specifications:
    """As pyannote.audio's: an object beside the tensors, whose class is not to be needed."""

    def __init__(self) -> None:
        self.duration = 5.0


class Problem(Enum):
    """As pyannote.audio's."""

    REPRESENTATION = 3


class Trap:
    """Whatever reads it as a pickle makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_objects_beside_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(listed("pyannote_sinctdnn").shapes)
    module = ModuleType("pyannote.audio.core.task")
    module.Specifications, module.Problem = Specifications, Problem  # type: ignore[attr-defined]
    with monkeypatch.context() as there:
        for found in (Specifications, Problem):
            there.setattr(found, "__module__", "pyannote.audio.core.task")
        for name in ("pyannote", "pyannote.audio", "pyannote.audio.core"):
            there.setitem(sys.modules, name, ModuleType(name))
        there.setitem(sys.modules, "pyannote.audio.core.task", module)
        known = {"state_dict": tensors, "pyannote.audio": {"specifications": Specifications(), "of": [Problem(3)]}}
        write(tmp_path, "pytorch_model.bin", known)
    state, rest = read(tmp_path / "pytorch_model.bin", TOOLKITS["pyannote"].shells)
    assert state.keys() == tensors.keys()
    assert not hasattr(rest["pyannote.audio"]["specifications"], "duration")
    with pytest.raises(UserError, match=r"holds pyannote.*beside tensors and plain values, which is refused"):
        read(tmp_path / "pytorch_model.bin")
    write(tmp_path, "trap.bin", {"state_dict": tensors, "callbacks": Trap(tmp_path / "sprung")})
    with pytest.raises(UserError, match=r"trap.bin: .*which is refused.*state_dict"):
        read(tmp_path / "trap.bin", TOOLKITS["pyannote"].shells)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"state_dict": Trap(tmp_path / "sprung")}, protocol=2))
    with pytest.raises(UserError, match=r"plain.pt: .*which is refused"):
        read(tmp_path / "plain.pt")
    assert not (tmp_path / "sprung").exists()


def test_settings_are_data(tmp_path: Path) -> None:
    file = tmp_path / "hyperparams.yaml"
    file.write_text(
        "n: 24\nsteps: [!ref <n>, <n>]\nmade: !apply:os.mkdir [x]\nmodel: !new:a.b.Model {size: !ref <n>, at: <none>}\n"
        "python: !!python/object/apply:os.mkdir [x]\nstate: !!float 1e-3\n",
        encoding="utf-8",
    )
    assert read_settings(file) == {
        "n": 24,
        "steps": [24, 24],
        "made": ["x"],
        "model": {"!": "new:a.b.Model", "size": 24, "at": "<none>"},
        "python": ["x"],
        "state": 1e-3,
    }
    file.write_text("a: &a [1]\nb: [*a, *a]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"hyperparams.yaml: .*line 2: an alias"):
        read_settings(file)
    file.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no settings by name"):
        read_settings(file)


def test_settings_that_do_not_show_in_the_tensors(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    write(theirs, "embedding_model.ckpt", small_ecapa())
    text = "compute_features: !new:speechbrain.lobes.features.Fbank {{win_length: 32, n_fft: 512, deltas: {}}}\n"
    norm = "mean_var_norm: !new:speechbrain.processing.features.InputNormalization {{norm_type: {}}}\n"
    for file, settings, message in (
        (text.format("True"), "", "its features have deltas"),
        (text.format("False"), norm.format("global"), "norm_type=global"),
        (text.format("False").replace("Fbank", "MFCC"), "", r"its features are new:speechbrain\.lobes\.features\.MFCC"),
        (text.format("False").replace("32", "abc"), "", "describes no model that can be built: could not convert"),
        (text.format("False").replace("512", "2000000000"), "", "needs more memory than its weights"),
        (text.format("False").replace("512", "[1]"), "", r"model\.features\.fft_size: "),
    ):
        (theirs / "hyperparams.yaml").write_text(file + settings, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            run(tmp_path / "ours", "speechbrain", theirs)
    others = "mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization {norm_type: global}\n"
    text = text.format("False") + norm.format("sentence") + others
    (theirs / "hyperparams.yaml").write_text(text, encoding="utf-8")
    run(tmp_path / "ours", "speechbrain", theirs)
    features = checkpoint.load_config(tmp_path / "ours").model.features
    assert (features.frame_length_ms, features.fft_size, features.normalise) == (32.0, 512, "mean_variance")


def test_where_the_files_are(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    (exp / "models").mkdir(parents=True)
    (exp / "config.yaml").write_text("model: ResNet34\n", encoding="utf-8")
    files, companions = TOOLKITS["wespeaker"].files, TOOLKITS["wespeaker"].companions
    later = write(exp / "models" / "CKPT-EPOCH-3", "embedding_model.ckpt", {"a": torch.zeros(1)})
    assert locate(str(later), files, companions)[1] == {"config.yaml": exp / "config.yaml"}
    weights = write(exp / "models", "avg_model.pt", {"a": torch.zeros(1)})
    for source in (weights, exp / "models"):
        assert locate(str(source), files, companions) == (weights, {"config.yaml": exp / "config.yaml"})
    (tmp_path / "config.yaml").write_text("not: this\n", encoding="utf-8")
    alone = write(tmp_path / "mine", "avg_model.pt", {"a": torch.zeros(1)})
    assert locate(str(alone), files, companions) == (alone, {})
    other = write(tmp_path / "one", "some ü name.ckpt", {"a": torch.zeros(1)})
    assert locate(str(other.parent), files, ()) == (other, {})
    write(tmp_path / "one", "another.pt", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"it has another.pt, some ü name.ckpt: name one"):
        locate(str(other.parent), files, ())
    with pytest.raises(UserError, match=r"holds none of avg_model\.pt"):
        locate(str(exp), files, ())
    with pytest.raises(UserError, match="no such file or folder"):
        locate(str(tmp_path / "missing.pt"), files, ())


def test_what_is_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template[template.index("/{repo_id}") :])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    weights = write(tmp_path / "made", "model.pt", {"a": torch.zeros(1)})
    hub.add("speechbrain/one", {"embedding_model.ckpt": weights.read_bytes(), "hyperparams.yaml": b"n_mels: 24"})
    kit = TOOLKITS["speechbrain"]
    by_name = locate("speechbrain/one", kit.files, kit.companions)
    assert by_name == locate("hf:speechbrain/one/embedding_model.ckpt", kit.files, kit.companions)
    file, companions = by_name
    assert read(file)[0].keys() == {"a"}
    assert read_settings(companions["hyperparams.yaml"]) == {"n_mels": 24}
    with pytest.raises(UserError, match=r"checkpoint=speechbrain/one: none of model\.pt can be had from there"):
        locate("speechbrain/one", ("model.pt",), ())
    hub.close()


def test_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    for text, expected in (
        ('["b", "a c"]', ["b", "a c"]),
        ("'b' => 1\n'a c' => 0\n\n====\n'x' => 7\n", ["a c", "b"]),
        ("b 0\na 1\n\n", ["b", "a"]),
    ):
        file.write_text(text, encoding="utf-8")
        assert read_labels(file) == expected
    file.write_text("'b' => 1\n'a' => 3\n", encoding="utf-8")
    with pytest.raises(UserError, match="its numbers are not 0 to 1"):
        read_labels(file)
    file.write_text('["a", 1]', encoding="utf-8")
    with pytest.raises(UserError, match="no list of names"):
        read_labels(file)
