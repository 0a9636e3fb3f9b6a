"""Embeddings of utterances: what a window is, and that nothing else than the utterance decides its embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from torch import Tensor, nn

from spkexp import distributed
from spkexp.data.dataset import Reading, loader
from spkexp.data.utterances import Utterances
from spkexp.scoring.extract import Interrupted, batches_by_length, embed
from spkexp.scoring.pieces import UtteranceWindows, WindowBatch
from tests.model_tools import speaker_model

RATE = 1000  # Hz: short files whose samples can be listed
READING = Reading(RATE, resample=False, mix_channels=False)


class Ends(nn.Module):
    """The embedding is the first and the last sample of the waveform, and its length: what it was given can be read."""

    embedding_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        self.rows.append(waveform.numel())
        last = waveform.gather(1, lengths[:, None] - 1)
        return torch.cat([waveform[:, :1], last, lengths[:, None].float()], dim=1) * self.weight


def files(folder: Path, lengths: list[int], durations: list[float] | None = None) -> Utterances:
    """Ramps: sample k of utterance u is (k + 1) / 1000 + u / 10."""
    rows = []
    for number, length in enumerate(lengths):
        path = folder / f"ü{number}.wav"
        wave = (np.arange(length) + 1) / 1000 + number / 10
        soundfile.write(path, wave.astype(np.float32), RATE, subtype="FLOAT")
        seconds = length / RATE if durations is None else durations[number]
        rows.append((f"ü{number}", str(path), seconds, f"s{number % 2}"))
    return Utterances.of(pl.DataFrame(rows, schema=["id", "path", "duration", "speaker"], orient="row"), "speaker")


def mean_of_windows(number: int, windows: list[tuple[int, int]]) -> np.ndarray:
    """By the definition: windows are (first sample, one past the last)."""
    rows = [
        np.array([(first + 1) / 1000 + number / 10, stop / 1000 + number / 10, stop - first]) for first, stop in windows
    ]
    return np.mean([row / np.linalg.norm(row) for row in rows], axis=0)


# 25 samples in windows of 10, 4 apart: the last at a multiple of 4 ends at 22, and one more ends with the utterance.
LENGTHS = [25, 10, 7, 22, 11]
WINDOWS = [
    [(0, 10), (4, 14), (8, 18), (12, 22), (15, 25)],
    [(0, 10)],
    [(0, 7)],
    [(0, 10), (4, 14), (8, 18), (12, 22)],
    [(0, 10), (1, 11)],
]


@pytest.mark.parametrize("batch_seconds", [1.0, 0.031, 0.02, 0.001])
@pytest.mark.parametrize("off", [0.0, 0.002, -0.002])
def test_the_mean_of_windows(tmp_path: Path, batch_seconds: float, off: float) -> None:
    """Whatever batches they come in, and where the manifest's durations are not quite those of the files."""
    utterances = files(tmp_path, LENGTHS, [length / RATE + off for length in LENGTHS])
    model = Ends()
    found, bad = embed(model, utterances, READING, batch_seconds, 0, window=0.010, window_step=0.004)
    expected = [mean_of_windows(number, windows) for number, windows in enumerate(WINDOWS)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert bad == []
    if not off:  # memory: never more than a batch, or one window and the rest that belongs to it
        assert max(model.rows) <= max(round(batch_seconds * RATE), 20)


def test_windows_of_a_segment_end_with_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", (np.arange(100) + 1).astype(np.float32) / 1000, RATE, subtype="FLOAT")
    rows = {"id": ["a"], "path": [str(tmp_path / "a.wav")], "duration": [0.025], "speaker": ["s"], "start": [480]}
    segment = Utterances.of(pl.DataFrame(rows), "speaker")  # from sample 30 of the file: 480 at 16 kHz
    for batch_seconds in (1.0, 0.02):
        found, _ = embed(Ends(), segment, READING, batch_seconds, 0, window=0.010, window_step=0.004)
        shifted = [(first + 30, stop + 30) for first, stop in WINDOWS[0]]
        np.testing.assert_allclose(found[0], mean_of_windows(0, shifted), rtol=1e-6)


def test_the_step_is_half_a_window_where_none_is_given(tmp_path: Path) -> None:
    found, _ = embed(Ends(), files(tmp_path, [22]), READING, 1.0, 0, window=0.010)
    np.testing.assert_allclose(found[0], mean_of_windows(0, [(0, 10), (5, 15), (10, 20), (12, 22)]), rtol=1e-6)


def test_without_windows_the_embedding_is_the_models(tmp_path: Path) -> None:
    found, _ = embed(Ends(), files(tmp_path, [25, 7]), READING, 1.0, 0)
    np.testing.assert_allclose(found, [[0.001, 0.025, 25.0], [0.101, 0.107, 7.0]], rtol=1e-6)


def test_one_unreadable_piece_spoils_the_utterance_and_is_named_once(tmp_path: Path) -> None:
    # The manifest promises 60 samples of the first: of its many pieces, those past the end cannot be read.
    utterances = files(tmp_path, [25, 7], [0.060, 0.007])
    found, bad = embed(Ends(), utterances, READING, 0.02, 0, window=0.010, window_step=0.010)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], mean_of_windows(1, [(0, 7)]), rtol=1e-6)
    assert [entry.id for entry in bad] == ["ü0"]
    assert "ü0.wav" in bad[0].reason


