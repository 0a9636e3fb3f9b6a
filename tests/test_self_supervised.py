"""wav2vec 2.0, HuBERT and WavLM: torchaudio's networks, padding, frozen parts, and where weights come from."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from spkexp.config import check_node
from spkexp.errors import UserError
from spkexp.features import Waveform
from spkexp.models import pretrained
from spkexp.models.self_supervised import SelfSupervised
from spkexp.models.wav2vec2 import distance_buckets
from tests.archive_server import serving
from tests.model_tools import count, model_config, relative_error

KINDS = ["wav2vec2", "wavlm", "wav2vec2_large", "wavlm_large"]
SILENT = Waveform(16000, "none")


def arguments(kind: str, **changed: Any) -> dict[str, Any]:
    large, wavlm = kind.endswith("large"), kind.startswith("wavlm")
    sizes: dict[str, Any] = {
        "in_channels": 1,
        "extractor_channels": [16, 24, 24],
        "extractor_kernel_sizes": [10, 3, 2],
        "extractor_strides": [5, 2, 2],
        "extractor_norm": "layer" if large else "group",
        "extractor_bias": large,
        "channels": 32,
        "num_layers": 3,
        "attention_heads": 4,
        "feedforward_channels": 48,
        "position_kernel": 8,
        "position_groups": 4,
        "position_buckets": 32 if wavlm else 0,
        "max_distance": 20 if wavlm else 0,
        "layer_norm_first": large,
        "dropout": 0.1,
        "normalise_layers": False,
        "trainable": "all",
        "pretrained": None,
    }
    assert changed.keys() <= sizes.keys()
    return sizes | changed


def encoder(kind: str, **changed: Any) -> SelfSupervised:
    torch.manual_seed(0)
    model = SelfSupervised(**arguments(kind, **changed))
    randomise(model.network)
    return model


def randomise(model: nn.Module) -> None:
    """No affine parameter is the identity, so that a mistaken or forgotten one shows."""
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias") or "gru_rel_pos_const" in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
        elif "gru_rel_pos_linear" in name or "rel_attn_embed" in name:
            parameter.data.normal_()


def torchaudio_arguments(kind: str) -> dict[str, Any]:
    ours = arguments(kind)
    layers = zip(ours["extractor_channels"], ours["extractor_kernel_sizes"], ours["extractor_strides"], strict=True)
    theirs = {
        "extractor_mode": f"{ours['extractor_norm']}_norm",
        "extractor_conv_layer_config": list(layers),
        "extractor_conv_bias": ours["extractor_bias"],
        "encoder_embed_dim": 32,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 3,
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": 48,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": ours["layer_norm_first"],
        "encoder_layer_drop": 0.05,
        "aux_num_out": 7,
    }
    if kind.startswith("wavlm"):
        theirs |= {"encoder_num_buckets": 32, "encoder_max_distance": 20}
    return theirs


def torchaudio_model(kind: str) -> nn.Module:
    torch.manual_seed(1)
    make = torchaudio.models.wavlm_model if kind.startswith("wavlm") else torchaudio.models.wav2vec2_model
    model = make(**torchaudio_arguments(kind)).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_torchaudio(kind: str, tmp_path: Path) -> None:
    theirs = torchaudio_model(kind)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = encoder(kind, pretrained=str(tmp_path / "weights.pth")).eval()
    ours.load_pretrained(SILENT)
    heads = sum(parameter.numel() for parameter in theirs.aux.parameters())
    assert count(ours.network) == count(theirs) - heads
    for samples in (1500, 401, 40):  # WavLM's largest distance is exceeded by the first
        waveform = torch.randn(2, samples)
        with torch.no_grad():
            states, lengths = ours.network(waveform.unsqueeze(1), None)
            expected, _ = theirs.extract_features(waveform)
            # The first state is the first layer's input, the last is what the whole network gives.
            encoded = theirs.encoder.feature_projection(theirs.feature_extractor(waveform, None)[0])
            expected = [theirs.encoder.transformer._preprocess(encoded), *expected[:-1]]
            expected.append(theirs.encoder(theirs.feature_extractor(waveform, None)[0]))
        assert lengths is None
        assert len(states) == len(expected) == 4
        for state, other in zip(states, expected, strict=True):
            assert state.shape == other.shape
            assert relative_error(state, other) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_alone_equals_itself_among_garbage(kind: str) -> None:
    model = encoder(kind).eval()
    waveform = torch.randn(5, 1, 900)
    lengths = torch.tensor([900, 500, 333, 20, 3])  # the last two give less than a frame
    for row, length in enumerate(lengths.tolist()):
        waveform[row, :, length:] = 1e3
    with torch.no_grad():
        together, frames = model(waveform, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, _ = model(waveform[row : row + 1, :, :length], None)
            assert int(frames[row]) == alone.shape[2]
            assert relative_error(together[row, :, : frames[row]], alone[0]) < 1e-5, length


def test_the_sum_of_the_states_is_weighted_by_a_softmax() -> None:
    model = encoder("wavlm").eval()
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.layer_weights.data = shares.log() + 3.0
    waveform = torch.randn(2, 1, 500)
    with torch.no_grad():
        states, _ = model.network(waveform, None)
        expected = sum(share * state for share, state in zip(shares, states, strict=True))
        assert relative_error(model(waveform, None)[0], expected.transpose(1, 2)) < 1e-6
        model.normalise_layers = True
        centred = [state - state.mean(dim=2, keepdim=True) for state in states]
        unit = [x / (x.square().mean(dim=2, keepdim=True) + 1e-5).sqrt() for x in centred]
        expected = sum(share * x for share, x in zip(shares, unit, strict=True))
        assert relative_error(model(waveform, None)[0], expected.transpose(1, 2)) < 1e-6


def test_distances_share_buckets_logarithmically() -> None:
    # 16 buckets a sign: 8 for the distances 0 to 7, then 8 + ⌊8 log(d / 8) / log(64 / 8)⌋, at most 15.
    distances = torch.tensor([0, 1, 7, 8, 10, 11, 63, 64, 500, -1, -7, -8, -500])
    expected = [0, 17, 23, 24, 24, 25, 31, 31, 31, 1, 7, 8, 15]
    assert distance_buckets(distances, 32, 64).tolist() == expected


# The parameters that learn have one of these beginnings.
TRAINED = {
    "none": [],
    1: ["layers.2."],
    3: ["layers."],
    "transformer": ["layers.", "layer_norm.", "feature_projection.", "pos_conv_embed."],
    "all": [""],
}


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2_large"])
@pytest.mark.parametrize("trainable", TRAINED)
def test_what_is_frozen_stays_and_draws_no_dropout(kind: str, trainable: Any) -> None:
    model = encoder(kind, trainable=trainable).train()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    waveform, lengths = torch.randn(3, 1, 700), torch.tensor([700, 700, 300])
    beginnings = tuple(TRAINED[trainable])
    if kind == "wav2vec2_large" and trainable != "none":
        beginnings += ("layer_norm.",)  # follows the last layer
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(waveform, lengths)[0].square().sum().backward()
    optimizer.step()
    assert model.layer_weights.grad is not None
    assert model.layer_weights.grad.all()
    for name, parameter in model.network.named_parameters():
        learns = bool(beginnings) and name.startswith(beginnings)
        assert parameter.requires_grad == (parameter.grad is not None) == learns, name
        if not learns:
            assert torch.equal(parameter, before[name]), name
        elif not name.endswith("k_proj.bias"):
            assert not torch.equal(parameter, before[name]), name
    first, again = (model.network(waveform, lengths)[0] for _ in range(2))
    # In training the states up to the first trained part are the same each time, those behind it are not.
    same = {"none": 4, 1: 3, 3: 1}.get(trainable, 0)
    assert [torch.equal(a, b) for a, b in zip(first, again, strict=True)] == [index < same for index in range(4)]
    model.eval()
    first, again = (model(waveform, lengths)[0] for _ in range(2))
    assert torch.equal(first, again)


def transformers_folder(folder: Path, kind: str, file: str = "model.safetensors", **config: Any) -> Path:
    """`torchaudio_model(kind)` as transformers would save it."""
    folder.mkdir()
    tensors: dict[str, Tensor] = {"masked_spec_embed": torch.zeros(32), "encoder.extra.weight": torch.zeros(1)}
    for name, tensor in torchaudio_model(kind).state_dict().items():
        name = name.replace("encoder.feature_projection", "feature_projection").replace("transformer.", "")
        name = name.replace("parametrizations.weight.original0", "weight_g").replace(
            ".attention.attention", ".attention"
        )
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if "in_proj" in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace("in_proj_", f"{part}_proj.")] = third.clone()
        else:
            tensors[name] = tensor
    prefix = kind.partition("_")[0]
    tensors = {name if name.startswith("aux") else f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    if file.endswith("safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
    large = kind.endswith("large")
    written = {
        "model_type": prefix,
        "conv_dim": [16, 24, 24],
        "conv_kernel": [10, 3, 2],
        "conv_stride": [5, 2, 2],
        "feat_extract_norm": "layer" if large else "group",
        "conv_bias": large,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "num_buckets": 32,
        "max_bucket_distance": 20,
        "do_stable_layer_norm": large,
    }
    (folder / "config.json").write_text(json.dumps(written | config))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_has_the_same_weights(kind: str, file: str, tmp_path: Path) -> None:
    torch.save(torchaudio_model(kind).state_dict(), tmp_path / "weights.pth")
    states = []
    for source in (tmp_path / "weights.pth", transformers_folder(tmp_path / "folder", kind, file)):
        model = encoder(kind, pretrained=str(source))
        model.load_pretrained(SILENT)
        states.append(model.network.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def refusal(model: SelfSupervised, features: Waveform = SILENT) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        model.load_pretrained(features)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "folder", "wavlm", num_attention_heads=8)
    message = refusal(encoder("wavlm", pretrained=str(folder)))
    assert message.startswith("model.encoder.attention_heads: is 4, but")
    assert "has 8" in message
    torch.save(torchaudio_model("wavlm").state_dict(), tmp_path / "weights.pth")
    for changed in ({"num_layers": 2}, {"num_layers": 4}, {"feedforward_channels": 50}):
        message = refusal(encoder("wavlm", pretrained=str(tmp_path / "weights.pth"), **changed))
        assert "model.encoder.pretrained" in message
        assert "arguments of model.encoder" in message
    message = refusal(encoder("wavlm", pretrained=str(transformers_folder(tmp_path / "m", "wavlm", model_type="mms"))))
    assert "is of a mms" in message


def test_the_normalisation_of_large_models_is_checked(tmp_path: Path) -> None:
    for kind, refused in (("wavlm_large", True), ("wavlm", False)):
        folder = transformers_folder(tmp_path / kind, kind)
        (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
        encoder(kind, pretrained=str(folder)).load_pretrained(Waveform(16000, "mean_variance"))
        if refused:
            message = refusal(encoder(kind, pretrained=str(folder)))
            assert "model.features.normalise" in message
            assert "mean_variance" in message
        else:  # its first normalisation makes no difference of it
            encoder(kind, pretrained=str(folder)).load_pretrained(SILENT)
    message = refusal(encoder("wavlm", pretrained=str(folder)), Waveform(8000, "none"))
    assert "model.features.sample_rate" in message


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    message = refusal(encoder("wavlm", pretrained="WAVLM_BIG"))
    assert message.startswith("model.encoder.pretrained")
    assert "WAVLM_BASE_PLUS" in message
    (tmp_path / "empty").mkdir()
    assert "config.json and model.safetensors" in refusal(encoder("wavlm", pretrained=str(tmp_path / "empty")))
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no tensors")
        assert "fetch it again" in refusal(encoder("wavlm", pretrained=str(tmp_path / name)))
    torch.save({"epoch": 3}, tmp_path / "run.pth")
    assert "holds no state_dict" in refusal(encoder("wavlm", pretrained=str(tmp_path / "run.pth")))
    folder = transformers_folder(tmp_path / "folder", "wavlm")
    (folder / "config.json").write_text("{")
    assert "broken" in refusal(encoder("wavlm", pretrained=str(folder)))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torchaudio.pipelines.TINY, and the file where torch.hub's cache would have it."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    bundle = torchaudio.pipelines.Wav2Vec2Bundle("tiny.pth", torchaudio_arguments("wavlm"), 16000, False, "WavLM")
    monkeypatch.setattr(torchaudio.pipelines, "TINY", bundle, raising=False)
    return tmp_path / "hub/checkpoints/tiny.pth"


def test_pipelines_are_downloaded_once(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchaudio_model("wavlm")
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with serving() as server:
        server.files["/tiny.pth"] = (tmp_path / "weights.pth").read_bytes()
        monkeypatch.setattr(pretrained, "DOWNLOADS", server.url)
        server.cut = 1000
        message = refusal(encoder("wavlm", pretrained="TINY"))
        assert f"{server.url}/tiny.pth" in message
        assert f"put it at {pipeline}" in message
        assert not list(pipeline.parent.iterdir())  # nothing half is left behind
        server.cut = None
        for _ in range(2):
            model = encoder("wavlm", pretrained="TINY").eval()
            model.load_pretrained(SILENT)
        assert len(server.requests) == 2
        server.files.clear()
        pipeline.unlink()
        assert "404" in refusal(encoder("wavlm", pretrained="TINY"))
    waveform = torch.randn(1, 500)
    with torch.no_grad():
        states, _ = model.network(waveform.unsqueeze(1), None)
        assert relative_error(states[-1], theirs.extract_features(waveform)[0][-1]) < 1e-5
    pipeline.write_bytes((tmp_path / "weights.pth").read_bytes())  # as the message asked for
    assert "model.encoder.channels: is 64" in refusal(encoder("wavlm", pretrained="TINY", channels=64))


def test_without_an_answer_the_download_ends_soon(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained.TIMEOUT <= 9.0
    monkeypatch.setattr(pretrained, "TIMEOUT", 0.2)
    # A name whose look-up hangs, which has no time-out of its own.
    over = threading.Event()

    def look_up(*args: Any, **kwargs: Any) -> None:
        over.wait(10.0)
        raise OSError("no such host")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    start = time.monotonic()
    message = refusal(encoder("wavlm", pretrained="TINY"))
    over.set()
    assert time.monotonic() - start < 3.0
    assert "no answer" in message
    assert str(pipeline) in message
    assert "https://download.pytorch.org" in message


def test_a_constructor_neither_reads_nor_downloads() -> None:
    with torch.device("meta"):
        model = SelfSupervised(**arguments("wavlm", pretrained="/nowhere/at/all"))
        assert model(torch.randn(1, 1, 500), None)[0].shape[:2] == (1, 32)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"in_channels": 80}, "features=Waveform"),
        ({"max_distance": 0}, "position_buckets and max_distance"),
        ({"trainable": 4}, "trainable=4"),
        ({"attention_heads": 5}, "attention_heads=5"),
        ({"position_groups": 5}, "position_groups=5"),
        ({"extractor_strides": [5, 2]}, "extractor_strides has 2"),
    ],
)
def test_wrong_sizes_are_named(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SelfSupervised(**arguments("wavlm", **changed))


@pytest.mark.parametrize(("name", "parameters"), [("wav2vec2", 94_370_944), ("wavlm", 94_381_168)])
def test_base_models_have_the_published_size(name: str, parameters: int) -> None:
    """What torchaudio's wav2vec2_base() and wavlm_base() have; hubert_base() has as many as the first."""
    cfg = model_config(name).encoder
    with torch.device("meta"):
        model = SelfSupervised(in_channels=1, **{key: value for key, value in cfg.items() if key != "_target_"})
    assert count(model.network) == parameters
    assert [p.numel() for p in model.parameters() if p.requires_grad] == [13]  # the weights of the sum
    bundle = getattr(torchaudio.pipelines, model.pretrained)
    assert model.architecture.differences(pretrained._of_torchaudio(bundle._params)) == []


def test_trainable_is_checked_before_the_run() -> None:
    for value, correct in (("none", True), (4, True), (0, False), ("top", False)):
        cfg = OmegaConf.to_container(model_config("wavlm").encoder)
        assert isinstance(cfg, dict)
        node = {str(key): item for key, item in cfg.items()} | {"trainable": value}
        mistakes = check_node("model.encoder", node)
        assert (mistakes == []) == correct, mistakes
        assert all(mistake.startswith("model.encoder.trainable") for mistake in mistakes)
