"""pyannote.audio's XVectorSincNet, with random weights, gives the same embeddings as our SincTDNN."""

import importlib
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.model_tools import count, randomise_norms, relative_error, speaker_model

REMEDY = (
    "git clone https://github.com/pyannote/pyannote-audio; "
    "git clone https://github.com/asteroid-team/asteroid-filterbanks; "
    "export SPKEXP_PYANNOTE=$PWD/pyannote-audio SPKEXP_ASTEROID=$PWD/asteroid-filterbanks"
)


class Model(nn.Module):
    """Stands for pyannote.audio's base class, a LightningModule: their network needs nothing of it but `hparams`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def save_hyperparameters(self, *names: str) -> None:
        arguments = sys._getframe(1).f_locals
        self.hparams = SimpleNamespace(**{name: arguments[name] for name in names})


@pytest.fixture
def xvector(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Their module, without the imports of their packages, which want Lightning and much else."""
    source = Path(os.environ.get("SPKEXP_PYANNOTE", "/missing"), "src/pyannote")
    asteroid = Path(os.environ.get("SPKEXP_ASTEROID", "/missing"))
    if not source.is_dir() or not asteroid.is_dir():
        pytest.skip(REMEDY)
    monkeypatch.syspath_prepend(str(asteroid))
    for path in (
        "",
        "audio",
        "audio/core",
        "audio/models",
        "audio/models/blocks",
        "audio/models/embedding",
        "audio/utils",
    ):
        package = ModuleType(".".join(["pyannote", *Path(path).parts]))
        package.__path__ = [str(source / path)]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    for name, member in (("model", "Model"), ("task", "Task")):
        module = ModuleType(f"pyannote.audio.core.{name}")
        setattr(module, member, Model)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return importlib.import_module("pyannote.audio.models.embedding.xvector")


RENAMED = [
    ("sincnet.wav_norm1d.", "encoder.waveform_norm."),
    ("sincnet.conv1d.0.filterbank.low_hz_", "encoder.filterbank.low_hz"),
    ("sincnet.conv1d.0.filterbank.band_hz_", "encoder.filterbank.band_hz"),
    ("sincnet.conv1d.1.", "encoder.convolutions.0."),
    ("sincnet.conv1d.2.", "encoder.convolutions.1."),
    ("sincnet.norm1d.", "encoder.instance_norms."),
]


def renamed(name: str) -> str:
    """pyannote.audio's name of a tensor -> ours."""
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    layer = re.match(r"tdnns\.(\d+)\.(.*)", name)  # convolution, leaky ReLU, batch normalisation, and again
    if layer:
        index, part = divmod(int(layer[1]), 3)
        return f"encoder.{('layers', None, 'norms')[part]}.{index}.{layer[2]}"
    return name


@pytest.mark.parametrize("stride", [10, 5])
def test_sinctdnn(xvector: ModuleType, stride: int) -> None:
    torch.manual_seed(0)
    theirs = xvector.XVectorSincNet(sincnet={"stride": stride}).eval()
    randomise_norms(theirs)
    filterbank = theirs.sincnet.conv1d[0].filterbank
    nn.init.normal_(theirs.sincnet.wav_norm1d.bias, 0.0, 0.2)
    for norm in theirs.sincnet.norm1d:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    with torch.no_grad():  # negative ones too: they count as their magnitudes
        for edges in (filterbank.low_hz_, filterbank.band_hz_):
            edges += torch.randn_like(edges) * 100
    ours = speaker_model("sinctdnn", sinc_stride=stride).eval()
    ours.pooling.variance_floor = 1e-12  # theirs has none, which shows in two frames
    buffers = ("filterbank.window_", "filterbank.n_")
    state = {renamed(name): tensor for name, tensor in theirs.state_dict().items() if not name.endswith(buffers)}
    ours.load_state_dict(state, strict=True)

    assert count(ours) == count(theirs) == 4_346_366
    assert relative_error(ours.encoder.filterbank.filters(), filterbank.filters()) < 1e-5
    # one more frame than the shortest: of one frame their deviation is NaN
    for samples in (ours.encoder.receptive_field + 27 * stride, 16000, 32001):
        waveform = torch.randn(2, samples) * 0.1 + 0.05
        frames = ours.encoder(waveform.unsqueeze(1), None)[0].shape[2]
        assert frames == theirs.num_frames(samples)
        with torch.no_grad():
            expected = theirs(waveform.unsqueeze(1))
            assert relative_error(ours(waveform, torch.tensor([samples] * 2)), expected) < 1e-5
    with FlopCounterMode(display=False) as theirs_counted:
        theirs(waveform.unsqueeze(1))
    with FlopCounterMode(display=False) as ours_counted:
        ours(waveform, torch.tensor([samples] * 2))
    # Theirs counts the filters times time, too: four products of 40 bands and half of 251 samples.
    assert ours_counted.get_total_flops() == theirs_counted.get_total_flops() - 4 * 2 * 40 * 125
