"""What every file in conf/model promises: padding, short inputs, precision, gradients."""

import pytest
import torch
from torch import nn

from spkexp import build
from spkexp.compose import compose_config
from spkexp.config import config_folder
from tests.model_tools import NAMES, randomise_norms, relative_error, speaker_model

# Deeper or wider members of a family that has a small one here: the same code, but minutes; `make test-slow` has them.
LARGE = {"ecapa", "resnet101", "resnet152", "resnet221", "resnet293", "wav2vec2", "hubert", "wavlm", "rawnet3"}
LARGE |= {"redimnet_b1", "redimnet_b3", "redimnet_b4", "redimnet_b5", "redimnet_b6"}
MODELS = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NAMES]


@pytest.mark.parametrize("name", MODELS)
def test_embedding_alone_equals_embedding_in_a_batch(name: str) -> None:
    model = speaker_model(name).eval()
    randomise_norms(model)
    lengths = torch.tensor([12000, 7000, 1600, 500, 150])  # the last is shorter than a frame
    waveform = torch.randn(5, 12000) * 0.1
    with torch.no_grad():
        together = model(waveform, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = model(waveform[row : row + 1, :length], torch.tensor([length]))
            assert relative_error(together[row], alone[0]) < 1e-5, f"{length} samples"


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns_from_full_and_from_padded_rows(name: str) -> None:
    model = speaker_model(name).train()
    waveform = torch.randn(3, 8000) * 0.1
    for lengths in (torch.tensor([8000, 8000, 8000]), torch.tensor([8000, 5000, 400])):
        model.zero_grad()
        model(waveform, lengths).square().sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                assert parameter.grad.isfinite().all(), key
                # What precedes a batch normalisation or a softmax has a bias whose gradient is zero by nature.
                silent = key.endswith(".bias") and not key.endswith(("dt_proj.bias", "conv1d.bias"))
                assert silent or parameter.grad.any(), key


@pytest.mark.parametrize("name", MODELS)
def test_one_frame_has_finite_gradients(name: str) -> None:
    model = speaker_model(name).train()
    waveform = (torch.randn(2, 400) * 0.1).requires_grad_()
    embedding = model(waveform, torch.tensor([400, 400]))
    assert embedding.isfinite().all()
    embedding.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", MODELS)
def test_bf16_autocast_is_close_to_float32(name: str) -> None:
    model = speaker_model(name).eval()
    waveform, lengths = torch.randn(4, 8000) * 0.1, torch.tensor([8000, 8000, 8000, 5000])
    exact = model(waveform, lengths)
    weight = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)).weight
    gradient = torch.autograd.grad(exact.square().sum(), weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(waveform, lengths)
    rough_gradient = torch.autograd.grad(rough.float().square().sum(), weight)[0]
    assert relative_error(rough.float(), exact) < 0.05  # bfloat16 has 8 bits
    assert relative_error(rough_gradient, gradient) < 0.1


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "model/pooling").glob("*.yaml")))
def test_every_pooling_fits_an_encoder_and_ignores_padding(name: str) -> None:
    torch.manual_seed(0)
    model = build.model(compose_config([f"model/pooling={name}"]).model).eval()
    randomise_norms(model)
    lengths = torch.tensor([8000, 3000, 150])
    waveform = torch.randn(3, 8000) * 0.1
    with torch.no_grad():
        together = model(waveform, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = model(waveform[row : row + 1, :length], torch.tensor([length]))
            assert relative_error(together[row], alone[0]) < 1e-5, f"{length} samples"
