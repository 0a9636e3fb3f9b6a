"""Windows that slide over a recording: where they begin, what is read for them, and what their embeddings are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pyannote.core import Segment, SlidingWindowFeature
from torch import Tensor, nn

from spkexp.data import audio
from spkexp.errors import AudioError, UserError
from spkexp.scoring.sliding import Windows, embed_sliding, parse_step, window_count, window_starts
from tests.model_tools import speaker_model

RATE = 1000  # Hz: short files whose samples can be listed


class Ends(nn.Module):
    """The embedding is the first and the last sample of the waveform, and its length: what it was given can be read."""

    embedding_size, sample_rate = 3, RATE

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.samples: list[int] = []  # of each batch

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        self.samples.append(waveform.numel())
        last = waveform.gather(1, lengths[:, None] - 1)
        return torch.cat([waveform[:, :1], last, lengths[:, None].float()], dim=1) * self.weight


def ramp(file: Path, samples: int) -> Path:
    """Sample k is k / 1000."""
    soundfile.write(file, np.arange(samples, dtype=np.float32) / 1000, RATE, subtype="FLOAT")
    return file


@pytest.mark.parametrize(
    ("samples", "width", "step", "expected"),
    [
        (25, 10, 4, [0, 4, 8, 12, 15]),  # the last at a multiple of 4 ends at 22
        (22, 10, 4, [0, 4, 8, 12]),
        (11, 10, 10, [0, 1]),
        (10, 10, 4, [0]),
        (7, 10, 4, [0]),
        (1, 1, 1, [0]),
    ],
)
def test_where_windows_begin(samples: int, width: int, step: int, expected: list[int]) -> None:
    assert window_starts(samples, width, step).tolist() == expected


def test_windows_cover_every_sample_and_none_is_there_twice() -> None:
    for samples in range(1, 60):
        for step in (1, 3, 7):
            starts = window_starts(samples, 7, step)
            covered = {sample for start in starts.tolist() for sample in range(start, min(start + 7, samples))}
            assert covered == set(range(samples))
            assert (np.diff(starts) > 0).all()
            assert starts[-1] == max(0, samples - 7)
            assert window_count(samples, 7, step) == len(starts)


@pytest.mark.parametrize(("samples", "width", "step"), [(0, 10, 4), (20, 10, 11), (20, 10, 0)])
def test_windows_that_make_no_sense(samples: int, width: int, step: int) -> None:
    with pytest.raises(ValueError, match="windows of 10 samples"):
        window_starts(samples, width, step)


def test_the_step_is_in_seconds_or_a_share_of_the_window() -> None:
    assert parse_step("25%", 2.0) == 0.5
    assert parse_step(" 100 % ", 1.5) == 1.5
    assert parse_step("0.1", 2.0) == 0.1
    assert parse_step(0.75, 1.5) == 0.75
    for wrong in ("banana", "", "0", "-1", "101%", "2.1", "nan", "inf", "%"):
        with pytest.raises(UserError, match=r"step=.*expected seconds"):
            parse_step(wrong, 2.0)


@pytest.mark.parametrize("batch_seconds", [1.0, 0.031, 0.02, 0.001])
def test_a_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_seconds: float) -> None:
    reads: list[int] = []
    read = audio.read

    def spied(path: Any, start: int, frames: int, **arguments: Any) -> np.ndarray:
        reads.append(frames)
        return read(path, start, frames, **arguments)

    monkeypatch.setattr(audio, "read", spied)
    model = Ends()
    found = embed_sliding(model, ramp(tmp_path / "ü.wav", 225), 0.010, 0.004, batch_seconds=batch_seconds)
    starts = np.array([*range(0, 213, 4), 215])
    np.testing.assert_allclose(found.embeddings[:, 0], starts / 1000, rtol=1e-6)
    np.testing.assert_allclose(found.embeddings[:, 1], (starts + 9) / 1000, rtol=1e-6)
    assert (found.embeddings[:, 2] == 10).all()
    np.testing.assert_allclose(found.start, starts / RATE)
    np.testing.assert_allclose(found.end, (starts + 10) / RATE)
    room = max(10, round(batch_seconds * RATE))
    assert max(reads) <= room
    assert max(model.samples) <= room
    assert len(model.samples) <= -(-len(starts) // (room // 10)) + 1  # and batches are full
    assert found.embeddings.dtype == np.float32
    assert found.start.dtype == np.float64


def test_a_waveform_a_short_one_and_a_segment(tmp_path: Path) -> None:
    file, model = ramp(tmp_path / "a.wav", 40), Ends()
    wave = np.arange(40, dtype=np.float32) / 1000
    for source in (file, str(file), wave):
        found = embed_sliding(model, source, 0.010, 0.010, segment=(0.0055, 0.029))
        # Samples 6 to 29 (5.5 is rounded to the even number): 6, 16 and, ending with the segment, 19.
        np.testing.assert_allclose(found.start, [0.006, 0.016, 0.019])
        np.testing.assert_allclose(found.embeddings, [[0.006, 0.015, 10], [0.016, 0.025, 10], [0.019, 0.028, 10]], 1e-6)
        behind = embed_sliding(model, source, 0.010, 0.005, segment=(0.037, 9.0))
        np.testing.assert_allclose(behind.embeddings, [[0.037, 0.039, 3]], rtol=1e-6)
        assert (behind.start.tolist(), behind.end.tolist()) == ([0.037], [0.040])
        for outside in ((0.040, 0.050), (0.010, 0.010), (-0.01, 0.01)):
            with pytest.raises(AudioError, match=r"has no segment from .* it is 0\.040 s long"):
                embed_sliding(model, source, 0.010, 0.005, segment=outside)
    for wrong in (np.zeros((2, 100), np.float32), np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match="samples of shape"):
            embed_sliding(model, wrong, 0.010, 0.010)
    assert model.train().training
    embed_sliding(model, wave, 0.010, 0.010)
    assert model.training  # as it was


def test_other_rates_and_channels_as_in_one_piece(tmp_path: Path) -> None:
    """Pieces of a resampled file hold what the whole of it, resampled, does; and both can be forbidden."""
    rng = np.random.default_rng(0)
    file = tmp_path / "stereo.flac"
    soundfile.write(file, rng.normal(0, 0.1, (8820, 2)), 44_100)
    model = speaker_model("ecapa_small").eval()
    whole = audio.read(file, resample=True, mix_channels=True)
    in_pieces = embed_sliding(model, file, 0.05, 0.02, batch_seconds=0.1)
    at_once = embed_sliding(model, whole, 0.05, 0.02)
    np.testing.assert_allclose(in_pieces.embeddings, at_once.embeddings, atol=1e-4)
    np.testing.assert_array_equal(in_pieces.start, at_once.start)
    with pytest.raises(AudioError, match="sampled at 44100 Hz"):
        embed_sliding(model, file, 0.05, 0.02, resample=False)
    with pytest.raises(AudioError, match="2 channels"):
        embed_sliding(model, file, 0.05, 0.02, mix_channels=False)


def test_a_window_is_embedded_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(1)
    wave = rng.normal(0, 0.1, 30_000).astype(np.float32)
    model = speaker_model("ecapa_small").eval()
    found = embed_sliding(model, wave, 0.8, 0.3)
    half = embed_sliding(model, wave, 0.8, 0.3, precision="bf16")
    with torch.inference_mode():
        for number, start in enumerate([0, 4800, 9600, 14_400, 17_200]):  # the last one ends with the recording
            alone = model(torch.from_numpy(wave[start : start + 12_800])[None], torch.tensor([12_800]))[0].numpy()
            np.testing.assert_allclose(found.embeddings[number], alone, atol=1e-5 * np.abs(alone).max())
    assert len(found.start) == 5
    assert not np.array_equal(half.embeddings, found.embeddings)
    cosine = (half.embeddings * found.embeddings).sum(1)
    cosine /= np.linalg.norm(half.embeddings, axis=1) * np.linalg.norm(found.embeddings, axis=1)
    assert cosine.min() > 0.999


def windows(starts: list[float], width: float) -> Windows:
    start = np.array(starts)
    return Windows(np.arange(2 * len(start), dtype=np.float32).reshape(-1, 2), start, start + width)


def test_windows_of_a_stretch() -> None:
    found = windows([0.0, 1.0, 2.0, 3.0, 3.5], 2.0)
    cases = {
        "loose": [1.0, 2.0, 3.0, 3.5],  # [0, 2] only touches it at 2
        "strict": [2.0],
        "centre": [1.0, 2.0],  # middles at 2 and 3; 4 is its end
    }
    for mode, expected in cases.items():
        chosen = found.crop(2.0, 4.0, mode)
        assert chosen.start.tolist() == expected
        assert chosen.embeddings[:, 0].tolist() == [2 * found.start.tolist().index(start) for start in expected]
    assert len(found.crop(10.0, 11.0).start) == 0
    parts = [found.crop(first, first + 1.5, "centre").start.tolist() for first in np.arange(0, 6, 1.5)]
    assert [start for part in parts for start in part] == found.start.tolist()  # each in one part
    with pytest.raises(ValueError, match="expected it to end after it starts"):
        found.crop(2.0, 2.0)
    with pytest.raises(ValueError, match="expected loose, strict or centre"):
        found.crop(2.0, 3.0, "center")


def test_as_pyannote_has_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="spkexp")
    even = windows([0.5, 1.25, 2.0, 2.75], 1.5)
    view = even.to_pyannote()
    assert isinstance(view, SlidingWindowFeature)
    assert np.shares_memory(view.data, even.embeddings)
    for number, (where, row) in enumerate(view):
        assert where == Segment(even.start[number], even.end[number])
        assert row.tolist() == even.embeddings[number].tolist()
    assert len(view) == 4
    # pyannote's own reading of "in the middle of": the window whose centre is nearest.
    assert view.sliding_window.closest_frame(2.0) == 1
    assert caplog.records == []

    uneven = windows([0.5, 1.25, 2.0, 2.3], 1.5).to_pyannote()  # the last one ends with the recording
    assert len(uneven) == 3
    assert uneven.sliding_window.step == 0.75
    assert "without the last window" in caplog.text
    single = windows([0.0], 0.7).to_pyannote()
    assert [where for where, _ in single] == [Segment(0.0, 0.7)]
    for wrong in ([0.0, 1.0, 3.0], [0.0, 0.5, 1.5, 2.0], []):
        with pytest.raises(ValueError, match="windows"):
            windows(wrong, 1.0).to_pyannote()
