"""Centred log-mel features: against torchaudio, worked out by hand, and in padded batches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from spkexp.features_stft import CentredLogMel, triangles

SPEECHBRAIN: dict[str, Any] = {
    "sample_rate": 16000,
    "num_mels": 40,
    "frame_length_ms": 25.0,
    "frame_shift_ms": 10.0,
    "fft_size": 400,
    "low_hz": 0.0,
    "high_hz": 0.0,
    "window": "hamming",
    "filters": "symmetric",
    "padding": "zeros",
    "preemphasis": 0.0,
    "logarithm": "decibel",
    "floor": 1e-10,
    "top_db": 80.0,
    "normalise": "mean",
}
REDIMNET: dict[str, Any] = SPEECHBRAIN | {
    "num_mels": 72,
    "frame_shift_ms": 15.0,
    "fft_size": 512,
    "low_hz": 20.0,
    "high_hz": 7600.0,
    "filters": "htk",
    "padding": "reflect",
    "preemphasis": 0.97,
    "logarithm": "natural",
    "floor": 1e-6,
    "top_db": 0.0,
}


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def one(features: CentredLogMel, waveform: Tensor) -> Tensor:
    """(samples,) -> (M, T)."""
    return features(waveform[None], torch.tensor([len(waveform)]))[0][0]


def test_torchaudio() -> None:
    waveform = noise(20011).double()  # in float32 the weakest bins are rounded to 5e-5
    theirs = MelSpectrogram(16000, 512, 400, 240, 20, 7600, n_mels=72, window_fn=torch.hamming_window).double()
    before = torch.cat([waveform[1:2], waveform[:-1]])
    expected = (theirs(waveform - 0.97 * before) + 1e-6).log()
    expected -= expected.mean(dim=1, keepdim=True)
    assert one(CentredLogMel(**REDIMNET).double(), waveform).sub(expected).abs().max() < 1e-9


def test_a_frame_by_hand() -> None:
    """SpeechBrain's, of frame 2 of 960 samples, in float64 with sums in place of the FFT."""
    waveform = noise(960).double()
    spread = 2595 * math.log10(1 + 8000 / 700) / 41
    edges = [700 * (10 ** (spread * i / 2595) - 1) for i in range(42)]
    energies = torch.zeros(40, 7, dtype=torch.float64)
    padded = torch.cat([torch.zeros(200), waveform, torch.zeros(200)])
    n = torch.arange(400, dtype=torch.float64)
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * n / 400)
    for frame in range(7):
        windowed = padded[160 * frame : 160 * frame + 400] * window
        for k in range(201):
            angle = 2 * math.pi * k * n / 400
            power = (windowed * angle.cos()).sum() ** 2 + (windowed * angle.sin()).sum() ** 2
            for mel in range(40):  # both sides as wide as the lower one
                slope = (40 * k - edges[mel + 1]) / (edges[mel + 1] - edges[mel])
                energies[mel, frame] += max(0.0, 1 - abs(slope)) * power
    decibels = 10 * energies.clamp(min=1e-10).log10()
    expected = decibels.clamp(min=float(decibels.max()) - 80)
    expected -= expected.mean(dim=1, keepdim=True)
    actual = one(CentredLogMel(**SPEECHBRAIN), waveform.float())
    assert actual.shape == (40, 7)
    assert (actual - expected).abs().max() < 1e-3  # decibels


def test_the_least_value_is_that_of_the_utterance_alone() -> None:
    """top_db goes by the utterance's own maximum, and none of another row or of padding."""
    features = CentredLogMel(**SPEECHBRAIN | {"normalise": "none", "top_db": 20.0})
    quiet, loud = 1e-3 * noise(8000), noise(16000)
    batch = torch.zeros(2, 16000)
    batch[0, :8000], batch[1] = quiet, loud
    batch[0, 8000:] = 9.0
    found, frames = features(batch, torch.tensor([8000, 16000]))
    assert frames.tolist() == [51, 101]
    assert found[0, :, :51].max() - found[0, :, :51].min() == pytest.approx(20.0, abs=1e-3)
    assert found[0, :, :51].min() < found[1].min() - 20


@pytest.mark.parametrize(
    ("settings", "shortest"),
    # Of two frames alone a deviation may be next to nothing, and its rounding is not.
    [(SPEECHBRAIN, 1), (REDIMNET, 1), (SPEECHBRAIN | {"normalise": "mean_variance"}, 5000)],
)
def test_padding_changes_nothing(settings: dict[str, Any], shortest: int) -> None:
    features = CentredLogMel(**settings)
    for samples in [size for size in (1, 2, 199, 200, 201, 399, 5000, 12001) if size >= shortest]:
        waveforms = [noise(samples), noise(12001).flip(0)]
        batch = torch.full((2, 13000), 7.0)
        for row, waveform in zip(batch, waveforms, strict=True):
            row[: len(waveform)] = waveform
        found, frames = features(batch, torch.tensor([samples, 12001]))
        for row, waveform, length in zip(found, waveforms, frames.tolist(), strict=True):
            alone = one(features, waveform)
            assert alone.shape[1] == length == 1 + len(waveform) // features.frame_shift
            assert torch.isfinite(alone).all()
            assert (row[:, :length] - alone).abs().max() < 2e-5, samples
            assert (row[:, length:] == 0).all()


@pytest.mark.parametrize("settings", [SPEECHBRAIN, REDIMNET])
def test_gradient(settings: dict[str, Any]) -> None:
    """Of the sum of squares, along a direction, against a difference in float64."""
    features = CentredLogMel(**settings).double()
    waveform, direction = noise(2, 4000).double().requires_grad_(), noise(2, 4000).double().flip(1)
    lengths = torch.tensor([4000, 3001])

    def value(x: Tensor) -> Tensor:
        return features(x, lengths)[0].square().sum()

    value(waveform).backward()
    assert waveform.grad is not None
    with torch.no_grad():
        expected = (value(waveform + 1e-6 * direction) - value(waveform - 1e-6 * direction)) / 2e-6
    assert float((waveform.grad * direction).sum()) == pytest.approx(float(expected), rel=1e-4)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    features, waveform = CentredLogMel(**REDIMNET), noise(9000)
    whole = one(features, waveform)
    monkeypatch.setattr("spkexp.features_stft._BLOCK_FRAMES_CPU", 7)
    assert torch.allclose(one(features, waveform), whole, atol=1e-5)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="fft_size=256 must be even and no smaller"):
        CentredLogMel(**SPEECHBRAIN | {"fft_size": 256})
    with pytest.raises(ValueError, match=r"low_hz=5000\.0 and high_hz=4000\.0"):
        CentredLogMel(**SPEECHBRAIN | {"low_hz": 5000.0, "high_hz": 4000.0})
    assert triangles(8, 64, 16000, 0.0, 8000.0, symmetric=False).max() <= 1
