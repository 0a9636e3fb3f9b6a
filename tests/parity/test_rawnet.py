"""The authors' RawNet3 (clovaai/voxceleb_trainer), with random weights, gives the same embeddings as ours."""

import importlib
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.model_tools import count, randomise_norms, relative_error, speaker_model

REMEDY = (
    "git clone https://github.com/clovaai/voxceleb_trainer; "
    "git clone https://github.com/asteroid-team/asteroid-filterbanks; "
    "export SPKEXP_VOXCELEB_TRAINER=$PWD/voxceleb_trainer SPKEXP_ASTEROID=$PWD/asteroid-filterbanks"
)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    trainer = Path(os.environ.get("SPKEXP_VOXCELEB_TRAINER", "/missing"))
    asteroid = Path(os.environ.get("SPKEXP_ASTEROID", "/missing"))
    if not (trainer / "models/RawNet3.py").is_file() or not asteroid.is_dir():
        pytest.skip(REMEDY)
    monkeypatch.syspath_prepend(str(asteroid))
    monkeypatch.syspath_prepend(str(trainer))
    torch.manual_seed(0)
    module = importlib.import_module("models.RawNet3")
    model = module.MainModel(nOut=256, encoder_type="ECA", sinc_stride=10).eval()
    randomise_norms(model)
    return model


RENAMED = [
    (r"^preprocess\.1\.", "encoder.waveform_norm."),
    (r"^conv1\.filterbank\.(low|band)_hz_$", r"encoder.filterbank.\1_hz"),
    (r"^layer4\.", "encoder.aggregation.conv."),
    (r"^layer(\d)\.", lambda m: f"encoder.blocks.{int(m[1]) - 1}."),
    (r"(blocks\.\d)\.conv1\.", r"\1.before.conv."),
    (r"(blocks\.\d)\.bn1\.", r"\1.before.norm."),
    (r"(blocks\.\d)\.conv3\.", r"\1.after.conv."),
    (r"(blocks\.\d)\.bn3\.", r"\1.after.norm."),
    (r"(blocks\.\d)\.convs\.(\d)\.", r"\1.res2.convolutions.\2.conv."),
    (r"(blocks\.\d)\.bns\.(\d)\.", r"\1.res2.convolutions.\2.norm."),
    (r"\.residual\.0\.", ".skip."),
    (r"\.afms\.alpha$", ".scaling.alpha"),
    (r"\.afms\.fc\.", ".scaling.gain."),
    (r"^attention\.0\.", "pooling.hidden."),
    (r"^attention\.2\.", "pooling.norm."),
    (r"^attention\.3\.", "pooling.scores."),
    (r"^bn5\.", "pooling_norm."),
    (r"^fc6\.", "embedding."),
]
# Layers that their forward pass does not use (bn6: with out_bn=False), and constants.
UNUSED = ("bn1.", "bn6.", "preprocess.0.", "conv1.filterbank.window_", "conv1.filterbank.n_")


def renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load(theirs: nn.Module, ours: nn.Module) -> None:
    state = {renamed(name): x for name, x in theirs.state_dict().items() if not name.startswith(UNUSED)}
    for name, tensor in state.items():
        # The group of channels that passes a Res2 convolution unchanged is their last and our first.
        if ".before." in name and tensor.ndim:
            state[name] = tensor.roll(tensor.shape[0] // 8, dims=0)
        elif ".after.conv.weight" in name:
            state[name] = tensor.roll(tensor.shape[1] // 8, dims=1)
    # [frame; mean; deviation] is one matrix there and two here
    whole = state["pooling.hidden.weight"]
    channels = whole.shape[1] // 3
    state["pooling.hidden.weight"] = whole[:, :channels]
    state["pooling.context.weight"] = whole[:, channels:, 0]
    ours.load_state_dict(state, strict=True)


def embed(model: nn.Module, waveform: Tensor) -> Tensor:
    return model.embed(waveform.unsqueeze(1), torch.tensor([waveform.shape[1]] * len(waveform)))


def test_rawnet3(theirs: nn.Module) -> None:
    nn.init.constant_(theirs.preprocess[1].bias, 0.1)
    for block in (theirs.layer1, theirs.layer2, theirs.layer3):
        nn.init.uniform_(block.afms.alpha, 0.5, 1.5)
    ours = speaker_model("rawnet3").eval()
    load(theirs, ours)

    unused = count(theirs.bn1) + count(theirs.bn6)
    assert count(ours) == count(theirs) - unused == 16_279_298
    # In float64, for the logarithm of a magnitude near zero makes 1e-4 of float32's rounding: of the sums, and
    # of constants that differ in their last bit: the time n in a filter's 2 pi f n, and 0.97.
    ours, theirs = ours.double(), theirs.double()
    ours.encoder.filterbank.time.copy_(theirs.conv1.filterbank.n_[0])
    ours.encoder.preemphasis = -float(theirs.preprocess[0].flipped_filter[0, 0, 0])
    # From two frames on: of one frame their deviation is NaN.
    for samples in (391 + 150, 16000, 32001):
        waveform = torch.randn(2, samples, dtype=torch.float64) * 0.1
        with torch.no_grad():
            expected = theirs(waveform)
        assert relative_error(embed(ours, waveform), expected) < 1e-4, samples
    with FlopCounterMode(display=False) as theirs_counted:
        theirs(waveform)
    with FlopCounterMode(display=False) as ours_counted:
        embed(ours, waveform)
    # Only theirs counts: the attention's context at all frames but one, edges times time, pre-emphasis.
    frames = theirs.mp3(theirs.layer1.mp(torch.empty(1, 1, 1 + (samples - 251) // 10))).shape[2]
    saved = 2 * 2 * 2 * 1536 * 128 * (frames - 1) + 4 * 2 * 128 * 125 + 2 * 2 * 2 * samples
    assert ours_counted.get_total_flops() == theirs_counted.get_total_flops() - saved
