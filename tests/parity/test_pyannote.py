"""pyannote.audio's networks with random weights: a converted checkpoint gives their embeddings of speech."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conversion_tools import converted, embedded, listed, shapes_of, speech
from tests.model_tools import count, randomise_norms, relative_error

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


@pytest.mark.parametrize("stride", [10, 5])
def test_sinctdnn(xvector: ModuleType, stride: int, tmp_path: Path, shared_data: Path) -> None:
    torch.manual_seed(0)
    theirs = xvector.XVectorSincNet(sincnet={"stride": stride}).eval()
    assert shapes_of(theirs) == listed("pyannote_sinctdnn").shapes
    randomise_norms(theirs)
    filterbank = theirs.sincnet.conv1d[0].filterbank
    nn.init.normal_(theirs.sincnet.wav_norm1d.bias, 0.0, 0.2)
    for norm in theirs.sincnet.norm1d:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    with torch.no_grad():  # negative ones too: they count as their magnitudes
        for edges in (filterbank.low_hz_, filterbank.band_hz_):
            edges += torch.randn_like(edges) * 100
    arguments = {"sincnet": {"stride": stride, "sample_rate": 16000}, "dimension": 512}
    ours = converted(tmp_path, "pyannote", {"state_dict": theirs.state_dict(), "hyper_parameters": arguments})

    assert count(ours) == count(theirs) == 4_346_366
    assert relative_error(ours.encoder.filterbank.filters(), filterbank.filters()) < 1e-5
    # one more frame than the shortest: of one frame their deviation is NaN
    shortest = 0.05 + torch.randn(1, ours.encoder.receptive_field + 27 * stride) * 0.1
    for waveform in (shortest, *speech(shared_data)):
        frames = ours.encoder(waveform.unsqueeze(1), None)[0].shape[2]
        assert frames == theirs.num_frames(waveform.shape[1])
        with torch.no_grad():
            expected = theirs(waveform.unsqueeze(1))
        error = relative_error(embedded(ours, waveform), expected)
        print(f"SincTDNN, stride {stride}, {waveform.shape[1] / 16000:.1f} s: {error:.1e}")
        assert error < 1e-4
    with FlopCounterMode(display=False) as theirs_counted:
        theirs(waveform.unsqueeze(1))
    with FlopCounterMode(display=False) as ours_counted:
        embedded(ours, waveform)
    # Theirs counts the filters times time, too: four products of 40 bands and half of 251 samples.
    assert ours_counted.get_total_flops() == theirs_counted.get_total_flops() - 4 * 2 * 40 * 125


def test_resnet(xvector: ModuleType, tmp_path: Path, shared_data: Path) -> None:
    wespeaker = importlib.import_module("pyannote.audio.models.embedding.wespeaker")
    torch.manual_seed(0)
    theirs = wespeaker.WeSpeakerResNet34().eval()
    randomise_norms(theirs)
    ours = converted(tmp_path, "pyannote", {"state_dict": theirs.state_dict()})
    assert count(ours) == count(theirs) == 6_634_336
    for waveform in speech(shared_data):
        with torch.no_grad():
            expected = theirs(waveform.unsqueeze(1))
        error = relative_error(embedded(ours, waveform), expected)
        print(f"WeSpeakerResNet34, {waveform.shape[1] / 16000:.1f} s: {error:.1e}")
        assert error < 1e-4
