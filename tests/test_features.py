"""LogMel against torchaudio's port of Kaldi's fbank, and what a batch must not change."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.compliance.kaldi import fbank

from spkexp.features import LogMel

DATA = Path(__file__).parents[2] / "shared/data"
CLIPS = [
    "LibriSpeech/test-other/*/*/*-0000.flac",
    "LibriSpeech/train-clean-100/*/*/*.flac",
    "arabic_speech_commands/*/*_01.flac",
]


def log_mel(**changes: Any) -> LogMel:
    arguments: dict[str, Any] = {
        "sample_rate": 16000,
        "num_mels": 80,
        "frame_length_ms": 25.0,
        "frame_shift_ms": 10.0,
        "low_hz": 20.0,
        "high_hz": 0.0,
        "window": "povey",
        "preemphasis": 0.97,
        "scale": 1.0,
        "normalise": "none",
    }
    return LogMel(**(arguments | changes))


def oracle(waveform: Tensor, num_mels: int = 80, window: str = "povey", scale: float = 1.0) -> Tensor:
    """(samples,) -> (M, frames), one utterance, by torchaudio."""
    name = "hanning" if window == "hann" else window
    return fbank((waveform * scale)[None], num_mel_bins=num_mels, window_type=name, dither=0.0).T


def noise(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    levels = [0.3, 1e-2, 1e-4]
    return [
        torch.randn(length, generator=generator) * levels[i % 3] + 0.1 * (i % 2) for i, length in enumerate(lengths)
    ]


def speech() -> list[Tensor]:
    if not DATA.is_dir():
        pytest.skip(f"no real speech at {DATA}")
    paths = [path for pattern in CLIPS for path in sorted(DATA.glob(pattern))[:5]]
    assert len(paths) == 15
    return [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]


def batch(utterances: list[Tensor], padding: float = 0.0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(utterance) for utterance in utterances])
    return pad_sequence(utterances, batch_first=True, padding_value=padding), lengths


@pytest.mark.parametrize("window", ["povey", "hamming", "hann"])
@pytest.mark.parametrize("num_mels", [23, 72, 80])
@pytest.mark.parametrize("scale", [1.0, 32768.0])
@pytest.mark.parametrize("source", ["noise", "speech"])
def test_equals_torchaudio(window: str, num_mels: int, scale: float, source: str) -> None:
    utterances = noise(16000, 400, 4321, 40000) if source == "noise" else speech()
    features, lengths = log_mel(window=window, num_mels=num_mels, scale=scale)(*batch(utterances, padding=0.7))
    for row, utterance in enumerate(utterances):
        expected = oracle(utterance, num_mels, window, scale)
        assert lengths[row] == expected.shape[1]
        # The bound asked for is 1e-4; the arithmetic is the same step by step, so far less remains.
        torch.testing.assert_close(features[row, :, : lengths[row]], expected, atol=1e-5, rtol=0)


def test_other_rates_and_band_edges_equal_torchaudio() -> None:
    (utterance,) = noise(8000)
    module = log_mel(
        sample_rate=8000, num_mels=30, frame_length_ms=32.0, frame_shift_ms=8.0, low_hz=60.0, high_hz=3600.0
    )
    features, _ = module(*batch([utterance]))
    expected = fbank(
        utterance[None],
        sample_frequency=8000.0,
        num_mel_bins=30,
        frame_length=32.0,
        frame_shift=8.0,
        low_freq=60.0,
        high_freq=3600.0,
        dither=0.0,
    )
    torch.testing.assert_close(features[0].T, expected, atol=1e-5, rtol=0)


def test_differentiable_path_equals_the_fast_one_and_has_a_gradient() -> None:
    waveform, lengths = batch(noise(4000, 4000))
    module = log_mel()
    expected, _ = module(waveform, lengths)
    waveform.requires_grad_()
    features, _ = module(waveform, lengths)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    features.sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()
    assert waveform.grad.abs().sum() > 0


def test_long_utterance_needs_no_more_memory_at_once_and_is_the_same() -> None:
    (utterance,) = noise(30 * 16000)  # 2,998 frames, several blocks with a last one of another size
    features, _ = log_mel()(*batch([utterance]))
    torch.testing.assert_close(features[0], oracle(utterance), atol=1e-5, rtol=0)


def test_number_of_frames() -> None:
    lengths = torch.tensor([1, 399, 400, 559, 560, 16000, 32000])
    # 1 + (samples - 400) // 160, at least one frame
    assert log_mel().num_frames(lengths).tolist() == [1, 1, 1, 1, 2, 98, 198]


@pytest.mark.parametrize("normalise", ["none", "mean", "mean_variance"])
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
def test_padding_has_no_influence(normalise: str, garbage: float) -> None:
    utterances = noise(9000, 150, 16000, 399, 401)
    module = log_mel(normalise=normalise)
    features, lengths = module(*batch(utterances, padding=garbage))
    for row, utterance in enumerate(utterances):
        alone, count = module(utterance[None], torch.tensor([len(utterance)]))
        assert lengths[row] == count[0] == alone.shape[2]
        torch.testing.assert_close(features[row, :, : lengths[row]], alone[0], atol=2e-5, rtol=1e-5)
        assert (features[row, :, lengths[row] :] == 0).all()


def test_short_utterance_is_one_frame_padded_with_zeros() -> None:
    (utterance,) = noise(150)
    features, lengths = log_mel()(utterance[None], torch.tensor([150]))
    assert lengths.tolist() == [1]
    padded = torch.cat([utterance, torch.zeros(250)])
    torch.testing.assert_close(features[0], oracle(padded), atol=1e-5, rtol=0)


def test_silence_is_kaldis_floor() -> None:
    features, _ = log_mel()(torch.zeros(1, 1000), torch.tensor([1000]))
    # ln of the float32 epsilon, 2 ** -23
    torch.testing.assert_close(features, torch.full((1, 80, 4), -15.942385))


@pytest.mark.parametrize("lengths", [[16000, 16000], [16000, 7000]])
def test_normalisation_is_that_of_the_valid_frames(lengths: list[int]) -> None:
    waveform, sizes = batch(noise(*lengths))
    raw, frames = log_mel()(waveform, sizes)
    mean, _ = log_mel(normalise="mean")(waveform, sizes)
    both, _ = log_mel(normalise="mean_variance")(waveform, sizes)
    for row, count in enumerate(frames.tolist()):
        valid = raw[row, :, :count].double().numpy()
        centred = valid - valid.mean(axis=1, keepdims=True)
        scaled = centred / valid.std(axis=1, keepdims=True)
        torch.testing.assert_close(mean[row, :, :count].double(), torch.from_numpy(centred), atol=1e-4, rtol=0)
        torch.testing.assert_close(both[row, :, :count].double(), torch.from_numpy(scaled), atol=1e-4, rtol=0)


def test_constant_features_stay_finite_under_variance_normalisation() -> None:
    features, _ = log_mel(normalise="mean_variance")(torch.zeros(2, 800), torch.tensor([800, 100]))
    torch.testing.assert_close(features, torch.zeros(2, 80, 3), atol=1e-2, rtol=0)  # rounding over the floor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mels": 400}, "mel bin .* num_mels=400 .* always be empty"),
        ({"low_hz": 5000.0, "high_hz": 4000.0}, "low_hz < high_hz"),
        ({"high_hz": 9000.0}, "half of sample_rate=16000"),
        ({"frame_shift_ms": 0.01}, "frame_shift_ms"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(**changes)