@pytest.mark.parametrize(("window", "step"), [(0.010, 0.011), (0.010, 0.0001), (0.0001, 0.0001)])
def test_windows_that_make_no_sense(tmp_path: Path, window: float, step: float) -> None:
    with pytest.raises(ValueError, match="windows of"):
        embed(Ends(), files(tmp_path, [25]), READING, 1.0, 0, window=window, window_step=step)


def test_windows_of_speed_copies_are_refused(tmp_path: Path) -> None:
    copies = files(tmp_path, [25]).with_speed_copies([0.9], own_labels=True)
    with pytest.raises(ValueError, match="without their speed copies"):
        embed(Ends(), copies, READING, 1.0, 0, window=0.010)


def test_batches_count_the_padding_and_the_rows() -> None:
    duration = np.array([1.0, 3.0, 2.0, 2.0, 9.0])
    assert batches_by_length(duration, 6.0) == [[0, 2, 3], [1], [4]]
    assert batches_by_length(duration, 6.0, [4, 1, 1, 2, 1]) == [[0], [2, 3], [1], [4]]


def voices(folder: Path) -> Utterances:
    rng = np.random.default_rng(0)
    rows = []
    for number, seconds in enumerate([1.3, 0.5, 2.4, 0.9, 1.7, 3.1]):
        wave = rng.normal(0, 0.1, round(seconds * 16_000))
        soundfile.write(folder / f"{number}.flac", wave, 16_000)
        rows.append((str(number), str(folder / f"{number}.flac"), seconds, "s"))
    return Utterances.of(pl.DataFrame(rows, schema=["id", "path", "duration", "speaker"], orient="row"), "speaker")


@pytest.mark.parametrize("window", [None, 0.8])
def test_neither_batches_nor_workers_matter(tmp_path: Path, window: float | None) -> None:
    utterances, model = voices(tmp_path), speaker_model("ecapa_small").eval()
    reading = Reading(16_000, resample=False, mix_channels=False)
    alone, _ = embed(model, utterances, reading, 0.1, 0, window=window, window_step=window)
    for batch_seconds, workers in ((5.0, 0), (100.0, 2)):
        together, _ = embed(model, utterances, reading, batch_seconds, workers, window=window, window_step=window)
        np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())
    if window is None:
        return
    # In bfloat16 the directions stay, to its 8 bits, and they are not those of float32.
    half, _ = embed(model, utterances, reading, 5.0, 0, window=window, window_step=window, precision="bf16")
    cosine = (half * alone).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(alone, axis=1)
    assert half.dtype == np.float32
    assert cosine.min() > 0.999
    assert not np.allclose(half, alone, rtol=1e-4, atol=1e-4)


def test_processes_share_the_work_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = files(tmp_path, [25, 7, 22, 60, 11, 40])
    Path(utterances.path[4]).write_bytes(b"no audio")
    arguments: dict[str, Any] = {"window": 0.010, "window_step": 0.004}
    alone, bad = embed(Ends(), utterances, READING, 0.03, 0, **arguments)
    given: list[Any] = []
    models = [Ends(), Ends(), Ends()]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "any_of", lambda *flags: flags)
    monkeypatch.setattr(distributed, "gather", lambda value: given.append(value) or given)
    for rank in range(3):  # what the last gathers is everything
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        together, found = embed(models[rank], utterances, READING, 0.03, 0, **arguments)
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert found == bad
    assert [entry.id for entry in bad] == ["ü4"]
    assert all(model.rows for model in models)


def test_a_request_to_stop_is_heeded_between_batches(tmp_path: Path) -> None:
    model = Ends().train()
    with pytest.raises(Interrupted):
        embed(model, files(tmp_path, [25, 7, 22]), READING, 0.001, 0, lambda: len(model.rows) == 2)
    assert len(model.rows) == 2
    assert model.training


def test_long_work_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spkexp.bar.LINE_SECONDS", 0.0)
    caplog.set_level("INFO", logger="spkexp")
    embed(Ends(), files(tmp_path, [25, 7, 22]), READING, 0.001, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"batch {done} of 3  embedding 3 utterances" for done in range(3)
    ]


def test_a_batch_of_windows_is_small_enough_to_pass_between_processes(tmp_path: Path) -> None:
    utterances = files(tmp_path, [6000])
    windows = UtteranceWindows(utterances, READING, 0.010, 0.001, batch_seconds=0.5)
    sizes = [len(batch.item) for batch in loader(windows, [[n] for n in range(len(windows))], 0, pin=False)]
    assert max(sizes) * 0.010 <= 0.5
    assert sum(sizes) == 5991  # all of them: (6000 - 10) / 1 + 1
    assert isinstance(windows.__getitems__([0]), WindowBatch)
